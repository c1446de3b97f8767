"""Facts: what our pages and routes use of gradio and fastapi."""

from __future__ import annotations

import base64
import inspect
from typing import Any

import fastapi
import gradio as gr
from modules import shared

ASKED = {
    "HTML": ("value", "elem_id", "elem_classes", "visible"),
    "Button": ("value", "elem_id", "size", "interactive", "visible"),
    "Textbox": ("visible",),
    "Row": ("elem_id",),
    "Blocks": ("analytics_enabled",),
}
CLICK = ("fn", "inputs", "outputs", "queue", "show_progress", "_js", "api_name")
LOGIN = "me:secret,you:other:word"
GIVEN = [
    "",
    "Basic bWU6c2VjcmV0",
    "me:secret",
    "me:wrong",
    "you:other:word",
    "you:other",
    "nobody:secret",
    "me:",
    "Bearer x",
    "Basic !",
    "Basic",
]
COOKIES = [
    "access-token=good",
    "access-token-unsecure=good",
    "access-token=bad",
    "access-token=",
    "other=good",
]


def components() -> dict[str, bool]:
    """Return whether each parameter that we give to gradio exists."""
    out = {
        f"{name}({p})": p in inspect.signature(getattr(gr, name).__init__).parameters
        for name, ps in ASKED.items()
        for p in ps
    }
    with gr.Blocks(analytics_enabled=False), gr.Row():
        button = gr.Button("x")
    out |= {f"click({p})": p in inspect.signature(button.click).parameters for p in CLICK}
    return out | {name: hasattr(gr, name) for name in ("Radio", "Slider", "Request", "update")}


def _ask(app: Any, method: str, path: str, headers: dict[str, str]) -> int:
    if hasattr(app, "ask"):
        return app.ask(method, path, headers)[0]
    from starlette.testclient import TestClient

    return TestClient(app).request(method, path, headers=headers).status_code


def _basic(given: str) -> dict[str, str]:
    if not given:
        return {}
    encoded = (
        given
        if given.split(" ")[0] in ("Basic", "Bearer")
        else "Basic " + base64.b64encode(given.encode()).decode()
    )
    return {"Authorization": encoded}


def guard() -> dict[str, int]:
    """Return the HTTP status of a request for each kind of login and of credentials."""
    from lib_accel.host.pages import api

    out, before = {}, shared.cmd_opts.api_auth
    for pairs in (None, LOGIN):
        for login in (None, object()):
            app: Any = fastapi.FastAPI()
            api.add_routes(app)
            if login:
                app.auth, app.tokens = login, {"good": "me"}
            shared.cmd_opts.api_auth = pairs
            try:
                for headers in [*map(_basic, GIVEN), *({"Cookie": c} for c in COOKIES)]:
                    name = (
                        f"{'pairs' if pairs else 'none'}, {'login' if login else 'none'}: {headers}"
                    )
                    out[name] = _ask(app, "GET", "/accel/v1/status", headers)
            finally:
                shared.cmd_opts.api_auth = before
    return out


def routes() -> dict[str, int]:
    """Return the HTTP status of methods and paths where no login is set."""
    from lib_accel.host.pages import api

    app: Any = fastapi.FastAPI()
    api.add_routes(app)
    paths = [
        ("GET", "status"),
        ("GET", "nothing"),
        ("DELETE", "artifacts/0"),
        ("DELETE", "artifacts/0/1"),
        ("DELETE", "artifacts/"),
    ]
    return {f"{m} {p}": _ask(app, m, f"/accel/v1/{p}", {}) for m, p in paths}


FACTS = (components, guard, routes)

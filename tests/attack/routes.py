"""Attacks on the login of our routes and of our tab, in the stand-in and in a real WebUI.

ACCEL_WEBUI names the folder of a real one.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import random
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import SkipTest

from ..standin.host import Host, in_place

USER, SECRET = "me", "secret"
PAIR = f"{USER}:{SECRET}"
HERE = Path(__file__).resolve().parents[2]

LOGINS = ("none", "api", "gradio", "both")
PLACES = [
    (method, path)
    for path in (
        "/accel/v1/status",
        "/accel/v1/metrics",
        "/accel/v1/health",
        "/accel/v1/prebuild",
        "/accel/v1/cancel",
        f"/accel/v1/artifacts/{'0' * 64}",
        "/accel/v1/artifacts/..%2f..%2fx",
        "//accel/v1/status",
        "/accel/v1/status/",
        "/accel/v1/./prebuild",
        "/accel/v1/x/../status",
        "/accel/v1/%73tatus",
        "/ACCEL/v1/status",
        "/accel/v1/status?a=/docs",
    )
    for method in ("GET", "POST", "DELETE")
]
REFUSED = {307, 401, 404, 405}
"""What somebody without the right login may be answered. 307 leads to the right place."""

NOT_READY = {"/accel/v1/health": 503, "/accel/v1/metrics": 501}
"""Errors that are answers: nothing serves yet, and a package is not installed."""


def _basic(pair: str, kind: str = "Basic") -> dict[str, str]:
    return {"Authorization": f"{kind} {base64.b64encode(pair.encode()).decode()}"}


def credentials(token: str) -> list[tuple[Mapping[str, str], str]]:
    """Return headers, and for which login they are right: "api", "gradio" or neither ("")."""
    return [
        ({}, ""),
        (_basic(PAIR), "api"),
        (_basic(f"{USER}:wrong"), ""),
        (_basic(f"{USER}:"), ""),
        (_basic(f"{USER}:{SECRET[:-1]}"), ""),
        (_basic(f"{PAIR}x"), ""),
        (_basic(f":{SECRET}"), ""),
        (_basic(f"you:{SECRET}"), ""),
        (_basic("mé:secrét"), ""),
        (_basic(USER), ""),
        ({"Authorization": "Basic !"}, ""),
        ({"Authorization": PAIR}, ""),
        (_basic(PAIR, "Bearer"), ""),
        ({"Cookie": f"access-token={token}"}, "gradio"),
        ({"Cookie": f"access-token-unsecure={token}"}, "gradio"),
        ({"Cookie": f"access-token={token[:-1]}"}, ""),
        ({"Cookie": "access-token="}, ""),
        ({**_basic(f"{USER}:wrong"), "Cookie": "access-token=x; access-token-unsecure=y"}, ""),
    ]


def _check(login: str, right: str, status: int, what: tuple[str, str, object]) -> None:
    """Check the answer to one request. Where there is no login, only errors of ours are wrong."""
    assert status < 500 or status == NOT_READY.get(what[1]), what
    entitled = right and right in (login if login != "both" else ("api", "gradio"))
    if login != "none":
        assert (status != 401) if entitled else status in REFUSED, (login, status, what)


Ask = Callable[[str, str, Mapping[str, str]], int]


def _all(login: str, token: str, ask: Ask, dice: random.Random, count: int) -> int:
    """Make `count` of the requests for one kind of login, at most all 594."""
    cases = list(itertools.product(PLACES, credentials(token)))
    dice.shuffle(cases)
    for (method, path), (headers, right) in cases[:count]:
        _check(login, right, ask(method, path, headers), (method, path, headers))
    return len(cases[:count])


def in_the_standin(folder: Path, count: int, seed: int) -> int:
    """Ask our routes in every way for every kind of login."""
    dice, tried = random.Random(seed), 0
    with in_place():
        host = Host("--accel-store", str(folder / "store"), "--accel-disable")
        flags: Any = host.module("modules.shared").cmd_opts
        for login in LOGINS:
            flags.api_auth = PAIR if login in ("api", "both") else None
            host.app.auth = object() if login in ("gradio", "both") else None
            host.app.tokens = {"good": USER}

            def ask(method: str, path: str, headers: Mapping[str, str]) -> int:
                return host.app.ask(method, path, dict(headers))[0]

            tried += _all(login, "good", ask, dice, count // len(LOGINS))
        host.close()
    return tried


@contextlib.contextmanager
def _webui(folder: Path, login: str) -> Iterator[int]:
    """Start a real WebUI with this kind of login; yield its port."""
    if not os.environ.get("ACCEL_WEBUI"):
        raise SkipTest("set ACCEL_WEBUI to the folder of a WebUI")
    from ..webui.host import KINDS_OF_MODEL, Server

    flags = ["--accel-no-compile"]
    flags += ["--api-auth", PAIR] if login in ("api", "both") else []
    flags += ["--gradio-auth", PAIR] if login in ("gradio", "both") else []
    for kind in KINDS_OF_MODEL:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    webui, own = Path(os.environ["ACCEL_WEBUI"]).resolve(), {"accel": HERE}
    password = PAIR if login in ("api", "both") else None
    data = folder / login
    server = Server(webui, data, folder / "store", "tinyA", flags, own, password)
    try:
        yield server.port
    finally:
        server.stop()


def _send(
    port: int, method: str, path: str, headers: Mapping[str, str], body: str | None = None
) -> tuple[int, str, str]:
    """Send a path as it is; return status, text and cookies."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.getheader("Set-Cookie") or ""
    finally:
        connection.close()


def _token(port: int) -> str:
    """Log in as a browser does; return the token, a wrong one where there is no login."""
    form = urllib.parse.urlencode({"username": USER, "password": SECRET})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    cookies = _send(port, "POST", "/login", kind, form)[2]
    return cookies.partition("access-token")[2].partition("=")[2].partition(";")[0] or "none"


def in_a_webui(folder: Path, count: int, seed: int) -> int:
    """Ask the routes of a real WebUI in the same ways."""
    dice, tried = random.Random(seed), 0
    for login in LOGINS:
        with _webui(folder, login) as port:

            def ask(method: str, path: str, headers: Mapping[str, str], port: int = port) -> int:
                return _send(port, method, path, headers)[0]

            tried += _all(login, _token(port), ask, dice, count // len(LOGINS))
    return tried


def _events(port: int) -> list[int]:
    """Return the numbers of our tab's events, which a page asks for by number."""
    config = json.loads(_send(port, "GET", "/config", {})[1])
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    ours = {id_ for name, id_ in ids.items() if name and name.startswith("accel_")}
    found = [
        n
        for n, event in enumerate(config["dependencies"])
        if ours & {*event["targets"]} or event.get("api_name") == "accel_status"
    ]
    assert len(found) == 4, found
    return found


def _post(port: int, route: str, event: int, headers: Mapping[str, str]) -> int:
    body = json.dumps({"fn_index": event, "data": [], "session_hash": "x"})
    kind = {"Content-Type": "application/json"}
    return _send(port, "POST", route, {**kind, **headers}, body)[0]


def in_a_tab(folder: Path, count: int, seed: int) -> int:
    """Ask for the events of our tab without the login of its page."""
    with _webui(folder, "none") as port:
        events = _events(port)
    routes = ("/run/predict", "/api/predict", "/run/accel_status", "/api/predict/")
    tried = 0
    for login in ("gradio", "both"):
        with _webui(folder, login) as port:
            token = _token(port)
            right = {"Cookie": f"access-token-unsecure={token}"}
            assert _post(port, "/run/predict", events[0], right) != 401
            wrong = [headers for headers, right in credentials(token) if right != "gradio"][:12]
            cases = list(itertools.product(routes, events, wrong))
            random.Random(seed).shuffle(cases)
            for route, event, headers in cases[: count // 2]:
                status = _post(port, route, event, headers)
                assert status in REFUSED, (login, route, event, headers, status)
                tried += 1
    return tried


Attack = Callable[[Path, int, int], int]
ATTACKS: dict[str, tuple[Attack, int, int]] = {
    "requests of the routes, stand-in": (in_the_standin, 2376, 2376),
    "requests of the routes, real WebUI": (in_a_webui, 0, 2376),
    "posts of the tab, real WebUI": (in_a_tab, 0, 384),
}

"""A running WebUI's API in a thread, as the command `bench webui` sees it."""

from __future__ import annotations

import base64
import io
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


class Api(ThreadingHTTPServer):
    """The state of the WebUI, which tests read and change."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.options: dict[str, Any] = {"accel_enable": True, "sd_model_checkpoint": "tiny"}
        self.state, self.reason = "ready", None
        self.login: str | None = None  # user:password of --api-auth
        self.form: str | None = None  # the same of --gradio-auth
        self.missing: set[str] = set()  # paths that are answered with 404
        self.loras = [{"name": name, "alias": f"{name} 2"} for name in ("style", "one", "two")]
        self.marks = True  # whether infotexts are right
        self.speeds: list[dict[str, object]] = []  # measured at size classes
        self.prompts: list[tuple[bool, str, int]] = []  # accelerated, prompt, steps
        self.hold = threading.Event()  # cleared: images wait
        self.hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        api = self.server
        on = api.options["accel_enable"]
        status = {
            "state": api.state if api.options["accel_enable"] else "off",
            "reason": api.reason,
            "progress": {"stage": "compiling"} if api.state == "compiling" else None,
            "backend": "aoti" if on else "",
            "architecture": "SD1" if on else "",
            "dtype": "float32" if on else "",
            "device": "CPU" if on else "",
            "speeds": api.speeds,
            "phases": {"prompt_s": 0.1, "steps_s": 2.0, "vae_s": 0.5 if on else 1.0},
        }
        answers = {
            "/sdapi/v1/options": api.options,
            "/sdapi/v1/loras": api.loras,
            "/accel/v1/status": status,
        }
        self.answer(answers.get(self.path))

    def do_POST(self) -> None:
        api = self.server
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/login":
            pair = dict(urllib.parse.parse_qsl(raw.decode()))
            right = api.form == f"{pair.get('username')}:{pair.get('password')}"
            self.answer({} if right else None, cookie=right)
            return
        body = json.loads(raw)
        if self.path == "/sdapi/v1/options" and self.allowed():
            api.options.update(body)
        self.answer(self.image(body) if self.path == "/sdapi/v1/txt2img" else {})

    def image(self, body: dict[str, Any]) -> dict[str, Any]:
        api = self.server
        api.hold.wait()
        on = api.options["accel_enable"]
        api.prompts.append((on, body["prompt"], body["steps"]))
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (body["steps"], 0, int(on))).save(out, "PNG")
        mark = ", Accel: aoti" if on and api.marks else ""
        info = json.dumps({"infotexts": [f"a cat\nSteps: 3{mark}, Version: v1.10.1"]})
        return {"images": [base64.b64encode(out.getvalue()).decode()], "info": info}

    def allowed(self) -> bool:
        api = self.server
        given = self.headers.get("Authorization", "")
        basic = base64.b64encode((api.login or "").encode()).decode()
        if api.login and given != f"Basic {basic}":
            return False
        return not api.form or "token=known" in self.headers.get("Cookie", "")

    def answer(self, value: object, cookie: bool = False) -> None:
        """Send JSON, 404 for None, 401 where a login is missing."""
        if self.path in self.server.missing:
            value = None
        code = 404 if value is None else 200
        if self.path != "/login" and not self.allowed():
            code = 401
        self.send_response(code)
        if cookie:
            self.send_header("Set-Cookie", "token=known; Path=/")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def running_api() -> Iterator[Api]:
    """Run it for the length of a `with`."""
    api = Api()
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        api.hold.set()
        api.shutdown()
        api.server_close()
        thread.join()

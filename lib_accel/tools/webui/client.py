"""Asks a running WebUI over HTTP, and says in a sentence what it lacks."""

from __future__ import annotations

import base64
import http.client
import http.cookiejar
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import AccelError

LONGEST_S = 3600.0
"""The longest time that an answer, which may be a picture, is waited for."""


class WebUIFailed(AccelError):
    """The WebUI did not start, is not there, or answered a request with an error."""


class Refused(WebUIFailed):
    """The WebUI answered a request with an error; `code` is its HTTP status."""

    def __init__(self, request: str, code: int, text: str):
        super().__init__(f"{request} was answered with {code}: {text[:600]}")
        self.code = code


class Client:
    """Asks the WebUI at `url`. `login` is the `user:password` of --api-auth or --gradio-auth."""

    def __init__(self, url: str, login: str | None = None):
        self.url, self.login = url.rstrip("/"), login
        jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))

    def get(self, path: str) -> Any:
        """Return the JSON that a GET request is answered with. Raises WebUIFailed."""
        return self.request("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON that a POST request is answered with. Raises WebUIFailed."""
        return self.request("POST", path, {} if body is None else body)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Return the JSON of the answer. Bytes are sent unchanged.

        Raises Refused where it is an error, and WebUIFailed where there is none.
        """
        data = json.dumps(body).encode() if body is not None and type(body) is not bytes else body
        own = {"Authorization": basic(self.login)} if self.login else {}
        headers = {"Content-Type": "application/json", **own, **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=LONGEST_S) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as e:
            with e:
                text = e.read().decode(errors="replace")
            raise Refused(f"{method} {path}", e.code, text) from None
        except (OSError, http.client.HTTPException) as e:  # URLError is an OSError
            raise WebUIFailed(
                f"{self.url} does not answer ({getattr(e, 'reason', e)}). Expected the address of "
                "a running WebUI, such as http://127.0.0.1:7860"
            ) from e
        except ValueError as e:
            raise WebUIFailed(
                f"{self.url}{path} is answered with something else than JSON. Expected the address "
                "of a WebUI, such as http://127.0.0.1:7860"
            ) from e

    def connect(self) -> dict[str, Any]:
        """Log in where that is needed; return the status of the extension.

        Raises WebUIFailed with what is missing: the API, the extension or a login.
        """
        self._log_in()
        for path, missing in (
            ("/sdapi/v1/options", "has no API. Start it with --api"),
            ("/accel/v1/status", "has no such extension. Install it, enable it and restart"),
        ):
            try:
                answer = self.get(path)
            except Refused as e:
                if e.code in (401, 403):
                    told = "that login is wrong" if self.login else "it asks for a login"
                    raise WebUIFailed(f"{self.url}: {told}. Give --auth USER:PASSWORD") from None
                if e.code in (404, 405):
                    raise WebUIFailed(f"the WebUI at {self.url} {missing}") from None
                raise
        return answer

    def _log_in(self) -> None:
        """Get the cookie of --gradio-auth, where that is what `login` is for."""
        if not self.login:
            return
        user, _, password = self.login.partition(":")
        form = urllib.parse.urlencode({"username": user, "password": password}).encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            self.request("POST", "/login", form, kind)
        except Refused:
            return  # --api-auth alone; a wrong pair shows in the next request

    def settled(
        self, waiting: Callable[[], object] = lambda: None, timeout_s: float = math.inf
    ) -> dict[str, Any]:
        """Return the extension's status once nothing is compiled or loaded, or after the timeout.

        `waiting` is called once, where that takes a while.
        """
        end, told = time.monotonic() + timeout_s, False
        while True:
            status = self.get("/accel/v1/status")
            loading = status["reason"] == "the model is being loaded"
            if not (status["progress"] or loading) or time.monotonic() > end:
                return status
            if not told:
                waiting()
            told = True
            time.sleep(1)

    def picture(self, **payload: Any) -> float:
        """Make a picture with `/sdapi/v1/txt2img`; return the seconds until the answer."""
        began = time.perf_counter()
        self.post("/sdapi/v1/txt2img", payload)
        return time.perf_counter() - began


def basic(login: str) -> str:
    """Return the header of basic authentication for `user:password`."""
    return "Basic " + base64.b64encode(login.encode()).decode()

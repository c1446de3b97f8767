"""The HTTP routes `/accel/v1/...`, behind the WebUI's own authentication."""

from __future__ import annotations

import json
import secrets
import sys
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ...errors import AccelError
from .. import webui
from ..service import service
from . import metrics

_given = Depends(HTTPBasic(auto_error=False))


def add_routes(app: FastAPI) -> None:
    """Add the routes. The WebUI's logins do not cover extensions, so each route checks them."""
    guard = [Depends(_guard)]
    changing = [*guard, Depends(_from_our_pages)]
    app.add_api_route("/accel/v1/status", _status, methods=["GET"], dependencies=guard)
    app.add_api_route("/accel/v1/health", _health, methods=["GET"], dependencies=guard)
    app.add_api_route("/accel/v1/metrics", _metrics, methods=["GET"], dependencies=guard)
    app.add_api_route("/accel/v1/prebuild", _prebuild, methods=["POST"], dependencies=changing)
    app.add_api_route("/accel/v1/cancel", _cancel, methods=["POST"], dependencies=changing)
    app.add_api_route(
        "/accel/v1/artifacts/{key}", _delete, methods=["DELETE"], dependencies=changing
    )


def _guard(request: Request, given: HTTPBasicCredentials | None = _given) -> None:
    """Let a request pass that has a pair of `--api-auth` or a cookie of gradio's login.

    Raises HTTPException 401 where either is set and the request has neither.
    """
    pairs = webui.api_credentials()
    login = getattr(request.app, "auth", None)
    if not pairs and not login:
        return
    if given and pairs:
        known = pairs.get(given.username)
        if known is not None and secrets.compare_digest(known.encode(), given.password.encode()):
            return
    if login:
        cookies, cookie_id = request.cookies, getattr(request.app, "cookie_id", None)  # gradio 4
        end = f"-{cookie_id}" if cookie_id else ""
        token = cookies.get(f"access-token{end}") or cookies.get(f"access-token-unsecure{end}")
        if token and token in getattr(request.app, "tokens", {}):
            return
    headers = {"WWW-Authenticate": "Basic"} if pairs else None
    raise HTTPException(401, "Incorrect username or password", headers=headers)


def _from_our_pages(request: Request) -> None:
    """Refuse, with 403, what a page of another site makes a browser send."""
    reason = refusal(request)
    if reason:
        raise HTTPException(403, reason)


def refusal(request: object) -> str | None:
    """Return why what `request` asks for must not be done; None where it may be.

    Any page can make a browser send requests here, which reach us where there is no login or a
    cookie. The browser then says where they come from, and no page can forge that. Programs say
    nothing. Where a page reaches us by a name of its own (DNS rebinding), it is taken for ours.
    """
    if not isinstance(request, Request):  # what gradio passes on is then the sender's own word
        return "Refused: this did not come straight from a page of this WebUI; use its buttons"
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    if site is None:  # an old browser, a page without https that is not on this machine, a program
        hosts = (request.headers.get(name) for name in ("host", "x-forwarded-host"))
        ours = origin is None or any(_is_at(origin, host) for host in hosts if host)
    else:
        ours = site in ("same-origin", "none")
    if ours or (origin and webui.trusts(origin)):
        return None
    return (
        f"Refused: this came from a page of another site ({origin or site}), and only pages "
        "of this WebUI may build or delete compiled code; if it is a site of yours, name it with "
        "--cors-allow-origins, or let your proxy pass on the Host header"
    )


def _is_at(origin: str, host: str) -> bool:
    """Return whether an Origin header names the host of a Host header."""
    try:
        ours, theirs = urlsplit(f"//{host.partition(',')[0].strip()}"), urlsplit(origin)
        port = theirs.port or {"http": 80, "https": 443}.get(theirs.scheme)
        same = bool(theirs.hostname) and theirs.hostname == ours.hostname
        return same and ours.port in (None, port)  # proxies leave the port out
    except ValueError:  # a port that is no number
        return False


def _status() -> dict[str, Any]:
    return service.status()


def _health() -> Response:
    """Return 200 where compiled code serves, else 503; for load balancers."""
    found = metrics.health()
    code = 200 if found["state"] == "ready" else 503
    return Response(json.dumps(found), code, media_type="application/json")


def _metrics() -> Response:
    """Return the metrics in Prometheus' text format."""
    try:
        content, kind = metrics.exposition()
    except ImportError as e:
        raise HTTPException(
            501,
            "Metrics need the package prometheus_client; run: "
            f'"{sys.executable}" -m pip install prometheus-client',
        ) from e
    return Response(content, media_type=kind)


def _prebuild() -> dict[str, Any]:
    """Start compiling for the loaded model where that is needed, and return the status at once."""
    try:
        service.build()
    except AccelError as e:
        raise HTTPException(409, str(e)) from e
    return service.status()


def _cancel() -> dict[str, Any]:
    """Stop the compiler where it is at work, and return the status at once."""
    service.cancel_build()
    return service.status()


def _delete(key: str) -> dict[str, Any]:
    """Delete an artifact. Code that was loaded from it keeps serving until the WebUI ends."""
    try:
        deleted = service.delete(key)
    except AccelError as e:
        raise HTTPException(409, str(e)) from e
    if not deleted:
        raise HTTPException(404, f"there is no artifact {key}")
    return {"deleted": key}

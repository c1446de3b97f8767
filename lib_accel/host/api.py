"""The HTTP routes `/accel/v1/...`, behind the WebUI's own authentication."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ..errors import AccelError
from . import webui
from .service import service

_given = Depends(HTTPBasic(auto_error=False))


def add_routes(app: FastAPI) -> None:
    """Add the routes. The WebUI's logins do not cover extensions, so each route checks them."""
    guard = [Depends(_guard)]
    app.add_api_route("/accel/v1/status", _status, methods=["GET"], dependencies=guard)
    app.add_api_route("/accel/v1/prebuild", _prebuild, methods=["POST"], dependencies=guard)
    app.add_api_route("/accel/v1/artifacts/{key}", _delete, methods=["DELETE"], dependencies=guard)


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
        cookies = request.cookies
        token = cookies.get("access-token") or cookies.get("access-token-unsecure")
        if token and token in getattr(request.app, "tokens", {}):
            return
    headers = {"WWW-Authenticate": "Basic"} if pairs else None
    raise HTTPException(401, "Incorrect username or password", headers=headers)


def _status() -> dict[str, Any]:
    return service.status()


def _prebuild() -> dict[str, Any]:
    """Start compiling for the loaded model where that is needed, and return the status at once."""
    try:
        service.build()
    except (AccelError, ValueError) as e:  # ValueError: an option is out of range
        raise HTTPException(409, str(e)) from e
    return service.status()


def _delete(key: str) -> dict[str, Any]:
    """Delete an artifact. Code that was loaded from it keeps serving until the WebUI ends."""
    try:
        deleted = service.delete(key)
    except (AccelError, ValueError) as e:  # ValueError: an option is out of range
        raise HTTPException(409, str(e)) from e
    if not deleted:
        raise HTTPException(404, f"there is no artifact {key}")
    return {"deleted": key}

"""Routes for programs, behind the WebUI's own authentication."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ..errors import AccelError
from . import webui
from .service import service

_basic = HTTPBasic(auto_error=False)
_with_credentials = Depends(_basic)


def add_routes(app: FastAPI) -> None:
    """Add `/accel/v1/...`. Extension routes are behind no login of the WebUI's unless they ask for it themselves."""
    guard = [Depends(_guard)]
    app.add_api_route("/accel/v1/status", _status, methods=["GET"], dependencies=guard)
    app.add_api_route("/accel/v1/prebuild", _prebuild, methods=["POST"], dependencies=guard)
    app.add_api_route("/accel/v1/artifacts/{key}", _delete, methods=["DELETE"], dependencies=guard)


def _guard(request: Request, given: HTTPBasicCredentials | None = _with_credentials) -> None:
    """Pass with an `--api-auth` pair, or with gradio's login; answer 401 where either is set and neither is met."""
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
    raise HTTPException(
        401,
        "Incorrect username or password",
        headers={"WWW-Authenticate": "Basic"} if pairs else None,
    )


def _status() -> dict[str, Any]:
    return service.status()


def _prebuild() -> dict[str, Any]:
    """Start compiling for the loaded model, if that is needed; answers at once with the status."""
    try:
        service.build()
    except (AccelError, ValueError) as e:  # ValueError: an option out of range
        raise HTTPException(409, str(e)) from e
    return service.status()


def _delete(key: str) -> dict[str, Any]:
    """Remove an artifact. Code already loaded from it keeps serving until the WebUI ends."""
    try:
        removed = service.delete(key)
    except (AccelError, ValueError) as e:  # ValueError: an option out of range
        raise HTTPException(409, str(e)) from e
    if not removed:
        raise HTTPException(404, f"there is no artifact {key}")
    return {"deleted": key}

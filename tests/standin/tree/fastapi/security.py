"""A name and a password in a header."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from fastapi import HTTPException, Request


@dataclass(frozen=True)
class HTTPBasicCredentials:
    username: str
    password: str


class HTTPBasic:
    def __init__(self, *, auto_error: bool = True):
        assert not auto_error

    def __call__(self, request: Request) -> HTTPBasicCredentials | None:
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            username, colon, password = base64.b64decode(encoded).decode("ascii").partition(":")
        except (ValueError, binascii.Error):
            colon = ""
        if not colon:
            raise HTTPException(401, "Invalid authentication credentials")
        return HTTPBasicCredentials(username, password)

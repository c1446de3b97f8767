"""The signing key of exports and the signature: HMAC-SHA256 with one secret for a fleet."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import StoreError
from .files import create, flush, os_errors

KEY_BYTES = 32


def generate_key() -> bytes:
    """Return a new signing key."""
    return secrets.token_bytes(KEY_BYTES)


def write_key(path: Path, key: bytes) -> None:
    """Write a new key file that only its owner can read. An existing file is never replaced."""
    require_key(key)
    with os_errors(f"write the signing key {path}"), create(path) as stream:
        stream.write(key.hex().encode() + b"\n")
        flush(stream)


def read_key(path: Path) -> bytes:
    """Return the key in `path`: 64 hex digits.

    On POSIX the file must be the user's (or root's) and closed to everyone else. On Windows its
    access list is not checked: the standard library cannot read it. Raises StoreError.
    """
    with os_errors(f"read the signing key {path}"), path.open("rb") as stream:
        info = os.fstat(stream.fileno())
        if sys.platform != "win32" and (
            info.st_mode & 0o077 or info.st_uid not in (0, os.geteuid())
        ):
            raise StoreError(
                f"The signing key {path} is open to others (owner {info.st_uid}, mode "
                f"{stat.S_IMODE(info.st_mode):04o}). Expected a file that is yours or root's, with "
                f"mode 0600. Run: chmod 600 '{path}'; if others could read it, make a new key."
            )
        text = stream.read(1024).strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{%d}" % (KEY_BYTES * 2), text):
        raise StoreError(
            f"{path} holds no signing key. Expected {KEY_BYTES * 2} hex digits. "
            "Make one with generate_key() and write_key()."
        )
    return bytes.fromhex(text.decode())


def sign(key: bytes, members: Mapping[str, str]) -> str:
    """Return the signature, in hex, over `members`: each member's sha256 by its name."""
    require_key(key)
    canonical = json.dumps(dict(members), sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, b"lib_accel export 1\n" + canonical, hashlib.sha256).hexdigest()


def check(key: bytes, members: Mapping[str, str], signature: str) -> bool:
    """Return whether `signature` was made with this key over these members."""
    return hmac.compare_digest(sign(key, members).encode(), signature.encode("utf-8", "replace"))


def require_key(key: bytes) -> None:
    """Raise StoreError when the key is too short."""
    if len(key) < KEY_BYTES:
        raise StoreError(
            f"The signing key has {len(key)} bytes. Expected at least {KEY_BYTES}. "
            "Make one with generate_key()."
        )

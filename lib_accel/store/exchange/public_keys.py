"""Signatures that nobody who checks them can make: Ed25519, by the package cryptography.

Whoever compiles for others signs each manifest with a private key; each server has a file of the
public keys that it trusts. A signature lies in the manifest, as `published`:

    {"key": public key, "time": ..., "origin": ..., "signature": ...}

It covers these and all that the manifest says of the code: recipe, files with their digests,
verdict, tools. It does not cover `origin` and `signature`, which each store writes anew.

A file of trusted keys has lines `NAME KEY` and `revoked KEY`, each key as 64 hex digits. `revoked`
also takes the checksum of one artifact, as `store list --json` shows it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...errors import StoreError, printable
from ..files import create, flush, os_errors
from ..signing import generate_key, read_guarded, require_owner, require_unserved

_LINE = re.compile(r"(\S{1,100})\s+([0-9a-f]{64})")
_REVOKED = "revoked"
_KIND = b"lib_accel published 1\n"
_LOCAL = ("origin", "published", "signature", "sha256")
"""Fields of a manifest that are no part of what is signed."""

Trusted = tuple["dict[str, str]", "set[str]"]
"""The names of the trusted keys, by key, and what is revoked."""


@dataclass(frozen=True)
class PublicKeys:
    """The files that the host names: public keys to check with, and a private key to sign with."""

    trusted: Path | None = None
    signer: Path | None = None
    read: Callable[[Path], Trusted] = lambda path: _read(path)

    def reading_once(self) -> PublicKeys:
        """Return these keys for many artifacts at once: the file is read for the first of them."""
        return replace(self, read=functools.lru_cache(maxsize=1)(self.read))

    def signed(self, manifest: Mapping[str, Any], anew: bool = False) -> dict[str, Any]:
        """Return the manifest signed with the private key; as it is where there is no such key.

        What this key has signed before is signed again only with `anew`, for what was changed in
        it; then what another key has signed stays as it is, so that this key can be revoked. Raises
        StoreError where the key cannot be used.
        """
        if self.signer is None:
            return dict(manifest)
        private = _private(self.signer)
        public = private.public_key().public_bytes_raw().hex()
        signed_by = manifest.get("published", {}).get("key")
        if signed_by is not None and (signed_by == public) != anew:
            return dict(manifest)
        published = {
            "key": public,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "origin": manifest["origin"],
        }
        signature = private.sign(_text(manifest, published)).hex()
        return {**manifest, "published": {**published, "signature": signature}}

    def revoked(self, manifest: Mapping[str, Any], checksum: str) -> str | None:
        """Return why code must not serve, whoever signed it, or None. Raises StoreError."""
        if self.trusted is None:
            return None
        revoked = self.read(self.trusted)[1]
        if checksum in revoked:
            return f"this code is revoked in {self.trusted}"
        if manifest.get("published", {}).get("key") in revoked:
            return f"the key that signed it is revoked in {self.trusted}"
        return None

    def signer_of(self, manifest: Mapping[str, Any]) -> tuple[str | None, str]:
        """Return the name of the trusted key that signed the manifest, else None and why.

        Raises StoreError where that cannot be found out.
        """
        published = manifest.get("published")
        if published is None:
            return None, "it has no signature that a public key can check"
        if self.trusted is None:
            return None, "no file of trusted keys was named to check its signature with"
        names, revoked = self.read(self.trusted)
        key = published["key"]
        if key in revoked or key not in names:
            return None, f"it was signed with a key that is not in {self.trusted}"
        if not _fits(key, published["signature"], _text(manifest, published)):
            return None, "its signature does not fit: it was changed since"
        return names[key], ""

    def check(self) -> None:
        """Raise StoreError where a file that was named cannot be used."""
        if self.trusted is not None:
            _read(self.trusted)
            _library()
        if self.signer is not None:
            _private(self.signer)


def write_pair(path: Path) -> str:
    """Write a new private key to `path`; return the line that trusts its public key.

    The line is written to `path` with `.pub` at its end, too. No file is replaced. Raises
    StoreError.
    """
    library, secret = _library(), generate_key()
    public = library.Ed25519PrivateKey.from_private_bytes(secret).public_key()
    name = re.sub(r"[\s#]", "-", printable(path.stem))[:100]
    name = name if _is_name(name) else "builder"
    line = f"{name} {public.public_bytes_raw().hex()}"
    beside = path.with_name(f"{path.name}.pub")
    require_unserved(path)
    with os_errors(f"write the key file {path}"):
        if os.path.lexists(beside):
            raise FileExistsError(17, os.strerror(17), str(beside))
        with create(path) as stream:
            stream.write(f"ed25519 {secret.hex()}\n".encode())
            flush(stream)
        with create(beside, 0o644) as stream:
            stream.write(f"{line}\n".encode())
    return line


def wrong_signature(published: object) -> bool:
    """Return whether the field `published` of a manifest cannot be one that `signed` wrote."""
    if not isinstance(published, dict) or published.keys() != {
        "key",
        "time",
        "origin",
        "signature",
    }:
        return True
    texts = all(isinstance(text, str) and text.isprintable() for text in published.values())
    return not (
        texts
        and re.fullmatch(r"[0-9a-f]{64}", published["key"])
        and re.fullmatch(r"[0-9a-f]{128}", published["signature"])
    )


def _text(manifest: Mapping[str, Any], published: Mapping[str, str]) -> bytes:
    """Return what is signed."""
    body = {name: value for name, value in manifest.items() if name not in _LOCAL}
    body["published"] = {name: published[name] for name in ("key", "time", "origin")}
    return _KIND + json.dumps(body, sort_keys=True).encode()


def _fits(key: str, signature: str, text: bytes) -> bool:
    public = _library().Ed25519PublicKey
    from cryptography.exceptions import InvalidSignature  # type: ignore[import-not-found]

    try:
        public.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError):  # ValueError: not a point of the curve
        return False
    return True


def _read(path: Path) -> Trusted:
    """Return the names of the trusted keys, by key, and what is revoked. Raises StoreError."""
    raw, info = read_guarded(path, most_bytes=1 << 20)
    names, revoked = {}, set()
    # not splitlines: a comment goes on where an editor shows no new line
    for number, line in enumerate(raw.decode("utf-8-sig", errors="replace").split("\n"), 1):
        text = line.partition("#")[0].strip()
        found = _LINE.fullmatch(text)
        if found and found[1] == _REVOKED:
            revoked.add(found[2])
        elif found and _is_name(found[1]):
            names[found[2]] = found[1]
        elif text:
            raise StoreError(
                f"{path} is no file of trusted keys: line {number} is neither a name and a key of "
                "64 hex digits nor `revoked` and 64 hex digits. Correct it, or name another file."
            )
    if sys.platform != "win32":
        require_owner(path, info)
        if info.st_mode & 0o022:
            raise StoreError(
                f"Others can write the file of trusted keys {path} (mode "
                f"{stat.S_IMODE(info.st_mode):04o}), so they could add a key of their own. "
                f"Expected a file that only you or root can write. Run: chmod go-w '{path}'"
            )
    return names, revoked


def _is_name(word: str) -> bool:
    """Return whether a word names a key: none that could be meant to revoke it."""
    return word.isprintable() and _REVOKED[:5] not in word.casefold()


def _private(path: Path) -> Any:
    raw, info = read_guarded(path)
    require_unserved(path)
    found = re.fullmatch(rb"ed25519 ([0-9a-f]{64})", raw.strip())
    if not found:
        raise StoreError(
            f"{path} holds no private key for signing. "
            "Make one: python3 -m lib_accel store key FILE --pair"
        )
    if sys.platform != "win32":
        require_owner(path, info, secret=True)
    return _library().Ed25519PrivateKey.from_private_bytes(bytes.fromhex(found[1].decode()))


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import (  # type: ignore[import-not-found]
            ed25519,
        )
    except ImportError as error:
        raise StoreError(
            "Signatures that are checked with a public key need the package cryptography, which is "
            "not installed. Run: pip install cryptography"
        ) from error
    return ed25519

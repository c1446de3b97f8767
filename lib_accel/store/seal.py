"""Exports of artifacts: one zip, sealed with a key that the operator holds.

Why HMAC-SHA256: the one who exports and the one who imports are the same operator, who compiles once and seeds a fleet with the
result. One secret on each machine is enough, and the standard library has it: no dependency, no certificate, no key server.

What it does not give. Whoever can check a seal can also make one: one stolen key lets a thief run code on every machine of the fleet,
and a seal from a stranger means nothing. It does not say who made an archive or when, an old archive stays valid, a key is withdrawn
only by replacing it everywhere, and nothing is encrypted.

The archive: `<artifact key>/manifest.json`, `<artifact key>/<unit>.pt2`, ..., and `seal.json` last when it is sealed. Members are
stored, not compressed, so an archive cannot grow while it is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO

from ..errors import ArtifactRejected, StoreError

SEAL = "seal.json"
KEY_BYTES = 32
MAX_MEMBERS = 4096
MAX_SEAL_BYTES = 4096
ARTIFACT_KEY = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(
    r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?"
)  # Windows names too
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)
_FULL = "The disk is full (or your quota is). Free space or choose another folder; what was stored before is intact."
_DENIED = "You need permission to read and write there, and no other program may hold the file. Fix that or choose another folder."
_ADVICE = {
    errno.ENOSPC: _FULL,
    getattr(errno, "EDQUOT", errno.ENOSPC): _FULL,
    errno.EFBIG: "A file size limit (ulimit -f, or the file system's) is too low. Raise it or choose another folder.",
    errno.EROFS: "The file system is read-only. Make it writable, choose another folder, or use the store read-only.",
    errno.ENOENT: "Expected it to exist. Check the name.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
}


@contextlib.contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what failed, what was expected and what to do."""
    try:
        yield
    except OSError as error:
        code = error.errno if error.errno is not None else -1
        advice = _ADVICE.get(
            code,
            "Expected a folder on a working disk that you may read and write. Check it, or choose another folder.",
        )
        where = f" ({error.filename})" if error.filename else ""
        raise StoreError(
            f"Could not {doing}: {error.strerror or error}{where}. {advice}"
        ) from error


def create(path: Path, mode: int = 0o600) -> BinaryIO:
    """A new file for writing that nobody else can write, whatever the umask is."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))


def copy(source: IO[bytes], target: IO[bytes]) -> tuple[str, int]:
    """Copy all of it; return sha256 and size in bytes."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(1 << 20):
        size += len(block)
        digest.update(block)
        target.write(block)
    return digest.hexdigest(), size


def flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def generate_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def write_key(path: Path, key: bytes) -> None:
    """Write a new key file that only its owner can read. An existing file is never replaced."""
    _require_key(key)
    with os_errors(f"write the signing key {path}"), create(path) as stream:
        stream.write(key.hex().encode() + b"\n")
        flush(stream)


def read_key(path: Path) -> bytes:
    """The key in `path`: 64 hex digits. On POSIX the file must be yours (or root's) and closed to everyone else.

    On Windows the file's access list is not checked: the standard library cannot read it.
    """
    with os_errors(f"read the signing key {path}"), path.open("rb") as stream:
        info = os.fstat(stream.fileno())
        if sys.platform != "win32" and (
            info.st_mode & 0o077 or info.st_uid not in (0, os.geteuid())
        ):
            raise StoreError(
                f"The signing key {path} is open to others (owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}). Expected a file "
                f"that is yours or root's, with mode 0600. Run: chmod 600 '{path}'; if others could read it, make a new key."
            )
        text = stream.read(1024).strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{%d}" % (KEY_BYTES * 2), text):
        raise StoreError(
            f"{path} holds no signing key. Expected {KEY_BYTES * 2} hex digits. Make one with generate_key() and write_key()."
        )
    return bytes.fromhex(text.decode())


def sign(key: bytes, members: Mapping[str, str]) -> str:
    """The signature, in hex, over `members`: the sha256 of every member by its name in the archive."""
    _require_key(key)
    canonical = json.dumps(dict(members), sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, b"lib_accel export 1\n" + canonical, hashlib.sha256).hexdigest()


def check(key: bytes, members: Mapping[str, str], signature: str) -> bool:
    return hmac.compare_digest(sign(key, members).encode(), signature.encode("utf-8", "replace"))


def _require_key(key: bytes) -> None:
    if len(key) < KEY_BYTES:
        raise StoreError(
            f"The signing key has {len(key)} bytes. Expected at least {KEY_BYTES}. Make one with generate_key()."
        )


def pack(destination: Path, members: Mapping[str, Path], signing_key: bytes | None) -> None:
    """Write the archive beside `destination`, then put it in place in one step. A reader sees the old file or the whole new one."""
    if signing_key is not None:
        _require_key(signing_key)
    draft = destination.parent / f".{destination.name}.{secrets.token_hex(6)}.part"
    with os_errors(f"write the export {destination}"):
        try:
            with create(draft, 0o644) as stream:
                with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                    digests = {
                        name: _add(archive, name, path) for name, path in sorted(members.items())
                    }
                    if signing_key is not None:
                        seal = {
                            "format": 1,
                            "algorithm": "HMAC-SHA256",
                            "signature": sign(signing_key, digests),
                        }
                        archive.writestr(zipfile.ZipInfo(SEAL), json.dumps(seal))
                flush(stream)
            draft.replace(destination)
        finally:
            with contextlib.suppress(FileNotFoundError):  # gone when it was put in place
                draft.unlink()


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> str:
    info = zipfile.ZipInfo(name)  # a fixed date: the same artifacts give the same archive
    info.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(info, "w") as target:
        return copy(source, target)[0]


def unpack(
    source: Path, into: Path, signing_key: bytes | None, allow_unsigned: bool, max_bytes: int
) -> tuple[list[str], bool]:
    """Unpack into the private folder `into`; return the artifact keys and whether the seal was checked.

    Nothing there may be used when this raises. A given key is always checked when there is a seal, `allow_unsigned` or not: a seal that
    does not fit is damage. To take an archive that another key sealed, pass no key and `allow_unsigned`.
    """
    if signing_key is None and not allow_unsigned:
        raise ArtifactRejected(
            f"{source} was not imported: there is no signing key to check it with. Give the key, or allow unsigned imports."
        )
    with os_errors(f"import {source}"), source.open("rb") as stream:
        if (size := os.fstat(stream.fileno()).st_size) > max_bytes + MAX_MEMBERS * 1024:
            raise _rejected(source, f"it has {size} bytes, and the store holds {max_bytes}")
        try:
            with zipfile.ZipFile(stream) as archive:
                infos = _checked_members(source, archive, max_bytes)
                digests = {
                    info.filename: _extract(archive, info, into)
                    for info in infos
                    if info.filename != SEAL
                }
                seal = archive.read(SEAL) if SEAL in archive.namelist() else None
        except _ZIP_ERRORS as error:
            raise _rejected(source, f"it is not a whole zip ({error})") from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the archive points outside itself
                raise
            raise _rejected(source, "it is not a whole zip (an offset outside the file)") from error
    checked = _check_seal(source, digests, seal, signing_key, allow_unsigned)
    return sorted({name.split("/")[0] for name in digests}), checked


def _rejected(source: Path, why: str) -> ArtifactRejected:
    return ArtifactRejected(
        f"{source} was not imported: {why}. Expected an export of this extension, unchanged. Export it again and copy it again."
    )


def _checked_members(
    source: Path, archive: zipfile.ZipFile, max_bytes: int
) -> list[zipfile.ZipInfo]:
    """Every member's name and size, before one byte is written."""
    infos = archive.infolist()
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_MEMBERS or total > max_bytes:
        raise _rejected(
            source,
            f"it holds {len(infos)} files of {total} bytes; at most {MAX_MEMBERS} files of {max_bytes} bytes fit",
        )
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        key, _, file = name.partition("/")
        if name != SEAL and not (ARTIFACT_KEY.fullmatch(key) and FILE_NAME.fullmatch(file)):
            raise _rejected(source, f"it holds an unexpected member {info.orig_filename!r}")
        if name.casefold() in seen:
            raise _rejected(source, f"it holds {name!r} twice")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.file_size != info.compress_size
            or info.flag_bits & 1
        ):
            raise _rejected(source, f"its member {name!r} is compressed or encrypted")
        if name == SEAL and info.file_size > MAX_SEAL_BYTES:
            raise _rejected(source, f"its seal has {info.file_size} bytes")
        seen.add(name.casefold())
    if seen <= {SEAL}:
        raise _rejected(source, "it holds no artifact")
    return infos


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, into: Path) -> str:
    key, _, file = info.filename.partition("/")
    (into / key).mkdir(mode=0o700, exist_ok=True)
    with archive.open(info) as source, create(into / key / file) as target:
        digest, _ = copy(source, target)
        flush(target)
    return digest


def _check_seal(
    source: Path,
    digests: Mapping[str, str],
    seal: bytes | None,
    signing_key: bytes | None,
    allow_unsigned: bool,
) -> bool:
    if seal is None:
        if allow_unsigned:
            return False
        raise ArtifactRejected(
            f"{source} was not imported: it is not signed. Export it with your signing key, or allow unsigned imports."
        )
    if signing_key is None:
        return False
    try:
        content = json.loads(seal)
        signature = content["signature"] if content["format"] == 1 else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _rejected(source, "its seal cannot be read") from error
    if not isinstance(signature, str) or not check(signing_key, digests, signature):
        raise ArtifactRejected(
            f"{source} was not imported: its signature does not fit your key. It was signed with another key, or changed since. "
            "Use the key it was exported with, or export it again."
        )
    return True

"""Exports of artifacts: one zip, signed with a key that the operator holds.

Why HMAC-SHA256: the one who exports and the one who imports are the same operator, who compiles
once and seeds a fleet with the result. One secret on each machine is enough, and the standard
library has it: no dependency, no certificate, no key server.

What it does not give: whoever can check a signature can also make one, so one stolen key lets a
thief run code on every machine of the fleet, and a signature from a stranger means nothing. It does
not show who made an archive or when, an old archive stays valid, a key is withdrawn only by
replacing it everywhere, and nothing is encrypted.

The archive holds `<artifact key>/manifest.json`, `<artifact key>/<file>`, ..., and `seal.json` last
when it is signed. Members are stored, not compressed, so no archive can grow while it is read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import ArtifactRejected
from . import signing
from .files import (
    ARTIFACT_KEY,
    copy,
    create,
    create_below,
    flush,
    is_file_name,
    names_clash,
    os_errors,
)

SEAL = "seal.json"
MAX_MEMBERS = 16384
MAX_SEAL_BYTES = 4096
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


def pack(destination: Path, members: Mapping[str, Path], signing_key: bytes | None) -> None:
    """Write the files `members` (name in the archive: where it lies) into one archive.

    It is written beside `destination` and then put in place in one step, so a reader sees the old
    file or the whole new one. Raises StoreError when it cannot be written.
    """
    if signing_key is not None:
        signing.require_key(signing_key)
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
                            "signature": signing.sign(signing_key, digests),
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
    """Unpack into the private folder `into`; return the artifact keys and whether the
    signature was checked.

    A given key is always checked when there is a signature, `allow_unsigned` or not: a signature
    that does not fit means damage. To take an archive that was signed with another key, pass no key
    and `allow_unsigned`. Raises ArtifactRejected; nothing in `into` may be used then.
    """
    if signing_key is None and not allow_unsigned:
        raise ArtifactRejected(
            f"{source} was not imported: there is no signing key to check it with. "
            "Give the key, or allow unsigned imports."
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
        f"{source} was not imported: {why}. Expected an export of this extension, unchanged. "
        "Export it again and copy it again."
    )


def _checked_members(
    source: Path, archive: zipfile.ZipFile, max_bytes: int
) -> list[zipfile.ZipInfo]:
    """Check every member's name and size before one byte is written."""
    infos = archive.infolist()
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_MEMBERS or total > max_bytes:
        raise _rejected(
            source,
            f"it holds {len(infos)} files of {total} bytes; "
            f"at most {MAX_MEMBERS} files of {max_bytes} bytes fit",
        )
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        key, _, file = name.partition("/")
        if name != SEAL and not (ARTIFACT_KEY.fullmatch(key) and is_file_name(file)):
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
    if names_clash([info.filename for info in infos]):
        raise _rejected(source, "it holds a file and a folder of the same name")
    return infos


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, into: Path) -> str:
    with archive.open(info) as source, create_below(into, info.filename) as target:
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
    """Return whether the signature was checked; raise ArtifactRejected when it does not fit."""
    if seal is None:
        if allow_unsigned:
            return False
        raise ArtifactRejected(
            f"{source} was not imported: it is not signed. "
            "Export it with your signing key, or allow unsigned imports."
        )
    if signing_key is None:
        return False
    try:
        content = json.loads(seal)
        signature = content["signature"] if content["format"] == 1 else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _rejected(source, "its seal cannot be read") from error
    if not isinstance(signature, str) or not signing.check(signing_key, digests, signature):
        raise ArtifactRejected(
            f"{source} was not imported: its signature does not fit your key. It was signed with "
            "another key, or changed since. Use the key it was exported with, or export it again."
        )
    return True

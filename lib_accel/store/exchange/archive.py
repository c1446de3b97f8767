"""Exports of artifacts: one zip, for which a key vouches (vouching.py).

The archive holds `<artifact key>/manifest.json`, `<artifact key>/<file>`, ..., and `seal.json` last
when it is signed. Members are stored, not compressed, so no archive can grow while it is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import ArtifactRejected, StoreError
from .. import signing
from ..artifact import Artifact, read_artifact
from ..files import (
    ARTIFACT_KEY,
    copy,
    create,
    create_below,
    flush,
    is_file_name,
    names_clash,
    open_file,
    os_errors,
)
from ..manifest import MANIFEST, UNTUNED, damaged, encode, signed
from .public_keys import PublicKeys
from .vouching import MAX_SEAL_BYTES, SEAL, Vouching, make_seal

MAX_MEMBERS = 16384
MAX_DIRECTORY_ENTRY = 384  # a name has at most 265 bytes, and the rest of its entry 46 to 74

_END, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")  # as the zip format has them, all at the end
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


Members = dict[str, "tuple[Path | bytes, str]"]
"""Name in the archive: where the file lies, or what it holds, and its sha256."""


def members_of(artifact: Artifact, public: PublicKeys, store_key: bytes | None) -> Members:
    """Return what `pack` takes for one artifact, signed anew where there is a private key."""
    digests = {name: entry["sha256"] for name, entry in artifact.manifest["files"].items()}
    members: Members = {
        f"{artifact.key}/{name}": (artifact.path / name, digest) for name, digest in digests.items()
    }
    manifest = public.signed(artifact.manifest)
    if store_key is not None and manifest != artifact.manifest:
        manifest = signed(manifest, store_key)
    members[f"{artifact.key}/{MANIFEST}"] = encode(manifest), _digest(manifest)
    return members


def pack(destination: Path, members: Members, signing_key: bytes | None) -> None:
    """Write files into one archive.

    It is written beside `destination` and then put in place in one step, so a reader sees the old
    file or the whole new one. Raises StoreError when it cannot be written, ArtifactRejected where a
    file has another sha256: somebody else's code must not be signed.
    """
    if signing_key is not None:
        signing.require_key(signing_key)
    if not members:
        raise StoreError(
            f"Nothing to export to {destination}: no artifact was named. Name at least one."
        )
    if os.path.lexists(destination) and not stat.S_ISREG(destination.lstat().st_mode):
        raise StoreError(f"{destination} is not a real file. Expected one. Check the name.")
    draft = destination.parent / f".{destination.name}.{secrets.token_hex(6)}.part"
    with os_errors(f"write the export {destination}"):
        try:
            with create(draft, 0o644) as stream:
                write(stream, members, signing_key)
                flush(stream)
            draft.replace(destination)
        finally:
            with contextlib.suppress(FileNotFoundError):  # gone when it was put in place
                draft.unlink()


def write(stream: BinaryIO, members: Members, signing_key: bytes | None) -> None:
    """Write an archive into a stream. Raises as `pack` does."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, (content, digest) in sorted(members.items()):
            if _add(archive, name, content) != digest:
                raise damaged(Path(name), "it was changed while it was exported")
        if signing_key is not None:
            digests = {name: digest for name, (_, digest) in members.items()}
            archive.writestr(zipfile.ZipInfo(SEAL), make_seal(signing_key, digests))


def _add(archive: zipfile.ZipFile, name: str, content: Path | bytes) -> str:
    info = zipfile.ZipInfo(name)  # a fixed date: the same artifacts give the same archive
    if isinstance(content, bytes):
        archive.writestr(info, content)
        return hashlib.sha256(content).hexdigest()
    with open_file(content) as source:
        info.file_size = os.fstat(source.fileno()).st_size
        with archive.open(info, "w") as target:
            return copy(source, target)[0]


def unpack(
    source: Path, into: Path, vouching: Vouching, max_bytes: int
) -> dict[str, dict[str, Any]]:
    """Unpack into the private folder `into`; return the manifest of each artifact by its key.

    A given key is always checked when there is a signature, `allow_unsigned` or not: a signature
    that does not fit means damage. To take an archive that was signed with another key, pass no key
    and `allow_unsigned`. What is revoked is never taken. Raises ArtifactRejected; nothing in `into`
    may be used then.
    """
    source = Path(source)
    vouching.require_any(source)
    name = "".join(c if c.isprintable() else "?" for c in source.name)
    with os_errors(f"import {source}"), open_file(source) as stream:
        return unpack_stream(stream, source, f"imported from {name}", into, vouching, max_bytes)


def unpack_stream(
    stream: BinaryIO,
    source: Path | str,
    origin: str,
    into: Path,
    vouching: Vouching,
    max_bytes: int,
) -> dict[str, dict[str, Any]]:
    """Unpack an open archive, as `unpack` does. `source` names it to users, `origin` for good."""
    if (size := stream.seek(0, os.SEEK_END)) > max_bytes + MAX_MEMBERS * 1024:
        raise _rejected(source, f"it has {size} bytes, and the store holds {max_bytes}")
    _check_end(source, stream, size)
    try:
        with zipfile.ZipFile(stream) as archive:
            infos = _checked_members(source, archive, max_bytes)
            if sum(info.file_size for info in infos) > size:  # Python 3.10.6 would read them
                raise _rejected(source, "its members lie in one another")
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
    checked = vouching.check_seal(source, digests, seal)
    manifests = {}
    for key in sorted({member.split("/")[0] for member in digests}):
        manifest = read_artifact(into / key, key).manifest
        if _digest(manifest) != digests.get(f"{key}/{MANIFEST}"):  # another than the signed one
            raise damaged(into / key, "it was changed while it was imported")
        how = vouching.require(source, manifest, checked)
        untuned = UNTUNED if manifest["origin"].endswith(UNTUNED) else ""
        manifests[key] = {**manifest, "origin": f"{origin}, {how}{untuned}"}
    return manifests


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 of the manifest as it is written."""
    return hashlib.sha256(encode(manifest)).hexdigest()


def _rejected(source: Path | str, why: str) -> ArtifactRejected:
    return ArtifactRejected(
        f"{source} was not imported: {why}. Expected an export of this extension, unchanged. "
        "Export it again and copy it again."
    )


def _check_end(source: Path | str, stream: BinaryIO, size: int) -> None:
    """Check how many members the archive has, from the records at its end.

    `zipfile` reads all of them at once, so nobody else counts them before they take the memory.
    The records are where an export has them, and where every version of `zipfile` finds them.
    """
    stream.seek(max(0, size - _END_64.size - _LOCATOR_64.size - _END.size))
    tail = stream.read()
    end = tail[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\5\6") or end[-2:] != b"\0\0":
        raise _rejected(source, "it is not a whole zip (no record at its end)")
    count, directory, offset = _END.unpack(end)[4:7]
    last = size - _END.size
    if tail[-_END.size - _LOCATOR_64.size :].startswith(b"PK\6\7"):  # 2 GiB or more
        last -= _LOCATOR_64.size + _END_64.size
        place = _LOCATOR_64.unpack_from(tail, max(0, len(tail) - _END.size - _LOCATOR_64.size))[2]
        if not tail.startswith(b"PK\6\6") or place != last:
            raise _rejected(source, "it is not a whole zip (no record at its end)")
        count, directory, offset = _END_64.unpack_from(tail)[7:10]
    if count > MAX_MEMBERS or directory > MAX_MEMBERS * MAX_DIRECTORY_ENTRY:
        what = f"{count} files in a directory of {directory} bytes"
        raise _rejected(source, f"it holds {what}; at most {MAX_MEMBERS} files fit")
    if offset + directory != last:
        raise _rejected(source, "it is not a whole zip (its directory is elsewhere)")


def _checked_members(
    source: Path | str, archive: zipfile.ZipFile, max_bytes: int
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

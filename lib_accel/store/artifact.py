"""One artifact on disk: what its manifest says, how it is written and read, and who may have written it.

An artifact is a folder `<key>/` with `manifest.json` and the native-code files it lists. The manifest carries the checksum of every file
and one over itself, so any changed byte is found.

Artifacts are native code. On POSIX the store's root, the artifact and its files must belong to the user or root and be writable by nobody
else, and no parent folder may be writable by everyone unless it is sticky. Group-writable parents and parents of other users are accepted:
a umask of 002 and container volumes make them common. Their owners could move the root away, not put a file of theirs into it.
On Windows the standard library cannot read an access list, and nothing is checked: the default store lies in the user's profile, which
Windows closes to other users, and whoever names another folder answers for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ArtifactRejected, StoreError
from . import seal

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
_FIELDS: dict[str, Any] = {
    "key": str,
    "recipe": dict,
    "files": dict,
    "verdict": (dict, type(None)),
    "created": str,
    "origin": str,
}


@dataclass(frozen=True)
class Artifact:
    key: str
    path: Path
    manifest: dict[str, Any] = field(hash=False)

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted(self.manifest["files"]))

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest["recipe"]

    @property
    def verdict(self) -> dict[str, Any] | None:
        return self.manifest["verdict"]

    def file(self, name: str) -> Path:
        if name not in self.manifest["files"]:
            raise StoreError(
                f"Artifact {self.key[:12]} has no file {name!r}. It holds: {', '.join(self.files)}. Compile it again."
            )
        return self.path / name


@dataclass(frozen=True)
class Entry:
    """One directory of the store, whole or damaged. `bytes` is what it takes on disk, `last_used` seconds since 1970."""

    key: str
    path: Path
    bytes: int
    last_used: float
    problem: str | None = None
    artifact: Artifact | None = None


def unsafe(path: Path, why: str, remedy: str = "go-w") -> NoReturn:
    raise ArtifactRejected(
        f"{path} {why}, so others could plant code there. Artifacts are native code: expected a real file or folder that is yours or "
        f"root's and that nobody else can write. Run: chmod {remedy} '{path}' (and chown it if needed), or choose another folder."
    )


def require_private(path: Path, folder: bool) -> None:
    """Raise ArtifactRejected when someone else could have written `path`. Links are not followed."""
    info = path.lstat()
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(info.st_mode):
        unsafe(path, f"is not a real {'folder' if folder else 'file'}")
    if sys.platform == "win32":
        return
    if info.st_uid not in (0, os.geteuid()):
        unsafe(path, f"belongs to another user (id {info.st_uid}, you are {os.geteuid()})")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        unsafe(path, f"is writable by others (mode {stat.S_IMODE(info.st_mode):04o})")


def require_private_root(root: Path) -> None:
    """Raise ArtifactRejected when someone else could put an artifact into `root`. See the module for what is accepted."""
    require_private(root, folder=True)
    if sys.platform == "win32":
        return
    for parent in root.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            unsafe(
                parent,
                f"is writable by everyone (mode {stat.S_IMODE(mode):04o}) and holds the store {root}",
                "+t",
            )


def _encode(manifest: Mapping[str, Any]) -> bytes:
    """The one way a manifest is written; its `sha256` covers every other field."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1).encode() + b"\n"


def plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON makes of it, so that what is returned now and what is read later are equal."""
    try:
        return json.loads(json.dumps(manifest))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"The recipe or the verdict cannot be written as JSON ({error}). Expected strings, numbers, lists and dicts."
        ) from error


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Into a folder that nobody reads yet."""
    (folder / MANIFEST).unlink(missing_ok=True)
    with seal.create(folder / MANIFEST) as stream:
        stream.write(_encode(manifest))
        seal.flush(stream)


def read_manifest(path: Path, key: str) -> dict[str, Any]:
    with path.open("rb") as stream:
        raw = stream.read(MAX_MANIFEST_BYTES + 1)
    manifest: Any = None
    whole = False
    with contextlib.suppress(ValueError, RecursionError):  # told below
        manifest = json.loads(raw)
        whole = isinstance(manifest, dict) and _encode(manifest) == raw
    if not whole:
        raise _damaged(path, "its own checksum does not match")
    if manifest.get("format") != FORMAT:
        raise _damaged(
            path, f"it has format {manifest.get('format')!r}, this version reads {FORMAT}"
        )
    if wrong := [
        name for name, kind in _FIELDS.items() if not isinstance(manifest.get(name), kind)
    ]:
        raise _damaged(path, f"these fields are missing or wrong: {', '.join(wrong)}")
    if manifest["key"] != key:
        raise _damaged(
            path, f"it belongs to another artifact ({manifest['key'][:12]}, expected {key[:12]})"
        )
    for name, entry in manifest["files"].items():
        good = (
            isinstance(entry, dict)
            and isinstance(entry.get("bytes"), int)
            and re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256")))
        )
        if not good or not seal.FILE_NAME.fullmatch(name) or name.casefold() == MANIFEST:
            raise _damaged(path, f"its entry for {name!r} is wrong")
    return manifest


def _damaged(path: Path, why: str) -> ArtifactRejected:
    return ArtifactRejected(
        f"{path} is damaged: {why}. Expected it as it was written. Discard this artifact; it will be compiled again."
    )


def read_artifact(path: Path, key: str, content: bool = True) -> Artifact:
    """The artifact in `path`, or ArtifactRejected. Without `content` the files' checksums are not compared, only their sizes."""
    try:
        require_private(path, folder=True)
        require_private(path / MANIFEST, folder=False)
        artifact = Artifact(key, path, read_manifest(path / MANIFEST, key))
        for name, entry in artifact.manifest["files"].items():
            file = path / name
            require_private(file, folder=False)
            if (size := file.stat().st_size) != entry["bytes"]:
                raise _damaged(file, f"it has {size} bytes, expected {entry['bytes']}")
            if content and _sha256(file) != entry["sha256"]:
                raise _damaged(file, "its checksum does not match the manifest")
    except FileNotFoundError as error:
        raise _damaged(path, f"{Path(error.filename).name} is missing") from error
    return artifact


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync_folder(path: Path) -> None:
    if sys.platform != "win32":  # Windows cannot open a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename, waiting out a virus scanner that holds a fresh file open (Windows refuses the rename while it does)."""
    for wait in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4):
        try:
            source.rename(target)
            return
        except PermissionError:
            if sys.platform != "win32" or os.path.lexists(target):
                raise
            time.sleep(wait)
    source.rename(target)


def bytes_in(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())


def identity_of(path: Path) -> tuple[int, int, int] | None:
    """Which directory `path` is now; None when there is none."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino, info.st_ctime_ns


def delete(path: Path) -> None:
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except FileNotFoundError:  # another process is deleting it as well
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


def entry_of(path: Path) -> Entry | None:
    """What lies at `path`, unchecked; None when it is gone."""
    try:
        used = path / MANIFEST if os.path.lexists(path / MANIFEST) else path
        return Entry(path.name, path, bytes_in(path), used.lstat().st_mtime_ns / 1e9)
    except FileNotFoundError:
        return None

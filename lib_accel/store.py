"""The artifact store: compiled units on disk, one directory for each recipe.

An artifact is `<root>/<key>/`: `manifest.json` and the native-code files it lists. It appears whole, by one rename, or not at all, and
is checked against its checksums each time it is taken. Everything else in the root is ours and hidden: `.locks/` (empty files, kept:
removing a lock file another process waits on would break the lock), `.tmp-*` (being written; its writer holds the lock of that name)
and `.trash-*` (being removed).

Artifacts are native code. On POSIX the root, the artifact and its files must belong to the user or root and be writable by nobody else,
and no parent folder may be writable by everyone unless it is sticky. Group-writable parents and parents of other users are accepted: a
umask of 002 and container volumes make them common. Their owners could move the root away, not put a file of theirs into it.
On Windows the standard library cannot read an access list. There the store must lie in the user's profile, which Windows closes to other
users, or in a folder the user chose (`chosen=True`). Whether others may write to a chosen folder is not checked, nor are the files.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any, NoReturn

from filelock import FileLock, SoftFileLock, Timeout

from . import seal
from .errors import AccelError, ArtifactRejected, StoreError
from .seal import os_errors

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
_LOCKS, _TEMP, _TRASH = ".locks", ".tmp-", ".trash-"
_FIELDS: dict[str, Any] = {"key": str, "recipe": dict, "files": dict, "verdict": (dict, type(None)), "created": str, "origin": str}
_log = logging.getLogger(__name__)


class LockBusy(StoreError):
    """Another process (or thread) holds the lock."""


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
            raise StoreError(f"Artifact {self.key[:12]} has no file {name!r}. It holds: {', '.join(self.files)}. Compile it again.")
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


def inside(folder: PurePath, profile: PurePath) -> bool:
    return folder.is_relative_to(profile)


def _unsafe(path: Path, why: str) -> NoReturn:
    raise ArtifactRejected(
        f"{path} {why}, so others could plant code there. Artifacts are native code: expected a real file or folder that is yours or "
        f"root's and that nobody else can write. Run: chmod go-w '{path}' (and chown it if needed), or choose another folder."
    )


def _require_private(path: Path, folder: bool) -> None:
    """Raise ArtifactRejected when someone else could have written `path`. Links are not followed."""
    info = path.lstat()
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(info.st_mode):
        _unsafe(path, f"is not a real {'folder' if folder else 'file'}")
    if sys.platform == "win32":
        return
    if info.st_uid not in (0, os.geteuid()):
        _unsafe(path, f"belongs to another user (id {info.st_uid}, you are {os.geteuid()})")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _unsafe(path, f"is writable by others (mode {stat.S_IMODE(info.st_mode):04o})")


def _encode(manifest: Mapping[str, Any]) -> bytes:
    """The one way a manifest is written; its `sha256` covers every other field."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1).encode() + b"\n"


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON makes of it, so that what is returned now and what is read later are equal."""
    try:
        return json.loads(json.dumps(manifest))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"The recipe or the verdict cannot be written as JSON ({error}). Expected strings, numbers, lists and dicts."
        ) from error


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    draft = folder / f"{MANIFEST}.new"
    with seal.create(draft) as stream:
        stream.write(_encode(manifest))
        seal.flush(stream)
    draft.replace(folder / MANIFEST)


def _read_manifest(path: Path, key: str) -> dict[str, Any]:
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
        raise _damaged(path, f"it has format {manifest.get('format')!r}, this version reads {FORMAT}")
    if wrong := [name for name, kind in _FIELDS.items() if not isinstance(manifest.get(name), kind)]:
        raise _damaged(path, f"these fields are missing or wrong: {', '.join(wrong)}")
    if manifest["key"] != key:
        raise _damaged(path, f"it belongs to another artifact ({manifest['key'][:12]}, expected {key[:12]})")
    for name, entry in manifest["files"].items():
        good = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256")))
        if not good or not seal.FILE_NAME.fullmatch(name) or name.casefold() == MANIFEST:
            raise _damaged(path, f"its entry for {name!r} is wrong")
    return manifest


def _damaged(path: Path, why: str) -> ArtifactRejected:
    return ArtifactRejected(f"{path} is damaged: {why}. Expected it as it was written. Discard this artifact; it will be compiled again.")


def _read(path: Path, key: str, content: bool = True) -> Artifact:
    """The artifact in `path`, or ArtifactRejected. Without `content` the files' checksums are not compared, only their sizes."""
    try:
        _require_private(path, folder=True)
        _require_private(path / MANIFEST, folder=False)
        artifact = Artifact(key, path, _read_manifest(path / MANIFEST, key))
        for name, entry in artifact.manifest["files"].items():
            file = path / name
            _require_private(file, folder=False)
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


def _fsync_folder(path: Path) -> None:
    if sys.platform != "win32":  # Windows cannot open a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    """Rename, waiting out a virus scanner that holds a fresh file open (Windows refuses the rename while it does)."""
    for wait in (0.05, 0.1, 0.2, 0.4, 0.8):
        try:
            source.rename(target)
            return
        except PermissionError:
            if sys.platform != "win32" or os.path.lexists(target):
                raise
            time.sleep(wait)
    source.rename(target)


def _bytes_in(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Which directory `path` is now; None when there is none."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino, info.st_ctime_ns


def _delete(path: Path) -> None:
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except FileNotFoundError:  # another process is deleting it as well
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


class ArtifactStore:
    """See the module. Nothing is created before the first write. Safe to use from several processes at once."""

    def __init__(self, root: Path, max_bytes: int = 2 * 1024**3, readonly: bool = False, *, chosen: bool = False) -> None:
        """`chosen`: the user named this folder; on Windows that allows one outside the user's profile."""
        if max_bytes <= 0:
            raise StoreError(f"The store's size limit is {max_bytes} bytes. Expected more than 0. Raise it in the settings.")
        self.root = Path(os.path.realpath(Path(root).expanduser()))
        self.max_bytes, self.readonly, self.chosen = max_bytes, readonly, chosen

    def get(self, key: str) -> Artifact | None:
        """The artifact, checked, and marked as used; None when there is none."""
        artifact = self._load(key)
        if artifact is not None and not self.readonly:
            now = time.time_ns()
            try:
                os.utime(artifact.path / MANIFEST, ns=(now, now))
            except OSError as error:  # a read-only file system: the artifact is good, only its turn in the eviction order is lost
                _log.debug("Artifact %s was not marked as used: %s", key[:12], error)
        return artifact

    def entry(self, key: str) -> Entry | None:
        """What `list` says of one artifact."""
        return next((entry for entry in self.list() if entry.key == key), None)

    def contains(self, key: str) -> bool:
        """Whether there is one, good or damaged; reads nothing."""
        return (self._path(key) / MANIFEST).exists()

    def put(
        self,
        key: str,
        recipe: Mapping[str, Any],
        files: Mapping[str, Path],
        verdict: Mapping[str, Any] | None = None,
        origin: str = "built here",
    ) -> Artifact:
        """Copy `files` (name in the artifact: where it is now) into the store. One that is there already is kept and returned."""
        path = self._path(key)
        for name in files:
            if not seal.FILE_NAME.fullmatch(name) or name.casefold() == MANIFEST:
                raise StoreError(f"{name!r} cannot be a file of an artifact. Expected letters, digits, '.', '_' and '-', as in 'mid.pt2'.")
        if not files or len({name.casefold() for name in files}) != len(files):
            raise StoreError(
                f"Artifact {key[:12]} has no files, or names that differ only in case: {sorted(files)}. Expected one file for each unit."
            )
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        manifest = _plain(
            {"format": FORMAT, "key": key, "recipe": recipe, "verdict": verdict, "origin": origin, "created": created, "files": {}}
        )
        self._prepare(f"store artifact {key[:12]}")
        with os_errors(f"store artifact {key[:12]} in {self.root}"), self._workspace() as work:
            draft = work / path.name
            draft.mkdir(mode=0o700)
            for name, source in files.items():
                with Path(source).open("rb") as stream, seal.create(draft / name) as target:
                    digest, size = seal.copy(stream, target)
                    seal.flush(target)
                manifest["files"][name] = {"sha256": digest, "bytes": size}
            _write_manifest(draft, manifest)
            artifact = self._publish(draft, key)
        self._evict({key})
        return artifact

    def list(self) -> builtins.list[Entry]:
        """Every artifact, least recently used first. Cheap: sizes are compared, checksums are not (`verify` does that)."""
        entries = []
        for entry in self._scan():
            artifact, problem = self._inspect(entry, content=False)
            entries.append(replace(entry, artifact=artifact, problem=problem))
        return entries

    def verify(self) -> builtins.list[tuple[str, str | None]]:
        """Every key, with what is wrong with it or None. Reads every byte."""
        return [(entry.key, self._inspect(entry, content=True)[1]) for entry in self._scan()]

    def discard(self, key: str, reason: str) -> None:
        path = self._path(key)
        self._require_writable(f"discard artifact {key[:12]}")
        with os_errors(f"discard artifact {key[:12]}"):
            freed = self._drop(path)
        if freed:
            _log.warning("Discarded artifact %s: %s", key[:12], reason)

    def clear(self) -> int:
        """Remove every artifact, locked or not, and what dead processes left half done. Returns the bytes freed."""
        self._require_writable("clear the store")
        failed: dict[str, StoreError] = {}
        freed = 0
        for entry in self._scan():
            try:
                with os_errors(f"remove artifact {entry.key[:12]}"):
                    freed += self._drop(entry.path)
            except StoreError as error:
                failed[entry.key] = error
        freed += self._sweep()
        if failed:
            raise StoreError(f"{len(failed)} artifacts could not be removed, {freed} bytes were freed. {next(iter(failed.values()))}")
        return freed

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float | None) -> Iterator[None]:
        """Hold the only right to compile `key`; LockBusy after `timeout` seconds (None: wait, 0: do not wait).

        The operating system releases it when the holder dies. Enter and leave it in one thread; it cannot be taken twice.
        """
        self._path(key)
        self._prepare(f"lock artifact {key[:12]}")
        with self._hold(key, timeout):
            yield

    def export(self, keys: Iterable[str], destination: Path, signing_key: bytes | None) -> None:
        """Write `keys` to one zip, sealed when there is a key. Each is checked first."""
        members: dict[str, Path] = {}
        for key in keys:
            artifact = self._load(key)
            if artifact is None:
                raise StoreError(
                    f"Artifact {key[:12]} is not in {self.root}. Expected one of its {len(self._scan())} artifacts. Compile it first."
                )
            members.update({f"{key}/{name}": artifact.path / name for name in (MANIFEST, *artifact.files)})
        if not members:
            raise StoreError(f"Nothing to export to {destination}: no artifact was named. Name at least one.")
        seal.pack(Path(destination), members, signing_key)

    def import_(self, source: Path, signing_key: bytes | None, allow_unsigned: bool = False) -> builtins.list[Artifact]:
        """Take the artifacts of an export. All are checked before any becomes visible; one that is here already is kept."""
        source = Path(source)
        self._prepare(f"import {source}")
        with os_errors(f"import {source}"), self._workspace() as work:
            keys, checked = seal.unpack(source, work, signing_key, allow_unsigned, self.max_bytes)
            for key in keys:
                artifact = _read(work / key, key)
                if extra := {item.name for item in (work / key).iterdir()} - {MANIFEST, *artifact.files}:
                    raise ArtifactRejected(f"{source} was not imported: {sorted(extra)} is not in its manifest. Export it again.")
                origin = f"imported from {source.name}, {'signature checked' if checked else 'no signature checked'}"
                _write_manifest(work / key, {**artifact.manifest, "origin": origin})
            artifacts = [self._publish(work / key, key) for key in keys]
        self._evict(set(keys))
        return artifacts

    def _path(self, key: str) -> Path:
        if not seal.ARTIFACT_KEY.fullmatch(key):
            raise StoreError(f"{key[:80]!r} is not an artifact key. Expected 64 lowercase hex digits, the sha256 of a recipe.")
        return self.root / key

    def _require_writable(self, doing: str) -> None:
        if self.readonly:
            raise StoreError(
                f"Could not {doing}: the store {self.root} is used read-only. Expected a writable store. Change the setting or the folder."
            )

    def _check_root(self) -> None:
        _require_private(self.root, folder=True)
        if sys.platform == "win32":
            profile = Path(os.path.realpath(Path.home()))
            if not self.chosen and not inside(self.root, profile):
                raise ArtifactRejected(
                    f"{self.root} is outside your profile {profile}, and Windows lets others write to most such folders. "
                    "Artifacts are native code: keep the store inside the profile, or name the folder in the settings if it is yours alone."
                )
            return
        for parent in self.root.parents:
            mode = parent.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                _unsafe(parent, f"is writable by everyone (mode {stat.S_IMODE(mode):04o}) and holds the store {self.root}")

    def _prepare(self, doing: str) -> None:
        """Create the root if need be, and make sure it may be written."""
        self._require_writable(doing)
        with os_errors(doing):
            for parent in reversed(self.root.parents):
                if not parent.exists():
                    parent.mkdir(mode=0o755, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            self._check_root()

    def _load(self, key: str) -> Artifact | None:
        path = self._path(key)
        with os_errors(f"read artifact {key[:12]}"):
            identity = _identity(path)
            while identity is not None:
                self._check_root()
                try:
                    return _read(path, key)
                except ArtifactRejected:
                    before, identity = identity, _identity(path)
                    if identity == before:
                        raise  # otherwise another process discarded or replaced it while it was read: look again
            return None

    def _inspect(self, entry: Entry, content: bool) -> tuple[Artifact | None, str | None]:
        try:
            with os_errors(f"read artifact {entry.key[:12]}"):
                self._check_root()
                return _read(entry.path, entry.key, content), None
        except AccelError as error:
            return None, str(error)

    def _children(self) -> builtins.list[Path]:
        try:
            return [*self.root.iterdir()]
        except FileNotFoundError:  # nothing was ever put
            return []

    def _scan(self) -> builtins.list[Entry]:
        """What lies in the store, unchecked, least recently used first."""
        entries = []
        with os_errors(f"list the store {self.root}"):
            for path in self._children():
                if seal.ARTIFACT_KEY.fullmatch(path.name):
                    with contextlib.suppress(FileNotFoundError):  # discarded meanwhile
                        used = path / MANIFEST if os.path.lexists(path / MANIFEST) else path
                        entries.append(Entry(path.name, path, _bytes_in(path), used.lstat().st_mtime_ns / 1e9))
        return sorted(entries, key=lambda entry: (entry.last_used, entry.key))

    @contextlib.contextmanager
    def _hold(self, name: str, timeout: float | None) -> Iterator[None]:
        lock = FileLock(str(self.root / _LOCKS / f"{name}.lock"))
        unsupported = f"{self.root} is on a file system without file locks. Expected a local disk. Choose another folder for the store."
        with os_errors(f"lock {name[:12]}"):
            (self.root / _LOCKS).mkdir(mode=0o700, exist_ok=True)
            try:
                lock.acquire(timeout=-1 if timeout is None else timeout)
            except Timeout as error:
                raise LockBusy(
                    f"{name[:12]} is locked by another process, after waiting {timeout} s. Wait until it has finished, then retry."
                ) from error
            except NotImplementedError as error:
                raise StoreError(unsupported) from error
        try:
            if isinstance(lock, SoftFileLock):  # filelock's fallback: it would outlive a killed holder
                raise StoreError(unsupported)
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[Path]:
        """A private folder in the root, removed at the end. Its lock tells other processes that its owner lives."""
        name = f"{_TEMP}{secrets.token_hex(8)}"
        work = self.root / name
        try:
            with self._hold(name, 0):
                try:
                    work.mkdir(mode=0o700)
                    yield work
                finally:
                    shutil.rmtree(work, ignore_errors=True)  # what stays is swept later
        finally:
            with contextlib.suppress(OSError):  # an empty file nobody will ask for again
                (self.root / _LOCKS / f"{name}.lock").unlink()

    def _publish(self, draft: Path, key: str) -> Artifact:
        """Make `draft` visible under `key`. A good artifact that is there already wins, a damaged one is replaced."""
        final = self._path(key)
        _fsync_folder(draft)
        for _ in range(10):
            try:
                _rename(draft, final)
            except OSError:
                if not os.path.lexists(final):
                    raise
            else:
                _fsync_folder(self.root)
                return Artifact(key, final, _read_manifest(final / MANIFEST, key))
            try:
                if (theirs := self.get(key)) is not None:
                    return theirs
            except ArtifactRejected as error:
                self.discard(key, f"replaced by a new one: {error}")
        raise StoreError(
            f"Artifact {key[:12]} was put and removed by others again and again. Expected the store {self.root} to be quiet. Try again."
        )

    def _drop(self, path: Path) -> int:
        """Hide it by a rename, which needs no space, then delete it. Returns its bytes, 0 when it was gone."""
        trash = self.root / f"{_TRASH}{secrets.token_hex(8)}"
        try:
            size = _bytes_in(path)
            _rename(path, trash)
        except FileNotFoundError:
            return 0
        _delete(trash)
        return size

    def _sweep(self) -> int:
        """Delete what killed processes left. A folder whose lock is held belongs to a live one."""
        freed = 0
        with os_errors(f"sweep the store {self.root}"):
            for path in self._children():
                name = path.name
                with contextlib.suppress(LockBusy, FileNotFoundError):
                    if name.startswith(_TRASH):
                        freed += _bytes_in(path)
                        _delete(path)
                    elif name.startswith(_TEMP):
                        with self._hold(name, 0):
                            freed += _bytes_in(path)
                            _delete(path)
                        (self.root / _LOCKS / f"{name}.lock").unlink()
        return freed

    def _evict(self, keep: set[str]) -> None:
        """Remove the least recently used artifacts until the rest fits. Never `keep`, never one that is locked."""
        try:
            self._sweep()
            entries = self._scan()
            total = sum(entry.bytes for entry in entries)
            for entry in entries:
                if total <= self.max_bytes:
                    break
                if entry.key in keep:
                    continue
                with contextlib.suppress(LockBusy), os_errors(f"evict artifact {entry.key[:12]}"), self._hold(entry.key, 0):
                    self._drop(entry.path)
                    total -= entry.bytes
        except StoreError as error:  # what was put is in the store all the same
            _log.warning("The store %s is above its limit of %d bytes: %s", self.root, self.max_bytes, error)

"""The artifact store: compiled units on disk, one directory for each recipe.

An artifact is `<root>/<key>/`: `manifest.json` and the native-code files it lists. It appears whole, by one rename, or not at all, and
is checked against its checksums each time it is taken. Everything else in the root is ours and hidden: `.locks/` (empty files, kept:
removing a lock file another process waits on would break the lock), `.tmp-*` (being written; its writer holds the lock of that name)
and `.trash-*` (being removed).

What makes an artifact safe to load, and who may have written it: artifact.py.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import AccelError, ArtifactRejected, StoreError
from . import seal
from .artifact import (
    FORMAT,
    MANIFEST,
    Artifact,
    Entry,
    bytes_in,
    delete,
    entry_of,
    fsync_folder,
    identity_of,
    plain,
    read_artifact,
    read_manifest,
    rename,
    require_private_root,
    write_manifest,
)
from .locks import LockBusy, hold, sweep, workspace
from .seal import os_errors

_TRASH = ".trash-"
_log = logging.getLogger(__name__)


class ArtifactStore:
    """See the module. Nothing is created before the first write. Safe to use from several processes at once."""

    def __init__(self, root: Path, max_bytes: int = 2 * 1024**3, readonly: bool = False) -> None:
        if max_bytes <= 0:
            raise StoreError(
                f"The store's size limit is {max_bytes} bytes. Expected more than 0. Raise it in the settings."
            )
        self.root = Path(os.path.realpath(Path(root).expanduser()))
        self.max_bytes, self.readonly = max_bytes, readonly

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
        with os_errors(f"look for artifact {key[:12]} in {self.root}"):
            entry = entry_of(self._path(key))
        return self._described(entry) if entry else None

    def contains(self, key: str) -> bool:
        """Whether there is one, good or damaged; reads nothing."""
        with os_errors(f"look for artifact {key[:12]} in {self.root}"):
            return identity_of(self._path(key)) is not None

    def put(
        self,
        key: str,
        recipe: Mapping[str, Any],
        files: Mapping[str, Path],
        verdict: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Copy `files` (name in the artifact: where it is now) into the store. One that is there already is kept and returned."""
        path = self._path(key)
        for name in files:
            if not seal.FILE_NAME.fullmatch(name) or name.casefold() == MANIFEST:
                raise StoreError(
                    f"{name!r} cannot be a file of an artifact. Expected letters, digits, '.', '_' and '-', as in 'mid.pt2'."
                )
        if not files or len({name.casefold() for name in files}) != len(files):
            raise StoreError(
                f"Artifact {key[:12]} has no files, or names that differ only in case: {sorted(files)}. Expected one file for each unit."
            )
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        manifest = plain(
            {
                "format": FORMAT,
                "key": key,
                "recipe": recipe,
                "verdict": verdict,
                "origin": "built here",
                "created": created,
                "files": {},
            }
        )
        self._prepare(f"store artifact {key[:12]}")
        with os_errors(f"store artifact {key[:12]} in {self.root}"), workspace(self.root) as work:
            draft = work / path.name
            draft.mkdir(mode=0o700)
            for name, source in files.items():
                with Path(source).open("rb") as stream, seal.create(draft / name) as target:
                    digest, size = seal.copy(stream, target)
                    seal.flush(target)
                manifest["files"][name] = {"sha256": digest, "bytes": size}
            write_manifest(draft, manifest)
            artifact = self._publish(draft, key)
        self._evict({key})
        return artifact

    def list(self) -> builtins.list[Entry]:
        """Every artifact, least recently used first. Cheap: sizes are compared, checksums are not (`verify` does that)."""
        return [self._described(entry) for entry in self._scan()]

    def check(self) -> None:
        """Raise StoreError or ArtifactRejected when no artifact can be kept here. Creates nothing."""
        with os_errors(f"use the store {self.root}"):
            if os.path.lexists(self.root):
                require_private_root(self.root)
            there = next(path for path in (self.root, *self.root.parents) if path.exists())
            if not self.readonly and not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied", str(there))

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
            raise StoreError(
                f"{len(failed)} artifacts could not be removed, {freed} bytes were freed. {next(iter(failed.values()))}"
            )
        return freed

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float | None) -> Iterator[None]:
        """Hold the only right to compile `key`; LockBusy after `timeout` seconds (None: wait, 0: do not wait).

        The operating system releases it when the holder dies. Enter and leave it in one thread; it cannot be taken twice.
        """
        self._path(key)
        self._prepare(f"lock artifact {key[:12]}")
        with hold(self.root, key, timeout):
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
            members.update(
                {f"{key}/{name}": artifact.path / name for name in (MANIFEST, *artifact.files)}
            )
        if not members:
            raise StoreError(
                f"Nothing to export to {destination}: no artifact was named. Name at least one."
            )
        seal.pack(Path(destination), members, signing_key)

    def import_(
        self, source: Path, signing_key: bytes | None, allow_unsigned: bool = False
    ) -> builtins.list[Artifact]:
        """Take the artifacts of an export. All are checked before any becomes visible; one that is here already is kept."""
        source = Path(source)
        self._prepare(f"import {source}")
        with os_errors(f"import {source}"), workspace(self.root) as work:
            keys, checked = seal.unpack(source, work, signing_key, allow_unsigned, self.max_bytes)
            for key in keys:
                artifact = read_artifact(work / key, key)
                if extra := {item.name for item in (work / key).iterdir()} - {
                    MANIFEST,
                    *artifact.files,
                }:
                    raise ArtifactRejected(
                        f"{source} was not imported: {sorted(extra)} is not in its manifest. Export it again."
                    )
                origin = f"imported from {source.name}, {'signature checked' if checked else 'no signature checked'}"
                write_manifest(work / key, {**artifact.manifest, "origin": origin})
            artifacts = [self._publish(work / key, key) for key in keys]
        self._evict(set(keys))
        return artifacts

    def _path(self, key: str) -> Path:
        if not seal.ARTIFACT_KEY.fullmatch(key):
            raise StoreError(
                f"{key[:80]!r} is not an artifact key. Expected 64 lowercase hex digits, the sha256 of a recipe."
            )
        return self.root / key

    def _require_writable(self, doing: str) -> None:
        if self.readonly:
            raise StoreError(
                f"Could not {doing}: the store {self.root} is used read-only. Expected a writable store. Change the setting or the folder."
            )

    def _prepare(self, doing: str) -> None:
        """Create the root if need be, and make sure it may be written."""
        self._require_writable(doing)
        with os_errors(doing):
            for parent in reversed(self.root.parents):
                if not parent.exists():
                    parent.mkdir(mode=0o755, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            require_private_root(self.root)

    def _load(self, key: str) -> Artifact | None:
        path = self._path(key)
        with os_errors(f"read artifact {key[:12]}"):
            identity = identity_of(path)
            while identity is not None:
                require_private_root(self.root)
                try:
                    return read_artifact(path, key)
                except ArtifactRejected:
                    before, identity = identity, identity_of(path)
                    if identity == before:
                        raise  # otherwise another process discarded or replaced it while it was read: look again
            return None

    def _described(self, entry: Entry) -> Entry:
        artifact, problem = self._inspect(entry, content=False)
        return replace(entry, artifact=artifact, problem=problem)

    def _inspect(self, entry: Entry, content: bool) -> tuple[Artifact | None, str | None]:
        try:
            with os_errors(f"read artifact {entry.key[:12]}"):
                require_private_root(self.root)
                return read_artifact(entry.path, entry.key, content), None
        except AccelError as error:
            return None, str(error)

    def _children(self) -> builtins.list[Path]:
        try:
            return [*self.root.iterdir()]
        except FileNotFoundError:  # nothing was ever put
            return []

    def _scan(self) -> builtins.list[Entry]:
        """What lies in the store, unchecked, least recently used first."""
        with os_errors(f"list the store {self.root}"):
            found = [
                entry_of(path)
                for path in self._children()
                if seal.ARTIFACT_KEY.fullmatch(path.name)
            ]
        entries = [entry for entry in found if entry]
        return sorted(entries, key=lambda entry: (entry.last_used, entry.key))

    def _publish(self, draft: Path, key: str) -> Artifact:
        """Make `draft` visible under `key`. A good artifact that is there already wins, a damaged one is replaced."""
        final = self._path(key)
        fsync_folder(draft)
        for _ in range(10):
            try:
                rename(draft, final)
            except OSError:
                if not os.path.lexists(final):
                    raise
            else:
                fsync_folder(self.root)
                return Artifact(key, final, read_manifest(final / MANIFEST, key))
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
            size = bytes_in(path)
            rename(path, trash)
        except FileNotFoundError:
            return 0
        delete(trash)
        return size

    def _sweep(self) -> int:
        """Delete what killed processes left."""
        freed = sweep(self.root)
        with os_errors(f"sweep the store {self.root}"):
            for path in self._children():
                if path.name.startswith(_TRASH):
                    with contextlib.suppress(FileNotFoundError):
                        freed += bytes_in(path)
                        delete(path)
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
                with (
                    contextlib.suppress(LockBusy),
                    os_errors(f"evict artifact {entry.key[:12]}"),
                    hold(self.root, entry.key, 0),
                ):
                    self._drop(entry.path)
                    total -= entry.bytes
        except StoreError as error:  # what was put is in the store all the same
            _log.warning(
                "The store %s is above its limit of %d bytes: %s", self.root, self.max_bytes, error
            )

"""One artifact on disk: the compiled code of one unit.

It is a folder `<key>/` with a manifest and the files that the manifest lists, in sub-folders as
torch loads them. It holds nothing else: torch takes whatever library it finds there.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArtifactRejected, StoreError
from .exchange.public_keys import PublicKeys
from .files import (
    ARTIFACT_KEY,
    bytes_in,
    copy,
    create_below,
    flush,
    flush_folder,
    flush_folders,
    folders_of,
    identity_of,
    open_file,
    rename,
    sha256,
    walk,
)
from .manifest import MANIFEST, checksum, damaged, read_manifest, require_own, write_manifest
from .privacy import require_private, require_private_root
from .private_folder import private_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """The compiled code of one unit: a folder of the store that was read and found good."""

    key: str
    path: Path
    manifest: dict[str, Any] = field(hash=False)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files: relative paths with '/'."""
        return tuple(sorted(self.manifest["files"]))

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    @property
    def recipe(self) -> dict[str, Any]:
        """All that the code depends on: unit, dtype, machine, source. Its sha256 is the key."""
        return self.manifest["recipe"]

    @property
    def verdict(self) -> dict[str, Any] | None:
        """What the accuracy check measured; None when the code was never checked."""
        return self.manifest["verdict"]

    @property
    def checksum(self) -> str:
        """Hex sha256 over the names and contents of all files."""
        return checksum(self.manifest)

    def file(self, name: str) -> Path:
        """Return where the file `name` lies; raise StoreError when there is none."""
        if name not in self.manifest["files"]:
            raise StoreError(
                f"Artifact {self.key[:12]} has no file {name!r}. It holds: "
                f"{', '.join(self.files)}. Compile it again."
            )
        return self.path / name


@dataclass(frozen=True)
class Entry:
    """One artifact of the store, good or not.

    `bytes` is what it takes on disk, `last_used` is in seconds since 1970. `problem` says why it
    cannot be used; then `artifact` is None. `foreign`: it is not signed with the store key.
    """

    key: str
    path: Path
    bytes: int
    last_used: float
    problem: str | None = None
    artifact: Artifact | None = None
    foreign: bool = False


def read_artifact(path: Path, key: str, content: bool = True) -> Artifact:
    """Return the artifact in the folder `path`.

    Without `content` only the sizes of its files are compared with the manifest, not their
    checksums. Its signature is not checked. Raises ArtifactRejected when it is damaged or when
    others could have written it.
    """
    try:
        require_private(path, folder=True)
        require_private(path / MANIFEST, folder=False)
        artifact = Artifact(key, path, read_manifest(path / MANIFEST, key))
        folders = folders_of(artifact.files)
        start = len(os.fspath(path)) + 1
        there = {item.path[start:].replace(os.sep, "/") for item in walk(path)}
        if extra := there - {MANIFEST, *artifact.files} - folders:
            raise damaged(path, f"{sorted(extra)} is not in its manifest")
        for name in sorted(folders):
            require_private(path / name, folder=True)
        for name in artifact.files:
            _check_file(artifact.path / name, artifact.manifest["files"][name], content)
    except FileNotFoundError as error:
        raise damaged(path, f"{Path(error.filename).name} is missing") from error
    return artifact


def _check_file(file: Path, expected: dict[str, Any], content: bool) -> None:
    require_private(file, folder=False)
    if (size := file.stat().st_size) != expected["bytes"]:
        raise damaged(file, f"it has {size} bytes, expected {expected['bytes']}")
    if content and sha256(file) != expected["sha256"]:
        raise damaged(file, "its checksum does not match the manifest")


def write_files(folder: Path, sources: Mapping[str, Path]) -> dict[str, Any]:
    """Copy `sources` (name in the artifact: where the file is) into the private folder `folder`.

    Return what the manifest lists of them.
    """
    listed = {}
    for name, source in sources.items():
        with Path(source).open("rb") as stream, create_below(folder, name) as target:
            digest, size = copy(stream, target)
            flush(target)
        listed[name] = {"sha256": digest, "bytes": size}
    return listed


def appear(draft: Path, final: Path) -> Artifact | None:
    """Make the artifact in the folder `draft` visible as `final`; return None where one is there.

    Raises OSError.
    """
    manifest = read_manifest(draft / MANIFEST, final.name)  # before others may remove it
    flush_folders(draft)
    try:
        rename(draft, final)
    except OSError:
        if not os.path.lexists(final):
            raise
        return None
    flush_folder(final.parent)
    return Artifact(final.name, final, manifest)


def supersedes(draft: Path, theirs: Artifact) -> bool:
    """Return whether the artifact in the folder `draft` was checked, and `theirs` never was."""
    manifest = read_manifest(draft / MANIFEST, theirs.key)
    return theirs.verdict is None and manifest["verdict"] is not None


def replace_manifest(
    artifact: Artifact, manifest: Mapping[str, Any], store_key: bytes, work: Path
) -> None:
    """Sign a manifest and put it in the place of the artifact's, in one step. Raises OSError."""
    write_manifest(work, manifest, store_key)
    (work / MANIFEST).replace(artifact.path / MANIFEST)


def mark_used(artifact: Artifact) -> None:
    """Note that the artifact was used now."""
    now = time.time_ns()
    try:
        os.utime(artifact.path / MANIFEST, ns=(now, now))
    except OSError as error:  # the artifact is good; it is only evicted too early
        _log.debug("Artifact %s was not marked as used: %s", artifact.key[:12], error)


def load_artifact(
    path: Path, store_key: bytes | None, public: PublicKeys, content: bool
) -> Artifact | None:
    """Return the artifact in the folder `path` of a store, checked; None when there is none.

    Raises ArtifactRejected when it must not serve: also ForeignArtifact where nobody who is trusted
    has signed it.
    """
    identity = identity_of(path)
    while identity is not None:
        require_private_root(path.parent)
        try:
            artifact = read_artifact(path, path.name, content)
            require_own(path, artifact.manifest, store_key, public)
            return artifact
        except ArtifactRejected as error:
            before, identity = identity, identity_of(path)
            if identity == before:
                error.key = path.name
                raise
            # another process discarded or replaced it while it was read: look again
    return None


def private_copy(artifact: Artifact) -> Path:
    """Copy the files to a folder of this process; raise ArtifactRejected where one was changed.

    The very bytes that are written are compared with the manifest.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{artifact.key[:12]}-", dir=private_folder()))
    for name, expected in artifact.manifest["files"].items():
        with open_file(artifact.path / name) as source, create_below(folder, name) as target:
            if copy(source, target) != (expected["sha256"], expected["bytes"]):
                error = damaged(artifact.path / name, "it was changed while it was loaded")
                error.key = artifact.key
                raise error
    return folder


def entry_of(path: Path) -> Entry | None:
    """Return what lies at `path`, unchecked; None when it is gone."""
    try:
        last_used = path.lstat().st_mtime_ns / 1e9
        try:
            if os.path.lexists(path / MANIFEST):
                last_used = (path / MANIFEST).lstat().st_mtime_ns / 1e9
            return Entry(path.name, path, bytes_in(path), last_used)
        except PermissionError as error:  # one closed artifact must not hide the others
            return Entry(path.name, path, 0, last_used, f"It cannot be read: {error}.")
    except (FileNotFoundError, NotADirectoryError):  # the store may be a file: `check` says so
        return None


def scan(root: Path) -> list[Entry]:
    """Return what lies in the store `root`, unchecked, least recently used first."""
    try:
        paths = [path for path in root.iterdir() if ARTIFACT_KEY.fullmatch(path.name)]
    except FileNotFoundError:  # nothing was ever put
        return []
    entries = [entry for path in paths if (entry := entry_of(path))]
    return sorted(entries, key=lambda entry: (entry.last_used, entry.key))

"""One artifact on disk: the compiled code of one unit.

It is a folder `<key>/` with a manifest and the files that the manifest lists, in sub-folders as
torch loads them. It holds nothing else: torch takes whatever library it finds there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .files import ARTIFACT_KEY, bytes_in, folders_of, sha256, walk
from .manifest import MANIFEST, damaged, read_manifest
from .privacy import require_private


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
        text = json.dumps(self.manifest["files"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

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
    cannot be used; then `artifact` is None.
    """

    key: str
    path: Path
    bytes: int
    last_used: float
    problem: str | None = None
    artifact: Artifact | None = None


def read_artifact(path: Path, key: str, content: bool = True) -> Artifact:
    """Return the artifact in the folder `path`.

    Without `content` only the sizes of its files are compared with the manifest, not their
    checksums. Raises ArtifactRejected when it is damaged or when others could have written it.
    """
    try:
        require_private(path, folder=True)
        require_private(path / MANIFEST, folder=False)
        artifact = Artifact(key, path, read_manifest(path / MANIFEST, key))
        folders = folders_of(artifact.files)
        there = {item.relative_to(path).as_posix() for item in walk(path)}
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
    except FileNotFoundError:
        return None


def scan(root: Path) -> list[Entry]:
    """Return what lies in the store `root`, unchecked, least recently used first."""
    try:
        paths = [path for path in root.iterdir() if ARTIFACT_KEY.fullmatch(path.name)]
    except FileNotFoundError:  # nothing was ever put
        return []
    entries = [entry for path in paths if (entry := entry_of(path))]
    return sorted(entries, key=lambda entry: (entry.last_used, entry.key))

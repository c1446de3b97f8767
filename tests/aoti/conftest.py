"""Folders for compile jobs."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib_accel.store import ArtifactStore

from .. import tiny
from ..threads import one_thread  # noqa: F401  for every test here
from .kit import OUTPUT


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where jobs put their temporary files: empty before each test, and expected so after it."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def store(packaging: None, tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def all_but_one(own_store: Path) -> ArtifactStore:
    """A store that lacks one of TINY's units, OUTPUT, so that little is left to compile."""
    store = ArtifactStore(own_store)
    store.discard(tiny.target().keys[OUTPUT], "a test wants it compiled")
    return store


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    yield folder
    # lazily: a compiler's helper (torch 2.8) may take a moment to end
    subprocess.run(["umount", "--lazy", str(folder)], check=True)

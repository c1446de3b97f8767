"""A store, the files of a made-up unit, and a small disk."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from lib_accel.store import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def units(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "units").mkdir()
    files = {"data/model/down.so": tmp_path / "units" / "0", "mid.pt2": tmp_path / "units" / "1"}
    for number, path in enumerate(files.values()):
        path.write_bytes(random.Random(number).randbytes(1000 + number))
    return files


@pytest.fixture
def mounted(tmp_path: Path):
    """A real file system of 1 MiB."""
    folder = tmp_path / "mount"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(folder)]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)

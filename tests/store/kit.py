"""What the tests of the store and its exports share; fixtures are in conftest.py."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
RECIPE = {"units": ["down", "mid"], "dtype": "float16", "device": "CPU"}
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, pipes and signals")
root_only = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="needs root: chown, seteuid or mount"
)


def key_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith((".tmp", ".trash"))]


def flip(path: Path, position: int) -> None:
    """Damage one byte in place; done twice, it is as it was."""
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 0x10]))


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    head = "import sys, pathlib\nfrom lib_accel.store.store import ArtifactStore\nstore = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], kill: bool = False) -> int:
    if kill:
        process.kill()
    code = process.wait(20)
    assert process.stdout is not None
    process.stdout.close()
    return code

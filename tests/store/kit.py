"""What the tests of the store and its exports share; fixtures are in conftest.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib_accel.store import ArtifactStore, recipe_key

NAMES = ("data/model/unit.so", "data/model/unit.cubin", "data/weights.json")
REPO = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, pipes and signals")
root_only = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="needs root: chown, seteuid or mount"
)


OTHERS: dict[str, Callable[[Path], object]] = {
    "everyone": lambda folder: folder.chmod(0o777),
    "group": lambda folder: folder.chmod(0o775),
}
"""Ways to let other users replace what lies in a folder."""
if os.name == "posix" and os.geteuid() == 0:
    OTHERS["owner"] = lambda folder: os.chown(folder, 12345, 12345)


def recipe(name: object) -> dict[str, Any]:
    """Return the recipe of a made-up unit."""
    return {
        "unit": {"layer": "ResBlock", "name": str(name)},
        "dtype": "float16",
        "machine": {
            "torch": "2.13.0",
            "device_type": "cpu",
            "capability": "x86-64-v3",
            "platform": "linux",
        },
    }


def key_of(name: object) -> str:
    """Return the key of `recipe(name)`."""
    return recipe_key(recipe(name))


def filled(folder: Path, *names: object) -> ArtifactStore:
    """Return a store in `folder` with artifacts of these names."""
    dice, store = random.Random(0), ArtifactStore(folder / "store")
    sources = {name: folder / str(number) for number, name in enumerate(NAMES)}
    for source in sources.values():
        source.write_bytes(dice.randbytes(dice.randrange(500, 3000)))
    for name in names:
        store.put(recipe(name), sources, {"compiled": [1e-7], "eager": [1e-7]})
    return store


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
    """Run `code` in another process, with a `store` and with `arguments` in `sys.argv`."""
    head = (
        "import sys, pathlib\n"
        "from lib_accel.store import ArtifactStore\n"
        "from tests.store.kit import key_of, recipe\n"
        "store = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], kill: bool = False, patience_s: float = 20) -> int:
    """Wait for the process (or kill it) and return how it ended."""
    if kill:
        process.kill()
    code = process.wait(patience_s)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return code

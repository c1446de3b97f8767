"""Attacks on the command line: paths that name no ordinary file, and names that steer terminals."""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lib_accel.tools.cli import main

from .kit import harmless

ODD_NAMES = (
    "missing.safetensors",
    "a\x1b[31mred\x07.ckpt",
    "two\nlines.safetensors",
    "half\udcff.safetensors",
    "\u202egnp.ckpt",
    "ünï 図.pt",
    "-rf.ckpt",
    "$(touch x).pth",
    "%s%n.ckpt",
    "CON.ckpt",
    "x" * 300 + ".ckpt",
    "x/" * 3000 + "x.ckpt",
)

COMMANDS = (
    "demo --device cpu --backend eager --size 64 --channels 32 --out {out} --checkpoint {path}",
    "demo --device cpu --backend eager --size 64 --channels 32 --out {out} --lora {path}",
    "demo --device cpu --backend eager --size 64 --out {path} --checkpoint {out}/none.ckpt",
    "bench --device cpu --out {out} --family {path}",
    "bench --device cpu --size 64 --family sd1:32 --variants eager --out {path} --device warp",
    "prebuild --device cpu --family {path}",
    "cost --webui {path} --checkpoint x.ckpt",
    "cost --webui {out} --checkpoint {path} --python {out}/launch.py",
    "cost --webui {out} --checkpoint x.ckpt --python {path}",
    "store list --store {path}",
    "store verify --store {path}",
    "store delete {path} --yes --store {out}",
    "store export all --to {path} --store {out}",
    "store import {path} --allow-unsigned --store {out}",
    "store import {out}/launch.py --key {path} --store {out}",
)


def _paths(folder: Path) -> Iterator[str]:
    """Yield paths of all kinds of things. Only some systems have pipes and links."""
    for name in ODD_NAMES:
        yield str(folder / name)
        with contextlib.suppress(OSError, UnicodeError):  # no such name on this system
            (folder / name).write_bytes(b"something")
    yield from ("~nosuchuser/x.ckpt", "~/none/x.safetensors", os.devnull, ".", "..", "/", "x.gguf")
    (folder / "folder.ckpt").mkdir()
    (folder / "empty.ckpt").touch()
    yield from (str(folder / name) for name in ("folder.ckpt", "empty.ckpt"))
    if os.name == "posix":
        os.mkfifo(folder / "pipe.ckpt")
        (folder / "loop.ckpt").symlink_to(folder / "loop.ckpt")
        (folder / "broken.ckpt").symlink_to(folder / "nothing")
        (folder / "zero.ckpt").symlink_to("/dev/zero")
        yield from (f"{folder}/{name}.ckpt" for name in ("pipe", "loop", "broken", "zero"))
        yield from ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/fd/0")


def _said(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit status and all that it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = main(arguments)
        except SystemExit as e:  # argparse
            status = int(e.code or 0)
    return status, printed.getvalue()


def odd_paths(folder: Path, count: int, seed: int) -> int:
    """Give every command every path. Each ends soon, in a sentence that a terminal only shows."""
    (folder / "out").mkdir()
    (folder / "out" / "launch.py").touch()
    (folder / "odd").mkdir()
    cases = [(c, path) for path in _paths(folder / "odd") for c in COMMANDS]
    random.Random(seed).shuffle(cases)
    for command, path in cases[:count]:
        arguments = [
            part.replace("{out}", str(folder / "out")).replace("{path}", path)
            for part in command.split()
        ]
        began = time.process_time()
        status, text = _said(arguments)
        took = time.process_time() - began
        assert status in (0, 1, 2), (arguments, text)
        assert "Traceback" not in text, (arguments, text)
        assert harmless(text), (arguments, text)
        assert took < 5, (arguments, took)
    return min(count, len(cases))


WORDS = (
    "",
    "0",
    "-1",
    "9" * 30,
    "9" * 5000,
    "1e9",
    "nan",
    "1.5",
    "\u0663",
    "x",
    "\x1b[2J",
    "\udcff",
)
WORDS += (
    "cpu",
    "cuda:99",
    "meta",
    "sd1:0",
    "sd1+0",
    "sd1:99999999",
    ":",
    "+",
    "a:1e999",
    "2147483648",
)
OPTIONS = (
    "demo --size",
    "demo --steps",
    "demo --seed",
    "demo --channels",
    "demo --lora",
    "demo --device",
    "demo --dtype",
    "demo --backend",
    "demo --store-mib",
    "bench --family",
    "bench --batch",
    "bench --tokens",
    "bench --rounds",
    "bench --variants",
    "bench --loras",
    "bench --threads",
    "bench --device",
    "gpu --minutes",
    "prebuild --family",
    "prebuild --workers",
    "prebuild --for",
    "prebuild --torch",
    "cost --pictures",
    "cost --flags",
    "doctor --device",
)


def odd_values(folder: Path, count: int, seed: int) -> int:
    """Give every option odd values, beside a checkpoint or a device that ends the command."""
    ends = {"demo": ("--checkpoint", str(folder / "none.ckpt"), "--out", str(folder))}
    ends |= {"cost": ("--webui", str(folder), "--checkpoint", "x"), "store": ()}
    cases = [(option.split(), word) for option in OPTIONS for word in WORDS]
    random.Random(seed).shuffle(cases)
    for (command, option), word in cases[:count]:
        last = ends.get(command, ("--device", "warp"))
        status, text = _said([command, f"{option}={word}", *last])
        assert status in (1, 2), (command, option, word, text)
        assert ("PROBLEM  " if command == "doctor" else "error: ") in text
        assert "Traceback" not in text
        assert harmless(text), (command, option, word)
    return min(count, len(cases))


Attack = Callable[[Path, int, int], int]
ATTACKS: dict[str, tuple[Attack, int, int]] = {
    "odd paths on the command line": (odd_paths, 60, 2000),
    "odd values on the command line": (odd_values, 60, 2000),
}

"""The checks behind `python -m tests`, and their summary."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from lib_accel.tools import bootstrap

CHECKS = (
    ("ruff check", ("ruff", "check", ".")),
    ("ruff format", ("ruff", "format", "--check", ".")),
    ("pyright", ("pyright", "--pythonpath", sys.executable)),
    ("pytest", ("pytest",)),
)


def run(name: str, arguments: tuple[str, ...]) -> tuple[str, int, float]:
    """One check; its output goes where ours goes. Returns its name, exit status and seconds."""
    print(f"\n=== {name}", flush=True)
    started = time.monotonic()
    # pyright would ask the network whether there is a newer one
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    status = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=bootstrap.ROOT, env=environment
    ).returncode
    return name, status, time.monotonic() - started


def main(arguments: list[str]) -> int:
    """All checks, each whether or not the one before passed; with arguments pytest alone. Returns the exit status."""
    if arguments:
        return run("pytest", ("pytest", *arguments))[1]
    results = [run(name, command) for name, command in CHECKS]
    print("\n=== summary")
    for name, status, seconds in results:
        print(f"{'ok' if status == 0 else f'FAILED ({status})':12} {name:12} {seconds:6.1f} s")
    return int(any(status for _, status, _ in results))

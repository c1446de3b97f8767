"""The checks behind `python -m tests`, and their summary."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from lib_accel.tools import setup_environment

PYTEST = ("pytest", "--numprocesses=logical", "--maxprocesses=2")
FAST = {
    "ruff check": ("ruff", "check", "."),
    "ruff format": ("ruff", "format", "--check", "."),
    "fast tests": (*PYTEST, "-m", "not slow"),
    "pyright": ("pyright", "--pythonpath", sys.executable),
}
SLOW = {"slow tests": (*PYTEST, "-m", "slow")}


def main(arguments: list[str]) -> int:
    """Run all checks, the slow tests only if the others passed; with arguments pytest alone.

    `attack` runs the attacks instead. Returns the exit status for the process.
    """
    if arguments[:1] == ["attack"]:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are small here
        from tests.attack import table

        return table.main(arguments[1:])
    if arguments:
        return _run("pytest", ("pytest", *arguments))[1]
    results = [_run(name, command) for name, command in FAST.items()]
    if not any(status for _, status, _ in results):
        results += [_run(name, command) for name, command in SLOW.items()]
    print("\n=== summary")
    for name, status, seconds in results:
        print(f"{f'FAILED ({status})' if status else 'ok':12} {name:12} {seconds:6.1f} s")
    if len(results) == len(FAST):
        print(f"{'NOT RUN':12} {', '.join(SLOW)}, as other checks failed")
    print(f"{'NOT RUN':12} tests/gpu: `python3 -m tests gpu` runs it on a pretend card")
    return int(any(status for _, status, _ in results))


def _run(name: str, command: tuple[str, ...]) -> tuple[str, int, float]:
    """Run `python -m command` and return its name, exit status and seconds."""
    print(f"\n=== {name}", flush=True)
    started = time.monotonic()
    # Otherwise pyright asks the network whether there is a newer version.
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=setup_environment.ROOT, env=environment
    )
    return name, done.returncode, time.monotonic() - started

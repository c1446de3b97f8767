"""What tests of commands share; the fixture `run` is in conftest.py."""

from __future__ import annotations

from collections.abc import Callable

TINY = ("--size", "64", "--device", "cpu")

Result = tuple[int, str, str]
Run = Callable[..., Result]
"""Runs a command in this process; returns exit status, standard output and standard error."""


def failure(result: Result, status: int = 1) -> str:
    """Return the one line that a failed command prints: no standard output, no traceback."""
    got, out, err = result
    assert (got, out) == (status, "")
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0].partition("error: ")[2]

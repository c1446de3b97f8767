"""Runs the tests of this folder on a pretend card (lib_accel/tools/laboratory)."""

from __future__ import annotations

import subprocess

from lib_accel.tools.laboratory.environment import ROOT, prepare


def main(arguments: list[str]) -> int:
    """Run the tests of this folder in the laboratory; return pytest's exit status."""
    python, variables = prepare()
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu", *arguments]
    return subprocess.call(command, cwd=ROOT, env=variables)

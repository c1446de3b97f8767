"""`python -m tests torch`: the tests of the engine and the host with every torch that users have.

Each version has an environment of its own, `.venv.torch-VERSION`, which is made where it is
missing. PyPI's builds for Linux bring CUDA: they take 5 to 7 GB each, and run here on the CPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("2.1.2", "2.6.0", "2.8.0", "2.10.0", "2.13.0", "2.14.1")
"""The one that WebUI 1.10 installs, some between, the one of the other tests, the newest."""

NEEDED = ("-r", "requirements.txt", "pytest>=8.0", "pytest-xdist>=3.6")
PEERS = ("diffusers>=0.31", "transformers>=4.40")
OLDER = {"2.1.2": ("numpy<2", "diffusers<0.33", "transformers<4.48")}
"""Built against numpy 1, and older than what today's diffusers and transformers expect."""

ENGINE = ("accelerate", "attributes", "control", "engine*", "graphs", "merge", "weights")
FOLDERS = ("tests/model", "tests/compile", "tests/aoti", "tests/standin")


def main(versions: list[str]) -> int:
    """Run the tests with each version; print a row for each; return 1 where one of them fails."""
    failed, rows = False, []
    for version in versions or VERSIONS:
        try:
            status, summary = _run(_environment(version))
        except subprocess.CalledProcessError as error:
            status, summary = 1, f"could not be installed: {error}"
        failed |= bool(status)
        rows.append(f"| {version} | {'passed' if not status else 'FAILED'} | {summary} |")
    print("\n".join(["", "| torch | result | tests |", "| --- | --- | --- |", *rows]))
    return int(failed)


def _environment(version: str) -> Path:
    """Return the Python with this torch; make its environment where there is none."""
    home = ROOT / f".venv.torch-{version}"
    python, ready = home / "bin" / "python", home / "ready"
    if os.name == "nt":
        python = home / "Scripts" / "python.exe"
    if not ready.exists():
        print(f"Creating {home.name}: once, some gigabytes.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        packages = [f"torch=={version}", *NEEDED, *OLDER.get(version, PEERS)]
        command = [str(python), "-m", "pip", "install", "-q", "--no-compile", *packages]
        subprocess.run(command, cwd=ROOT, check=True)
        ready.touch()
    return python


def _run(python: Path) -> tuple[int, str]:
    """Run the tests; return pytest's exit status and the counts in its last line."""
    print(f"\n=== {python.relative_to(ROOT)}", flush=True)
    engine = (file for name in ENGINE for file in sorted(ROOT.glob(f"tests/test_{name}.py")))
    names = [file.relative_to(ROOT).as_posix() for file in engine]
    command = [str(python), "-m", "pytest", "-q", "--numprocesses=2", *names, *FOLDERS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for last in process.stdout:
        print(last, end="", flush=True)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", last)
    return process.wait(), ", ".join(counts) or last.strip()

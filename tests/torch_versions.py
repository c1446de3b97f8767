"""`python -m tests torch`: the tests of the engine and the host with every torch that users have.

Each version has an environment of its own, `.venv.torch-VERSION`, which is made where it is
missing, with the Python that runs this. PyPI's builds for Linux bring CUDA: they take 5 to 7 GB
each, and run here on the CPU. What each run gives is written into docs/torch.md.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "torch.md"

VERSIONS = ("2.1.2", "2.6.0", "2.8.0", "2.10.0", "2.13.0", "2.14.1")
"""The one that WebUI 1.10 installs, some between, the one of the other tests, the newest."""

NEEDED = ("-r", "requirements.txt", "pytest>=8.0", "pytest-xdist>=3.6", "prometheus-client")
PEERS = ("diffusers>=0.31", "transformers>=4.40")
OLDER = {"2.1.2": ("numpy<2", "diffusers<0.33", "transformers<4.48")}
"""Built against numpy 1, and older than what today's diffusers and transformers expect."""

ENGINE = (
    *("accelerate", "attributes", "control", "engine*", "fetching", "graphs", "kept_prompts"),
    *("merge", "prepared", "skip_connections", "weights", "whole"),
)
FOLDERS = ("tests/model", "tests/compile", "tests/aoti", "tests/kernels", "tests/standin")

HEAD = "| torch | Python | run on | passed | failed | skipped | of these, what this torch lacks |"


def main(versions: list[str]) -> int:
    """Run the tests with each version; write a row for each; return 1 where one of them fails."""
    failed, rows = False, []
    for version in versions or VERSIONS:
        try:
            python = _environment(version)
        except subprocess.CalledProcessError as error:
            print(f"torch {version} could not be installed: {error}")
            failed = True
            continue
        results = python.parents[1] / "results.xml"
        results.unlink(missing_ok=True)
        failed |= bool(_run(python, results))
        if results.exists():
            rows.append(_row(version, python, results))
            _write(version, rows[-1])
    print("\n".join(["", HEAD, *rows]))
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


def _run(python: Path, results: Path) -> int:
    """Run the tests; return pytest's exit status. `results` gets them in the format of JUnit."""
    print(f"\n=== {python.relative_to(ROOT)}", flush=True)
    engine = (file for name in ENGINE for file in sorted(ROOT.glob(f"tests/test_{name}.py")))
    names = [file.relative_to(ROOT).as_posix() for file in engine]
    # each version of torch has warnings of its own, which are no failures
    options = ["-q", "--numprocesses=2", "-W", "default::UserWarning", f"--junitxml={results}"]
    command = [str(python), "-m", "pytest", *options, *names, *FOLDERS]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _row(version: str, python: Path, results: Path) -> str:
    """Return the row of docs/torch.md that tells what a run gave."""
    suites = list(ET.parse(results).getroot().iter("testsuite"))
    tests, skipped, *bad = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "skipped", "failures", "errors")
    )
    command = [str(python), "-c", "import platform; print(platform.python_version())"]
    speaks = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    reasons = Counter(found.get("message", "") for s in suites for found in s.iter("skipped"))
    lacks = [
        f"{count}: {reason.removeprefix('NOT RUN: ')}"
        for reason, count in reasons.most_common()
        if re.search(r"\btorch\b", reason)
    ]
    today = datetime.datetime.now(datetime.timezone.utc).date()
    counts = tests - skipped - sum(bad), sum(bad), skipped
    cells = (version, speaks, today, *counts, "; ".join(lacks) or "nothing")
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _write(version: str, row: str) -> None:
    """Put the row into the table at the end of docs/torch.md, in place of an older one."""
    before, head, table = PAGE.read_text(encoding="utf-8").partition(HEAD)
    rule, *lines = table.strip().splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines} | {version: row}
    ordered = sorted(rows, key=lambda name: [int(part) for part in name.split(".")])
    table = "\n".join([head, rule, *(rows[name] for name in ordered), ""])
    PAGE.write_text(before + table, encoding="utf-8", newline="\n")

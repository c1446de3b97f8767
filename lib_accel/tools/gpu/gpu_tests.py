"""The tests that need a GPU, run where there is one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from ...errors import AccelError
from .jobs import Job
from .process import ROOT
from .setting import Setting
from .teller import Teller

NEEDS = "torch.cuda.is_available()"
"""What a file with such tests asks for, to skip them elsewhere."""


def run(job: Job, setting: Setting, tell: Teller) -> None:
    """Run them. Raises AccelError where they or pytest are missing."""
    folder = ROOT / "tests"
    files = [f for f in sorted(folder.rglob("test_*.py")) if NEEDS in f.read_text("utf-8")]
    if not files:
        raise AccelError(f"{folder} has no test that needs a GPU; expected the whole repository")
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
        command += [f"--junitxml={report}", *(str(f.relative_to(ROOT)) for f in files)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise AccelError(f"pytest did not run: {' '.join(last)}")
        tests = [_outcome(case) for case in ET.parse(report).iter("testcase")]
    tell.know(files=[f.relative_to(ROOT).as_posix() for f in files], tests=tests)


def _outcome(case: ET.Element) -> dict[str, Any]:
    for outcome in ("failure", "error", "skipped"):
        found = case.find(outcome)
        if found is not None:
            name = {"failure": "failed", "error": "failed"}.get(outcome, outcome)
            return {"test": case.get("name"), "outcome": name, "why": _why(found)}
    return {"test": case.get("name"), "outcome": "passed", "why": ""}


def _why(found: ET.Element) -> str:
    text = found.text or ""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return " | ".join(lines)[:1000] or (found.get("message") or "")[:1000]

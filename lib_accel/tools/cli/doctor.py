"""`doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ...compile.doctor import examine
from .common import (
    Commands,
    add_device_arguments,
    add_store_arguments,
    command,
    device_and_dtype,
    make_store,
    show,
)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = command(
        commands,
        "doctor",
        "what works on this machine, and what to do about the rest; "
        "exit status 1 when nothing is accelerated",
        run,
    )
    add_store_arguments(p)
    add_device_arguments(p)


def run(args: argparse.Namespace) -> int:
    """Print the findings. Exit status 1 where there is a problem."""
    device, dtype = device_and_dtype(args)
    findings = examine(device, dtype, make_store(args))
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    text = "\n".join(
        f"{marks[f.level]}  {f.what}" + (f"\n         -> {f.advice}" if f.advice else "")
        for f in findings
    )
    healthy = not any(f.level == "problem" for f in findings)
    show({"healthy": healthy, "findings": [asdict(f) for f in findings]}, args, text)
    return 0 if healthy else 1

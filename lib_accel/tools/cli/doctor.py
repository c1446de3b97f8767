"""`doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import astuple

from ...errors import AccelError
from .. import setup_environment
from ..terminal import show
from . import webui_python


def _broken() -> Exception | None:
    """Import what needs torch; return why that is impossible."""
    try:
        from ...compile import doctor  # noqa: F401
        from . import common  # noqa: F401
    except (ImportError, OSError) as e:  # no torch, or one without the libraries that it needs
        return e
    return None


_BROKEN = _broken()  # with the imports of this file, which Ctrl-C ends at once: see `main`
_MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


def run(args: argparse.Namespace) -> int:
    """Print the findings. Exit status 1 where there is a problem."""
    findings = [webui_python.finding(), *_examine(args)]
    text = "\n".join(
        f"{_MARKS[level]}  {what}" + (f"\n         -> {advice}" if advice else "")
        for level, what, advice in findings
    )
    healthy = not any(level == "problem" for level, _, _ in findings)
    rows = [dict(zip(("level", "what", "advice"), found, strict=True)) for found in findings]
    show({"healthy": healthy, "findings": rows}, args, text)
    return 0 if healthy else 1


def _examine(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Return level, words and advice of each finding, or why this Python can find none."""
    if _BROKEN is None:
        from ...compile.doctor import examine
        from .common import device_and_dtype, make_store, no_gpu

        try:
            device, dtype = device_and_dtype(args)
        except AccelError as e:
            return [("problem", str(e), "")]
        found = [astuple(each) for each in examine(device, dtype, make_store(args))]
        if device.type == "cpu" and not args.device and shutil.which("nvidia-smi"):
            found.append(("note", "torch does not use this machine's NVIDIA driver", no_gpu()))
        return found
    version = sys.version.split()[0]
    if isinstance(_BROKEN, ModuleNotFoundError):
        what = f"{_BROKEN.name} is not installed in this Python ({version})"
        return [("problem", what, _how_to_install())]
    what = f"torch does not work in this Python ({version}): {_BROKEN}"
    return [("problem", what, "install torch again")]


def _how_to_install() -> str:
    if webui_python.other():
        return "the WebUI's Python is the one to look at, see above"
    if webui_python.webui_around():
        return "start the WebUI once: it installs what it needs"
    own = setup_environment.python_of(setup_environment.ROOT)
    if own.exists():
        return f"the other commands use {own}: run {own} -m lib_accel doctor"
    return (
        f"the other commands install it in {own.parents[1]}, once: about 3 GB, with CUDA 10 GB. "
        "Or call this with a Python that has it"
    )

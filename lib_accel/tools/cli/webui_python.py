"""Which Python runs, and which one the WebUI runs with in whose `extensions` this folder lies.

Compiled code fits one torch, so a Python with another torch makes code that never serves there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from ...errors import AccelError
from ..webui.process import python_of

HERE = Path(os.path.abspath(__file__)).parents[3]  # noqa: PTH100  (a link to an extension is kept)


def webui_around(folder: Path = HERE) -> Path | None:
    """Return the folder of the WebUI whose extension `folder` is; None where it is none."""
    webui = folder.parent.parent
    inside = folder.parent.name == "extensions" and (webui / "launch.py").exists()
    return webui if inside else None


def other(folder: Path = HERE) -> str | None:
    """Return that this Python is not the WebUI's, and the right command; None where it is.

    None also where there is no WebUI, or none whose Python is known.
    """
    python = _python_around(folder)
    if python is None or Path(sys.prefix).resolve() == python.parent.parent.resolve():
        return None
    return (
        f"{sys.executable} is not the Python of the WebUI in {webui_around(folder)}, and code for "
        f"another torch never serves there. Run: {_command(python)}"
    )


def finding(folder: Path = HERE) -> tuple[str, str, str]:
    """Return level, words and advice for the doctor: which Python it looks at, and whose it is."""
    looking, webui = f"looking at {sys.executable}", webui_around(folder)
    if webui is None:
        return "ok", f"{looking}; this folder is no extension of a WebUI", ""
    python = _python_around(folder)
    if python is None:
        advice = "run this with the Python that starts the WebUI"
        return (
            "note",
            f"{looking}; the WebUI in {webui} has no `venv` that would tell its own",
            advice,
        )
    if other(folder):
        return (
            "note",
            f"{looking}, not the Python of the WebUI in {webui}",
            f"run {_command(python)}",
        )
    return "ok", f"{looking}, the Python of the WebUI in {webui}", ""


def _python_around(folder: Path) -> Path | None:
    webui = webui_around(folder)
    try:
        return python_of(webui) if webui else None
    except AccelError:  # it runs in conda, or in a container
        return None


def _command(python: Path) -> str:
    """Return what was typed, with another Python; it works in the folder that is current now."""
    try:
        shortest = min(str(python), os.path.relpath(python), key=len)
    except ValueError:  # on another drive
        shortest = str(python)
    words = [shortest, *sys.orig_argv[1:]]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)

"""The tools that compiling needs: which of them a machine lacks, and how to get them."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from .machine import Machine


class Missing(NamedTuple):
    """One thing that compiling needs and that is missing: what, and how to get it."""

    what: str
    advice: str


def missing_tools(machine: Machine, cpp: bool) -> list[Missing]:
    """Return what is in the way of compiling for `machine`, in the order a person would fix it.

    `cpp`: C++ code is generated besides what runs on a GPU.
    """
    found = []
    if cpp and machine.cxx is None:
        found.append(Missing("no C++ compiler was found", _cxx_advice()))
    if cpp and (folder := _folder_that_needs_quotes()):
        what = f"{folder} has a space or quote in its name, which torch's compiler cannot handle"
        found.append(Missing(what, "move it (TMPDIR)"))
    if machine.device_type == "cuda" and machine.triton is None:
        what = "Triton is not installed, which compiling for a GPU needs"
        found.append(Missing(what, f"pip install {_TRITON}"))
    if cpp and machine.device_type == "cuda" and machine.gpu_headers is None:
        advice = f"install the CUDA toolkit {torch.version.cuda}, or set CUDA_HOME to where it is"
        found.append(Missing("CUDA's headers were not found", advice))
    return found


_TRITON = "triton-windows" if sys.platform == "win32" else "triton"


def _cxx_advice() -> str:
    if sys.platform == "win32":
        return (
            "install the Visual Studio Build Tools (C++, English language pack) and start the WebUI"
            " where they are known: in webui-user.bat, "
            'call "...\\VC\\Auxiliary\\Build\\vcvars64.bat"'
        )
    return "install g++ (Debian, Ubuntu: apt install g++)"


def needs_quotes(folder: Path) -> bool:
    """Return whether the name of a folder would not reach g++, as torch gives it no quotes."""
    if sys.platform == "win32":
        return " " in str(folder)
    try:
        return shlex.split(str(folder)) != [str(folder)]
    except ValueError:  # a quote that nothing closes
        return True


def _folder_that_needs_quotes() -> Path | None:
    if sys.platform == "win32":
        return None  # torch gives it quotes there
    folders = [Path(torch.__file__).parent, Path(tempfile.gettempdir())]
    return next(filter(needs_quotes, folders), None)

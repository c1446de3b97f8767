"""The tools that compiling needs: which of them a machine lacks, and how to get them."""

from __future__ import annotations

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
    if cpp and (folder := _folder_with_a_space()):
        what = f"{folder} has a space in its name, and torch's compiler cannot handle that"
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


def _folder_with_a_space() -> Path | None:
    """Return a folder that Inductor would pass to g++ without quotes, where its name needs some."""
    if sys.platform == "win32":
        return None
    folders = [Path(torch.__file__).parent, Path(tempfile.gettempdir())]
    return next((folder for folder in folders if " " in str(folder)), None)

"""What compiled code needs: devices that can run it, and the tools that make it."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from .machine import Machine

OLDEST_CARD = (7, 0)
"""The compute capability from which on Triton makes code (its documentation, "Compatibility")."""

BFLOAT16_CARD = (8, 0)
"""The compute capability from which on Inductor makes code that computes in bfloat16."""

NO_CUDNN = (
    "cuDNN is switched off (torch.backends.cudnn.enabled), and compiled code relies on the memory "
    "layout of its results; expected it on"
)


def cannot_run(machine: Machine, dtype: torch.dtype) -> str | None:
    """Return why a device cannot run what Inductor compiles for it; None where it can."""
    if machine.device_type != "cuda":
        return None
    if "[ZLUDA]" in machine.device_name:
        return f"{machine.device_name}: ZLUDA does not run what torch compiles"
    if not torch.backends.cudnn.enabled:
        return NO_CUDNN
    if torch.version.hip:
        return None
    capability = tuple(map(int, machine.capability.split(".")))
    if capability < OLDEST_CARD:
        return (
            f"{machine.device_name} has compute capability {machine.capability}; "
            "torch compiles for 7.0 and later"
        )
    if dtype == torch.bfloat16 and capability < BFLOAT16_CARD:
        return (
            f"{machine.device_name} has compute capability {machine.capability}; "
            "torch compiles bfloat16 for 8.0 and later, float16 also for this card"
        )
    return None


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

"""The compilers and headers that compiled code is made with, where to find them and how to get them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch


def find_cxx() -> str | None:
    """The C++ compiler Inductor would call."""
    names = (
        [os.environ["CXX"]]
        if os.environ.get("CXX")
        else (["cl", "clang-cl"] if sys.platform == "win32" else ["g++", "clang++", "c++"])
    )
    return next((path for path in map(shutil.which, names) if path), None)


def cxx_advice() -> str:
    if sys.platform == "win32":
        return (
            "install the Visual Studio Build Tools (C++, English language pack) and start the WebUI where they are known: "
            'in webui-user.bat, call "...\\VC\\Auxiliary\\Build\\vcvars64.bat"'
        )
    return "install g++ (Debian, Ubuntu: apt install g++)"


TOOLKIT = Path(
    "C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA"
    if sys.platform == "win32"
    else "/usr/local/cuda"
)


def triton_advice() -> str:
    return "pip install triton-windows" if sys.platform == "win32" else "pip install triton"


def find_gpu_headers() -> str | None:
    """What the C++ part of AOTInductor's GPU code includes. torch looks for a toolkit only, and raises where there is none.

    Triton brings the same headers, but for one (compiler/include).
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or shutil.which("nvcc")
    if torch.version.hip or named or TOOLKIT.exists():
        return ""
    spec = importlib.util.find_spec("triton")
    folders = [
        Path(root, "backends", "nvidia")
        for root in (spec and spec.submodule_search_locations) or ()
    ]
    return next(
        (str(folder) for folder in folders if (folder / "include" / "cuda_runtime.h").is_file()),
        None,
    )


def cuda_advice() -> str:
    return f"install the CUDA toolkit {torch.version.cuda}, or set CUDA_HOME to where it is"


def spaced_folder() -> Path | None:
    """One with a space in its name that Inductor would hand to g++ without quotes."""
    folders = (
        []
        if sys.platform == "win32"
        else [Path(torch.__file__).parent, Path(tempfile.gettempdir())]
    )
    return next((folder for folder in folders if " " in str(folder)), None)

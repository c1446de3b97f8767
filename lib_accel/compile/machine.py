"""What machine this is and what its torch can do: probed here, once, when asked; nowhere else.

The environment variables the package reads are all in this file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.export

from .. import ENGINE_VERSION
from ..model import architecture as arch
from .units import canonical_json, unit_key


@dataclass(frozen=True)
class Machine:
    """Everything compiled code depends on besides what it computes, and what compiling it needs."""

    torch: str
    triton: str | None
    device_type: str  # "cuda", "cpu", "mps", "xpu"
    device_name: str  # "NVIDIA GeForce RTX 4090"
    capability: str  # "9.0" on CUDA, "AVX512" on CPU
    platform: str  # "linux-x86_64"
    cxx: str | None  # path of a C++ compiler
    gpu_headers: (
        str | None
    )  # the folder whose `include` has CUDA's headers; "" where torch finds them by itself (a toolkit, ROCm)
    packaging: bool  # torch can make and load AOTInductor packages with dynamic shapes
    recordable: bool  # code from packages runs without locks and event waits inside: a CUDA graph can record it (torch 2.7)
    compile: bool  # torch.compile is there and knows this system; whether it knows this Python shows when it is used

    def identity(self) -> dict[str, str | None]:
        """What an artifact must match to be loaded."""
        names = ("torch", "triton", "device_type", "device_name", "capability", "platform")
        return {name: getattr(self, name) for name in names}


@functools.lru_cache
def probe(device: torch.device) -> Machine:
    """Quick: nothing slow is imported for it. Nothing of it changes while the process lives."""
    name, capability = _device_model(device)
    return Machine(
        torch=torch.__version__,
        triton=_triton_version(),
        device_type=device.type,
        device_name=name,
        capability=capability,
        platform=f"{sys.platform}-{platform.machine().lower()}",
        cxx=find_cxx(),
        gpu_headers=find_gpu_headers(),
        packaging=_has_packaging(),
        recordable=_runs_single_threaded(),
        compile=hasattr(torch, "compile") and not (sys.platform == "win32" and _torch_before(2, 5)),
    )


def _device_model(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        return p.name, f"{p.major}.{p.minor}"
    if device.type == "cpu":
        return cpu_name(), torch.backends.cpu.get_cpu_capability()
    return device.type, ""


def cpu_name() -> str:
    """The processor's model: vector code made on one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    first = dict(
        reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line])
    )
    # in a virtual machine one model name can stand for several instruction sets
    features = hashlib.sha256(first.get("flags", "").encode()).hexdigest()[:8]
    return f"{first.get('model name', platform.machine())} {features}"


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        import triton  # type: ignore[import-not-found]  # only where CUDA is
    except (
        ImportError,
        OSError,
    ):  # there, but made for another Python, or without the libraries it needs
        return None
    return getattr(triton, "__version__", "unknown")


def _has_packaging() -> bool:
    """On Windows from 2.9 on: before, AOTInductor refuses when it is called."""
    there = _package_loader() is not None and hasattr(getattr(torch.export, "Dim", None), "DYNAMIC")
    return there and not (sys.platform == "win32" and _torch_before(2, 9))


def _torch_before(major: int, minor: int) -> bool:
    """For what cannot be probed without a slow import."""
    return tuple(map(int, torch.__version__.split(".")[:2])) < (major, minor)


def _runs_single_threaded() -> bool:
    """Its loader can be told so: by a third argument, of which only pybind11's words tell."""
    return "arg2: bool" in (
        getattr(getattr(_package_loader(), "__init__", None), "__doc__", None) or ""
    )


def _package_loader() -> Any:
    return getattr(getattr(torch._C, "_aoti", None), "AOTIModelPackageLoader", None)


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


@dataclass(frozen=True)
class Target:
    """What is to be compiled, and for what: everything an artifact's key is made of."""

    units: tuple[arch.Layer, ...]
    dtype: torch.dtype
    device: torch.device
    machine: Machine
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "engine": ENGINE_VERSION,
            "units": sorted(unit_key(u) for u in self.units),
            "dtype": str(self.dtype).removeprefix("torch."),
            "machine": self.machine.identity(),
            "options": dict(self.options),
        }

    @property
    def key(self) -> str:
        """Hex sha256 of the recipe."""
        return hashlib.sha256(canonical_json(self.recipe).encode()).hexdigest()

    def foreign(self, recipe: dict[str, Any]) -> str | None:
        """Why code made by that recipe cannot run here, or None: `torch 2.9.1, here 2.13.0`."""
        ours = self.recipe
        theirs = {
            **recipe.get("machine", {}),
            "engine": recipe.get("engine"),
            "dtype": recipe.get("dtype"),
            "options": recipe.get("options"),
        }
        mine = {
            **ours["machine"],
            "engine": ours["engine"],
            "dtype": ours["dtype"],
            "options": ours["options"],
        }
        differ = [
            f"{name} {theirs.get(name)!r}, here {value!r}"
            for name, value in mine.items()
            if theirs.get(name) != value
        ]
        return "; ".join(differ) or None

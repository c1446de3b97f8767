"""The machine: its device, its torch, and the compilers and headers on it. Probed when asked."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.export

from ..config import MIB

CUDA_TOOLKIT = Path(
    "C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA"
    if sys.platform == "win32"
    else "/usr/local/cuda"
)
"""Where torch itself looks for CUDA's toolkit when no environment variable names it."""


@dataclass(frozen=True)
class Machine:
    """What compiled code depends on besides what it computes, and what compiling it needs."""

    torch: str
    triton: str | None
    device_type: str  # "cuda", "cpu", "mps" or "xpu"
    device_name: str  # as "NVIDIA GeForce RTX 4090"
    capability: str  # as "9.0" on CUDA; on a CPU its instruction set, as "x86-64-v3"
    platform: str  # as "linux-x86_64"
    # the path of a C++ compiler
    cxx: str | None
    # the folder whose `include` holds CUDA's headers; "" where torch finds them (a toolkit, ROCm)
    gpu_headers: str | None
    # torch makes and loads AOTInductor packages with dynamic shapes
    packaging: bool
    # code from packages runs without locks and event waits, so a CUDA graph can record it
    recordable: bool
    # torch.compile knows this system; whether it knows this Python shows when it is used
    compile: bool

    def identity(self) -> dict[str, str | None]:
        """Return what must be the same where an artifact was made and where it is loaded.

        The name of a card or processor is not in it, and neither is Triton: compiled code needs it
        no more.
        """
        names = ("torch", "device_type", "capability", "platform")
        return {name: getattr(self, name) for name in names}


@functools.lru_cache
def probe(device: torch.device) -> Machine:
    """Return this machine, with `device` to compute on.

    It imports nothing slow. The answer is kept: nothing in it changes while the process lives.
    """
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


RESERVE = 2**30
"""Bytes of video memory that must stay free beside what is kept there only to be faster.

On Windows the driver moves memory out instead of running out of it: ten times slower, no error."""


def free_memory(device: torch.device) -> float:
    """Return the bytes of video memory that can be had on `device`; infinity without a GPU.

    It is what this process can have: the unused part of torch's cache is included, and so are the
    pools of CUDA graphs. For another process, ask the driver.
    """
    if device.type != "cuda":
        return math.inf
    # `memory_reserved` takes ten times as long
    stats = torch.cuda.memory_stats_as_nested_dict(device)
    now = [stats[f"{name}_bytes"]["all"]["current"] for name in ("reserved", "allocated")]
    return torch.cuda.mem_get_info(device)[0] + now[0] - now[1]


def has_room(device: torch.device, needed: float, graphs: int = 0) -> bool:
    """Return whether RESERVE stays free on `device` beside `needed` bytes more.

    `graphs`: the bytes of CUDA graphs, which `free_memory` takes for free.
    """
    if device.type != "cuda" or torch.cuda.mem_get_info(device)[0] - needed >= RESERVE:
        return True  # at once: the rest is asked only on a card that is nearly full
    return free_memory(device) - graphs - needed >= RESERVE


def waits_for(free: float, needed: float) -> str:
    """Return what a job says while `needed` bytes are more than `free`, those beside RESERVE."""
    return (
        f"waiting for video memory: {max(free, 0) / MIB:.0f} MiB can be had beside the "
        f"{RESERVE / MIB:.0f} MiB that stay free, the compiler needs {needed / MIB:.0f} MiB"
    )


def find_cxx() -> str | None:
    """Return the path of the C++ compiler that Inductor would call, or None."""
    names = ["cl", "clang-cl"] if sys.platform == "win32" else ["g++", "clang++", "c++"]
    if os.environ.get("CXX"):
        names = [os.environ["CXX"]]
    return next((path for path in map(shutil.which, names) if path), None)


def find_gpu_headers() -> str | None:
    """Return `Machine.gpu_headers`: what the C++ part of AOTInductor's GPU code includes.

    torch looks for a CUDA toolkit only, and raises where there is none. Triton brings the same
    headers except one, which lies in `backends/aoti/include`.
    """
    if torch.version.hip or (_toolkit() / "include" / "cuda.h").is_file():
        return ""
    spec = importlib.util.find_spec("triton")
    roots = (spec.submodule_search_locations if spec else None) or ()
    folders = [Path(root, "backends", "nvidia") for root in roots]
    found = (str(f) for f in folders if (f / "include" / "cuda_runtime.h").is_file())
    return next(found, None)


def _toolkit() -> Path:
    """Return the folder that torch takes for CUDA's toolkit, whether there is one or not.

    It goes by where nvcc lies, even where that is a script, or comes without any header.
    """
    if named := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(named)
    if nvcc := shutil.which("nvcc"):
        return Path(nvcc).parent.parent
    versions = CUDA_TOOLKIT.glob("v*.*") if sys.platform == "win32" else ()
    return next(iter(versions), CUDA_TOOLKIT)


def _device_model(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        return p.name, f"{p.major}.{p.minor}"
    if device.type == "cpu":
        name = _cpu_fields().get("model name") or platform.processor() or platform.machine()
        return name, instruction_set()
    return device.type, ""


def instruction_set() -> str:
    """Return the instruction set that code compiled for this processor may use.

    On x86-64 it is a level of the psABI, "x86-64-v2" to "x86-64-v4", no higher than what torch's
    own kernels use here. Elsewhere the compiler chooses, so a digest of all features is part of it.
    """
    name = torch.backends.cpu.get_cpu_capability()
    if is_x86_64():
        return {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}.get(name, "x86-64-v2")
    features = _cpu_fields().get("Features", "")
    return f"{name} {hashlib.sha256(features.encode()).hexdigest()[:8]}"


def is_x86_64() -> bool:
    """Return whether the processor is a 64-bit one of Intel's kind."""
    return platform.machine().lower() in ("x86_64", "amd64")


def _cpu_fields() -> dict[str, str]:
    """Return what Linux says of the first processor; nothing elsewhere."""
    try:
        # on Windows this would be a folder of the drive, which every user may make
        lines = [] if sys.platform == "win32" else Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return {}
    fields = [[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]
    return dict(reversed(fields))


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        import triton  # type: ignore[import-not-found]  # only where CUDA is
    except (ImportError, OSError):  # made for another Python, or without the libraries it needs
        return None
    return getattr(triton, "__version__", "unknown")


def _has_packaging() -> bool:
    dynamic = hasattr(getattr(torch.export, "Dim", None), "DYNAMIC")
    # on Windows, AOTInductor refuses to be called before torch 2.9
    refused = sys.platform == "win32" and _torch_before(2, 9)
    return _package_loader() is not None and dynamic and not refused


def _torch_before(major: int, minor: int) -> bool:
    """Compare versions, for what cannot be probed without a slow import."""
    return tuple(map(int, torch.__version__.split(".")[:2])) < (major, minor)


def _runs_single_threaded() -> bool:
    """Whether packages can be loaded single-threaded (torch 2.7): without locks and event waits.

    That is the third argument of torch's loader, and only pybind11's text says whether it is there.
    """
    return "arg2: bool" in (getattr(_package_loader().__init__, "__doc__", None) or "")


def _package_loader() -> Any:
    return getattr(getattr(torch._C, "_aoti", None), "AOTIModelPackageLoader", None)

"""What machine this is and what its torch can do: probed here, once, when asked; nowhere else.

The environment variables the package reads are all in this file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.export

from .toolchain import find_cxx, find_gpu_headers


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

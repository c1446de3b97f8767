"""The environment of a worker process: where it and its compilers find and put files."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ..machine import Machine
from .isolated_python import python_environment


def worker_environment(folder: Path, machine: Machine) -> dict[str, str]:
    """Return the environment of a worker that keeps its files in `folder`.

    torch finds a compiler, CUDA's headers and the driver in it.
    """
    environment = {
        **python_environment(),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        # torch may have set it in this process, to a folder that other users can take
        "TRITON_CACHE_DIR": str(folder / "cache" / "triton"),
        # a killed compiler leaves files: they go with the folder
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
    }
    if machine.cxx and sys.platform != "win32":
        environment.setdefault("CXX", machine.cxx)  # torch itself looks for g++ alone
    if machine.device_type == "cuda":
        environment |= _for_gpu(folder, machine)
    return environment


def _for_gpu(folder: Path, machine: Machine) -> dict[str, str]:
    found: dict[str, str] = {}
    # where INCLUDE is empty, clang-cl looks for MSVC's headers by itself; set, it would not
    if sys.platform != "win32" or os.environ.get("INCLUDE"):
        name = "INCLUDE" if sys.platform == "win32" else "CPATH"
        found |= _extended(name, Path(__file__).with_name("include"))
    if machine.gpu_headers:
        found["CUDA_HOME"] = machine.gpu_headers
    if sys.platform != "win32" and (driver := _driver(folder)):
        found |= _extended("LIBRARY_PATH", driver)
    return found


def _extended(name: str, path: Path) -> dict[str, str]:
    """Return the variable `name` with one more path at its end."""
    return {name: os.pathsep.join([*filter(None, [os.environ.get(name)]), str(path)])}


def _driver(folder: Path) -> Path | None:
    """Return a folder with `libcuda.so` to link against; None where the driver is not loaded.

    Drivers bring `libcuda.so.1` alone, or keep it where no linker looks (WSL).
    """
    with contextlib.suppress(OSError):  # not Linux
        loaded = [
            line.split()[-1]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "/libcuda.so" in line
        ]
        if loaded:
            link = folder / "driver" / "libcuda.so"
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(loaded[0])
            return link.parent
    return None

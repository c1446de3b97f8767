"""The environment of a worker process: where it and its compilers find and put files."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ....store.manifest import BUILT_HERE
from ...machine import Machine, is_x86_64
from ..isolated_python import python_environment

_V2 = "-march=x86-64 -mcx16 -mpopcnt -msahf -msse3 -mssse3 -msse4.1 -msse4.2"
_V3 = f"{_V2} -mavx -mavx2 -mbmi -mbmi2 -mf16c -mfma -mlzcnt -mmovbe -mxsave"
_V4 = f"{_V3} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl"
_FLAGS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""What each level of the x86-64 psABI means to g++ and clang++. GCC knows the names since 11."""

_COMPILER = """#!/bin/sh
# torch asks for code for this very processor. The store may be shared with another one. torch also
# tries which vector units the compiler knows, the newest first: it gets the answer at once.
level='{flags}'
for flag do
  shift
  case $flag in
    -march=*|-mcpu=*|-mtune=*) ;;
    -mavx*|-mamx*|-mfma)
      case " $level " in
        *" $flag "*) ;;
        *) echo "$flag is not for this level of processors" >&2; exit 1 ;;
      esac ;;
    *) set -- "$@" "$flag" ;;
  esac
done
exec {compiler} "$@" $level -mtune=native
"""


@dataclass(frozen=True)
class Elsewhere:
    """How code is compiled for another machine than this one; without arguments, for this one.

    `command` starts a worker in another Python, with `variables` on top of those of
    `worker_environment`. `device` is what its torch compiles for, "" for that of the target.
    Without `checks` nothing here can run the code, and its artifacts come unchecked. `origin` is
    what they tell of that.
    """

    command: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    checks: bool = True
    origin: str = BUILT_HERE


HERE = Elsewhere()


def worker_environment(folder: Path, machine: Machine, threads: int = 1) -> dict[str, str]:
    """Return the environment of a worker that keeps its files in `folder`.

    torch finds a compiler, CUDA's headers and the driver in it. It starts at most `threads`
    processes that compile; by itself, each worker would start one for every core.
    """
    environment = {
        **python_environment(),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        # torch may have set it in this process, to a folder that other users can take
        "TRITON_CACHE_DIR": str(folder / "cache" / "triton"),
        # a killed compiler leaves files: they go with the folder
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
    }
    if machine.cxx and sys.platform != "win32":
        named = environment.get("CXX", machine.cxx)
        environment["CXX"] = _compiler(folder, named, code_level(machine))
    if machine.device_type == "cuda":
        environment["ATEN_CPU_CAPABILITY"] = "default"  # torch then asks for no vector units
        environment |= _for_gpu(folder, machine)
    return environment


def code_level(machine: Machine) -> str:
    """Return the instruction set that the C++ part of code for `machine` may use.

    Code for a GPU computes nothing in C++: it can do with what every processor has.
    """
    if machine.device_type == "cpu":
        return machine.capability
    return "x86-64-v2" if is_x86_64() else ""


def made_with(machine: Machine) -> dict[str, str | None]:
    """Return what an artifact tells of where it was made; only `cpu` decides where it may run."""
    return {
        "device": machine.device_name,
        "triton": machine.triton,
        "compiler": machine.cxx,
        "cpu": code_level(machine),
    }


def _compiler(folder: Path, compiler: str, level: str) -> str:
    """Return the path of a C++ compiler that keeps to `level`, where that is a level of x86-64.

    It has the name of the real one, by which torch tells compilers apart.
    """
    if level not in _FLAGS:
        return compiler
    script = folder / "compiler" / Path(compiler).name
    if not script.exists():
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            _COMPILER.format(compiler=shlex.quote(compiler), flags=_FLAGS[level]), encoding="utf-8"
        )
        script.chmod(0o700)
    return str(script)


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

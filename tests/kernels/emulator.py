"""Launches the kernels on the CPU: their own sources, compiled by g++ with emulation.cpp.

It watches what they do. A kernel that reads or writes outside of the tensors that it was given,
writes a byte twice or leaves one out, or waits for threads that never come, raises Misbehaved.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from lib_accel.compile.backends.kernels import nvrtc
from lib_accel.compile.backends.kernels.operations import Kernels

GLOBAL = re.compile(
    r"^(?:extern \"C\" __global__|[A-Z_]+(?:\([^)]*\))?) .*?(\w+)\(const (\w+) a\)", re.M
)
"""How a kernel is written: its name, and the struct that it takes."""

DTYPES = tuple(nvrtc.ELEMENTS)


class Misbehaved(AssertionError):
    """A kernel did what no kernel may do."""


def kernels_of(text: str) -> dict[str, str]:
    """Return the kernels in the sources: the struct that each takes, by its name."""
    return dict(GLOBAL.findall(text))


def build(folder: Path, compiler: str) -> None:
    """Compile the kernels for each dtype, at once. Raises subprocess.CalledProcessError."""
    cuda = "\n".join(f'#line 1 "{name}"\n{text}' for name, text in nvrtc.sources().items())
    ours = Path(__file__).with_name("emulation.cpp").read_text(encoding="utf-8")
    calls = [
        f'extern "C" const char* run_{name}(const void* given, const unsigned* grid, '
        "unsigned threads, const Tensor* all, int count) {\n"
        f"  kernel = [](const void* p) {{ {name}(*(const {struct}*)p); }};\n"
        "  arguments = given, tensors = all, tensor_count = count, *error = 0;\n"
        "  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {threads, 1, 1};\n"
        "  run_grid();\n  return error;\n}\n"
        for name, struct in kernels_of(cuda).items()
    ]
    source = folder / "kernels.cpp"
    source.write_text(ours + cuda + "".join(calls), encoding="utf-8")
    options = ["-std=c++14", "-O1", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE"]
    running = [
        subprocess.Popen(
            [compiler, *options, f"-DELEMENT={number}", str(source), "-o", str(library(folder, d))],
            stderr=subprocess.PIPE,
            text=True,
        )
        for d, number in nvrtc.ELEMENTS.items()
    ]
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, compiler, stderr=errors)


def library(folder: Path, dtype: torch.dtype) -> Path:
    return folder / f"{str(dtype).removeprefix('torch.')}.so"


class Range(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("written", ctypes.c_void_p),
    )


class Emulator:
    """A Launcher for the CPU, with as many multiprocessors as asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype, multiprocessors: int) -> None:
        self.device = torch.device("cpu")
        self.multiprocessors = multiprocessors
        self.given: list[Tensor] = []
        self.launched: list[str] = []
        self._library = ctypes.CDLL(str(library(folder, dtype)))

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, arguments: bytes) -> None:
        known = {t.data_ptr(): t for t in self.given}
        written = {p: torch.zeros(t.nbytes, dtype=torch.uint8) for p, t in known.items()}
        ranges = (Range * len(known))(
            *(Range(p, t.nbytes, written[p].data_ptr()) for p, t in known.items())
        )
        run = self._library[f"run_{name}"]
        run.restype = ctypes.c_char_p
        grids = (ctypes.c_uint * 3)(*grid)
        if error := run(arguments, grids, threads, ranges, len(known)):
            raise Misbehaved(f"{name}: {error.decode()}")
        for pointer, counts in written.items():
            if counts.any() and not (counts == 1).all():
                missing = int((counts == 0).sum())
                raise Misbehaved(
                    f"{name}: of {len(counts)} bytes, {missing} were not written and "
                    f"{int((counts > 1).sum())} more than once ({tuple(known[pointer].shape)})"
                )
        self.launched.append(name)


class EmulatedKernels(Kernels):
    """The kernels on the CPU."""

    launcher: Emulator

    def __init__(self, folder: Path, dtype: torch.dtype, multiprocessors: int = 2) -> None:
        super().__init__(Emulator(folder, dtype, multiprocessors), dtype)

    def pointers(self, *tensors: Tensor | None) -> list[int]:
        """Remember what the kernels may touch. (Views that are not contiguous are never given.)"""
        self.launcher.given += [t for t in tensors if t is not None]
        return super().pointers(*tensors)

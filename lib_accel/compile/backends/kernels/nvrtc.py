"""Compiles the kernels with NVRTC, the compiler in a library that every CUDA build of torch brings.

Neither a card nor a toolkit is needed. The interface is that of NVIDIA's documentation, "NVRTC":
https://docs.nvidia.com/cuda/nvrtc. nvrtcGetSupportedArchs is there from CUDA 11.2 on.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ....errors import BackendUnavailable, CompileFailed, printable_lines
from .launching import joined

SOURCES = Path(__file__).with_name("cuda")
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""The values of ELEMENT in the sources."""


def version() -> str:
    """Return the version of NVRTC, as `12.8`. Raises BackendUnavailable where there is none."""
    return _Nvrtc().version()


def architecture(device: torch.device) -> str:
    """Return what the kernels are compiled for, so that `device` can run them, as `sm_86`.

    Raises BackendUnavailable, with the reason, where they cannot be compiled for it.
    """
    if device.type != "cuda":
        raise BackendUnavailable(f"these kernels run on NVIDIA cards, and the device is {device}")
    name, capability = torch.cuda.get_device_name, torch.cuda.get_device_capability
    return architecture_for(name(device), capability(device))


def architecture_for(name: str, capability: tuple[int, int]) -> str:
    """Return what the kernels are compiled for, so that a card `name` can run them.

    Raises BackendUnavailable as `architecture` does.
    """
    nvrtc = _Nvrtc()
    if found := best_architecture(capability, nvrtc.architectures()):
        return found
    raise BackendUnavailable(
        f"{name} has compute capability {capability[0]}.{capability[1]}, "
        f"for which NVRTC {nvrtc.version()} makes no code"
    )


def best_architecture(capability: tuple[int, int], known: Sequence[int]) -> str | None:
    """Return the architecture to compile for, among those that NVRTC knows (86 for 8.6).

    Machine code (sm_) runs on cards of the same major and no smaller minor number. For a card that
    is newer than all of them it is PTX (compute_), which the driver compiles when it loads it.
    """
    card = 10 * capability[0] + capability[1]
    older = [each for each in known if each <= card]
    if not older:
        return None
    return f"{'sm' if max(older) // 10 == capability[0] else 'compute'}_{max(older)}"


def sources() -> dict[str, str]:
    """Return the source texts by file name; the one that the others need comes first."""
    files = sorted(SOURCES.glob("*.cu"), key=lambda file: (file.stem != "prelude", file.name))
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def compile_kernels(arch: str, dtype: torch.dtype) -> bytes:
    """Compile all kernels for a dtype; return cubins for `sm_...`, PTX for `compute_...`, joined.

    Takes 1.3 to 1.5 s of the processor, on two threads. NVRTC may be called from several: up to
    11.4 it lets one of them compile at a time, from 11.5 on it goes through its stages side by side
    (https://developer.nvidia.com/blog/reducing-application-build-times-using-cuda-c-compilation-aids).
    Raises BackendUnavailable where NVRTC is missing, CompileFailed where it refuses.
    """
    if dtype not in ELEMENTS:
        raise CompileFailed(f"there are no kernels for {dtype}; expected {[*map(str, ELEMENTS)]}")
    options = [f"--gpu-architecture={arch}", "--std=c++14", f"-DELEMENT={ELEMENTS[dtype]}"]
    kind, nvrtc = "CUBIN" if arch.startswith("sm_") else "PTX", _Nvrtc()
    prelude, *texts = (f'#line 1 "{name}"\n{text}' for name, text in sources().items())
    texts.sort(key=len, reverse=True)  # what takes longest begins first
    with ThreadPoolExecutor(2, "accel-nvrtc") as pool:  # calls by ctypes release the GIL
        return joined(pool.map(lambda text: nvrtc.compile(prelude + text, options, kind), texts))


class _Nvrtc:
    """The library, with each error code turned into an exception that says it in a sentence."""

    def __init__(self) -> None:
        self._library = _load()

    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def architectures(self) -> list[int]:
        """Return the architectures that it makes machine code for, as 86."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return sorted(found)

    def compile(self, text: str, options: Sequence[str], kind: str) -> bytes:
        """Compile a program; `kind` is CUBIN or PTX."""
        program = ctypes.c_void_p()
        name = b"kernels.cu"
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), name, 0, None, None)
        try:
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            code = self._library.nvrtcCompileProgram(program, len(options), given)
            if code:
                log = self._read("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
                raise CompileFailed(
                    f"NVRTC {self.version()} does not compile the kernels for {options[0]}: "
                    f"{self._sentence(code)}\n{printable_lines(log.strip())}"
                )
            return self._read(kind, program)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _read(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        out = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, out)
        return out.raw

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name, None)
        if function is None:
            raise BackendUnavailable(f"NVRTC has no {name}; expected that of CUDA 11.2 or later")
        if code := function(*arguments):
            raise CompileFailed(f"NVRTC's {name} failed: {self._sentence(code)}")

    def _sentence(self, code: int) -> str:
        """Return NVRTC's own words for an error, as `NVRTC_ERROR_COMPILATION`, and its number."""
        words = self._library.nvrtcGetErrorString
        words.restype = ctypes.c_char_p
        return f"{(words(code) or b'an unknown error').decode(errors='replace')} ({code})"


def _load() -> ctypes.CDLL:
    """Load NVRTC. Raises BackendUnavailable where there is none for this torch."""
    if torch.version.hip:
        raise BackendUnavailable(
            "this torch is for ROCm, and the kernels were written for NVIDIA's compiler alone"
        )
    if torch.version.cuda is None:
        raise BackendUnavailable("this torch is a build without CUDA")
    major = torch.version.cuda.partition(".")[0]
    found = find_library(Path(torch.__file__).parent, major)
    try:
        if found is None:  # of a toolkit or of conda, by the system's own search
            return ctypes.CDLL(system_name(major))
        if sys.platform == "win32":  # NVRTC looks for this one by its name alone
            for builtins in found.parent.glob("nvrtc-builtins64_*.dll"):
                ctypes.CDLL(str(builtins))
        return ctypes.CDLL(str(found))
    except OSError as error:
        raise BackendUnavailable(
            f"NVRTC, NVIDIA's run-time compiler for CUDA {major}, cannot be loaded ({error}); "
            f"install it: {sys.executable} -m pip install {package(major)}"
        ) from error


def find_library(torch_folder: Path, major: str, windows: bool | None = None) -> Path | None:
    """Return the NVRTC of CUDA `major` (12 for 12.x), beside torch or in it; None without one.

    NVIDIA's wheels put it into `nvidia/`, torch's wheels for Windows and the older ones for Linux
    into `torch/lib`. That of another major version may make code that the driver does not load.
    """
    windows = sys.platform == "win32" if windows is None else windows
    # libnvrtc-672ee683.so.11.2 in torch's own; not nvrtc-builtins, nor the slower *.alt
    pattern = f"nvrtc64_{major}[0-9]_0.dll" if windows else f"libnvrtc*.so.{major}*"
    nvidia = torch_folder.parent / "nvidia"
    folders = [f"cu{major}/lib", f"cu{major}/bin/x86_64", f"cu{major}/bin"]
    folders += ["cuda_nvrtc/lib", "cuda_nvrtc/bin"]
    for folder in (*(nvidia / each for each in folders), torch_folder / "lib"):
        for file in sorted(folder.glob(pattern)):
            if "builtins" not in file.name and ".alt" not in file.name:
                return file
    return None


def system_name(major: str) -> str:
    """Return the name by which a system finds NVRTC of CUDA `major`."""
    if sys.platform == "win32":
        return f"nvrtc64_{'112' if major == '11' else f'{major}0'}_0.dll"
    return "libnvrtc.so.11.2" if major == "11" else f"libnvrtc.so.{major}"


def package(major: str) -> str:
    """Return the name of NVIDIA's package with NVRTC of CUDA `major`, on PyPI."""
    return f"nvidia-cuda-nvrtc-cu{major}" if int(major) < 13 else "nvidia-cuda-nvrtc"

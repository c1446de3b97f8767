"""Loads and launches kernels through the CUDA driver, in torch's context and on its streams.

The interface is that of NVIDIA's documentation, "CUDA Driver API". The driver is the one that torch
has loaded already.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

from ....errors import ArtifactRejected, BackendUnavailable
from .launching import KERNELS, parted
from .operations import Kernels

INVALID_CONTEXT = 201
"""CUDA_ERROR_INVALID_CONTEXT: the thread has not used the card before."""

NOT_FOUND = 500
"""CUDA_ERROR_NOT_FOUND: the module has no kernel of this name."""


def load_kernels(code: bytes, device: torch.device, dtype: torch.dtype) -> Kernels:
    """Load what `compile_kernels` returned for `dtype` onto `device`.

    Raises BackendUnavailable where there is no driver, ArtifactRejected where it refuses the code.
    """
    return Kernels(DriverLauncher(code, device), dtype)


class DriverLauncher:
    """The kernels on a card; see `launching.Launcher`.

    Their modules stay loaded as long as the process lives: a CUDA graph may hold kernels of them.
    """

    def __init__(self, code: bytes, device: torch.device) -> None:
        self.device = torch.device("cuda", _index(device))
        properties = torch.cuda.get_device_properties(self.device)
        self.multiprocessors = properties.multi_processor_count
        self._driver = _Driver()
        with torch.cuda.device(self.device):
            self._context = self._driver.primary_context(self.device.index)
            self._driver.call("cuCtxSetCurrent", self._context)
            modules = [self._driver.load(part) for part in parted(code)]
            # now, and not in the middle of the recording of a CUDA graph
            self._functions = {name: self._driver.function(modules, name) for name in KERNELS}

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, arguments: bytes) -> None:
        """Launch a kernel on torch's current stream; see `Launcher.launch`."""
        if torch.cuda.current_device() != self.device.index:
            with torch.cuda.device(self.device):
                return self.launch(name, grid, threads, arguments)
        # torch.cuda.current_stream() takes longer than all else here
        stream = ctypes.c_void_p(torch._C._cuda_getCurrentRawStream(self.device.index))
        parameters = (ctypes.c_char_p * 1)(arguments)  # the address of the only parameter
        function = self._functions[name]
        launch = self._driver.library.cuLaunchKernel
        code = launch(function, *grid, threads, 1, 1, 0, stream, parameters, None)
        if code == INVALID_CONTEXT:
            self._driver.call("cuCtxSetCurrent", self._context)
            code = launch(function, *grid, threads, 1, 1, 0, stream, parameters, None)
        if code:
            raise RuntimeError(f"the kernel {name} was not launched: {self._driver.sentence(code)}")
        return None


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


class _Driver:
    """The driver's library, with each error code turned into an exception with a sentence."""

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            # on 64-bit Windows there is one calling convention, so CDLL serves there too
            self.library = ctypes.CDLL(name)
        except OSError as error:
            raise BackendUnavailable(f"NVIDIA's driver cannot be loaded: {error}") from error

    def primary_context(self, index: int) -> ctypes.c_void_p:
        """Return the context that torch uses on the card `index`."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        return context

    def load(self, code: bytes) -> ctypes.c_void_p:
        """Load a cubin or PTX. Raises ArtifactRejected where the driver refuses it."""
        module = ctypes.c_void_p()
        error = self.library.cuModuleLoadData(ctypes.byref(module), code)
        if error:
            raise ArtifactRejected(
                f"the driver does not load the kernels: {self.sentence(error)}; "
                "they are made anew when they are discarded"
            )
        return module

    def function(self, modules: list[ctypes.c_void_p], name: str) -> ctypes.c_void_p:
        """Return the kernel of the modules, loaded. Raises ArtifactRejected where none has it."""
        found, value, code = ctypes.c_void_p(), ctypes.c_int(), NOT_FOUND
        for module in modules:
            code = self.library.cuModuleGetFunction(ctypes.byref(found), module, name.encode())
            if code != NOT_FOUND:
                break
        # a driver that loads a kernel at its first use loads it for this question
        code = code or self.library.cuFuncGetAttribute(ctypes.byref(value), 0, found)
        if code:
            raise ArtifactRejected(f"the kernel {name} is not loaded: {self.sentence(code)}")
        return found

    def call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self.library, name)(*arguments):
            raise RuntimeError(f"the driver's {name} failed: {self.sentence(code)}")

    def sentence(self, code: int) -> str:
        """Return the driver's own words for an error: its name, its number, what it means."""
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        self.library.cuGetErrorName(code, ctypes.byref(name))
        self.library.cuGetErrorString(code, ctypes.byref(text))
        words = [(each.value or b"unknown").decode(errors="replace") for each in (name, text)]
        return f"{words[0]} ({code}): {words[1]}"

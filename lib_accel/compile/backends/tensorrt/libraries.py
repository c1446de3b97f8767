"""Finds TensorRT for RTX, which the user installs, and speaks for its logger."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

MODULE = "tensorrt_rtx"
NO_BOXES = 0x1 | 0x2 | 0x8000
"""SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX and SEM_NOOPENFILEERRORBOX of Windows."""

_log = logging.getLogger(__name__)


def version() -> str | None:
    """Return the version of TensorRT for RTX that is installed; None where there is none."""
    if importlib.util.find_spec(MODULE) is None:
        return None
    try:
        return importlib.metadata.version(MODULE)
    except importlib.metadata.PackageNotFoundError:  # unpacked by hand
        return str(load().__version__)


def why_not() -> str:
    """Return, where `version` gives None, which command installs TensorRT for RTX here."""
    command = f'"{sys.executable}" -m pip install {MODULE}'
    if importlib.util.find_spec("tensorrt") is not None:
        return (
            "TensorRT for RTX is not installed (the ordinary TensorRT is; its engines would be for "
            f"one card alone): {command}"
        )
    return f"TensorRT for RTX is not installed: {command}"


def load() -> ModuleType:
    """Import TensorRT for RTX. Raises ImportError where it, or a library of it, is missing."""
    with no_message_boxes():
        return importlib.import_module(MODULE)


@contextlib.contextmanager
def no_message_boxes() -> Iterator[None]:
    """Have Windows raise, in this thread, where it would show a box and wait for a click.

    That is where a library lacks another one, and where a process crashes.
    """
    if sys.platform != "win32":
        yield
        return
    before, kernel = ctypes.c_uint(), ctypes.windll.kernel32
    kernel.SetThreadErrorMode(NO_BOXES, ctypes.byref(before))
    try:
        yield
    finally:
        kernel.SetThreadErrorMode(before, None)


@functools.cache
def logger_of(trt: ModuleType) -> Any:
    """Return the logger of TensorRT, which speaks through ours and keeps its newest error.

    There is one, because TensorRT goes on with the first that it was given, in the whole process.
    """

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.ERROR, self.INTERNAL_ERROR):
                self.error = " ".join(message.split())
                _log.error("TensorRT: %s", self.error)
            elif severity == self.WARNING:
                _log.debug("TensorRT: %s", message)

        def last_error(self) -> str:
            """Return the newest error, in one line, and forget it."""
            error, self.error = self.error, ""
            return error or "it gives no reason"

    return Logger()

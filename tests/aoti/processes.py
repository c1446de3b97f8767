"""Find and await the processes of a compile job, for tests that kill them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
PATIENCE_S = 240.0  # on a busy machine


def until(what: str, found: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Return what `found` returns as soon as it is true; fail after `patience_s`."""
    end = time.monotonic() + patience_s
    while not (value := found()):
        assert time.monotonic() < end, f"waited {patience_s:.0f} s in vain for {what}"
        time.sleep(0.05)
    return value


def using(folder: Path) -> list[psutil.Process]:
    """Return the processes, compilers too, whose compile cache is in or below `folder`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            cache = process.environ().get("TORCHINDUCTOR_CACHE_DIR", "")
            if (
                process.pid != os.getpid()
                and Path(cache).is_relative_to(folder)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def workers(folder: Path) -> list[psutil.Process]:
    """Return the worker processes with files in or below `folder`."""
    return [p for p in using(folder) if "lib_accel.compile.backends.aoti.worker" in _words(p)]


def compilers(folder: Path) -> list[psutil.Process]:
    """Return the processes that the workers started."""
    return [p for p in using(folder) if "lib_accel.compile.backends.aoti.worker" not in _words(p)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []

"""The parent's side of a compiling child process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import torch

from ...model import specs
from ..machine import Machine
from ..target import Target
from ..units import unit_key
from .process_tree import end

_ROOT = Path(__file__).resolve().parents[3]


ROOM_BYTES = 6 * 2**30


def worker_count(device: torch.device) -> int:
    """One a core up to four; on a GPU two, or one where less than ROOM_BYTES are free.

    Each holds a context of some 400 MB there, and to check SDXL's largest unit 1 GB more, while images are being made.
    """
    most = 4
    if device.type == "cuda":
        most = 2 if torch.cuda.mem_get_info(device)[0] > ROOM_BYTES else 1
    return min(most, os.cpu_count() or 1)


_APART = (
    subprocess.CREATE_NO_WINDOW | subprocess.BELOW_NORMAL_PRIORITY_CLASS
    if sys.platform == "win32"
    else 0
)
"""On Windows: closing the WebUI's console must not end a worker, which clears up after itself. Making images comes first."""


def _environment(folder: Path, machine: Machine) -> dict[str, str]:
    """What a worker and its compilers find: this package, a place for their files, a compiler, CUDA's headers and driver."""

    def also(name: str, *more: Path) -> dict[str, str]:
        return {name: os.pathsep.join([*filter(None, [os.environ.get(name)]), *map(str, more)])}

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        **dict.fromkeys(
            ("TMPDIR", "TEMP", "TMP"), str(folder)
        ),  # a killed compiler leaves files: they go with the folder
        "PYTHONUNBUFFERED": "1",
    }
    if machine.cxx and sys.platform != "win32":
        environment.setdefault("CXX", machine.cxx)  # torch itself looks for g++ alone
    if machine.device_type == "cuda":
        if sys.platform != "win32" or os.environ.get(
            "INCLUDE"
        ):  # empty: clang-cl looks for MSVC's by itself, and then would not
            environment |= also(
                "INCLUDE" if sys.platform == "win32" else "CPATH",
                Path(__file__).with_name("include"),
            )
        environment |= {"CUDA_HOME": machine.gpu_headers} if machine.gpu_headers else {}
        driver = _driver(folder)
        environment |= also("LIBRARY_PATH", *driver) if driver else {}
    return environment


def _driver(folder: Path) -> list[Path]:
    """A folder with `libcuda.so`, which is linked against. Drivers bring `libcuda.so.1` alone, or keep it where no linker looks (WSL)."""
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
            return [link.parent]
    return []


class Worker:
    """One child. Its answers arrive in `results` as (worker, answer); (worker, None) when it has ended."""

    def __init__(
        self,
        folder: Path,
        results: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]],
        threads: int,
        machine: Machine,
    ):
        self.layer: specs.Spec | None = None
        self.threads, self.folder, self._results = threads, folder, results
        self._log = folder / f"worker-{id(self)}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lib_accel.compile.aoti.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=_environment(folder, machine),
                start_new_session=True,
                creationflags=_APART,
            )
        self._lower_priority()
        threading.Thread(target=self._read, daemon=True).start()

    def give(self, layer: specs.Spec, target: Target) -> None:
        self.layer = layer
        task = {
            "unit": specs.spec_to_dict(layer),
            "dtype": str(target.dtype).removeprefix("torch."),
            "device": str(target.device),
            "path": str(self.folder / f"{unit_key(layer)}.pt2"),
            "threads": self.threads,
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died: the reader says so

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = None
            with contextlib.suppress(
                ValueError
            ):  # half a line of one that was killed, or printed before `main` began
                answer = json.loads(line)
            if isinstance(answer, dict):
                self._results.put((self, answer))
        self._process.wait()
        self._results.put((self, None))

    def _lower_priority(self) -> None:
        """Making images comes first."""
        with contextlib.suppress(
            psutil.Error
        ):  # it has ended already, or the system does not allow it: only a courtesy
            if sys.platform != "win32":
                psutil.Process(self._process.pid).nice(10)

    def exit_code(self) -> int | None:
        return self._process.poll()

    def log_tail(self, lines: int = 6) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return " | ".join(text.strip().splitlines()[-lines:]) or "it said nothing"

    def kill(self) -> None:
        """End the child and everything it started."""
        end(self._process.pid)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a dead child
                    pipe.close()

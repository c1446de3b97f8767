"""The parent's side of a worker process that compiles (worker.py)."""

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

from ....model import specs
from ....store import Artifact
from ...machine import RESERVE, Machine
from ...target import Target
from ...units import UnitModule, unit_key
from ..isolated_python import python_command
from ..process_tree import end, remove
from .worker_environment import HERE, Elsewhere, worker_environment

WORKER = "lib_accel.compile.backends.aoti.worker"

CONTEXT_BYTES = 512 * 2**20
"""Video memory that a worker takes at least: what CUDA and its libraries keep for a process."""

# On Windows: closing the WebUI's console must not end a worker, which cleans up after itself; and
# making images comes first.
_APART = (
    subprocess.CREATE_NO_WINDOW | subprocess.BELOW_NORMAL_PRIORITY_CLASS
    if sys.platform == "win32"
    else 0
)

Answer = dict[str, Any]
"""One line from a worker; worker.py describes it."""


def worker_count(device: torch.device) -> int:
    """Return how many workers serve at most: one a core, up to four; two on a GPU."""
    return min(2 if device.type == "cuda" else 4, os.cpu_count() or 1)


def worker_bytes(target: Target) -> int:
    """Return the video memory that a worker takes at most: to check the largest unit.

    It then holds the unit's weights, and some of them once more in float32.
    """
    largest = max(sum(s.numel() for s in UnitModule(unit).shapes()) for unit in target.units)
    return CONTEXT_BYTES + 2 * largest * target.dtype.itemsize


def free_for_workers(device: torch.device) -> int:
    """Return the video memory that other processes can have, beside what must stay free."""
    return torch.cuda.mem_get_info(device)[0] - RESERVE


class Worker:
    """One child process that compiles or checks one unit at a time, or compiles for `elsewhere`.

    `headers`: it compiles torch's C++ headers first, once for all its units.
    Its answers arrive in `results` as (worker, answer); (worker, None) when it has ended.
    """

    def __init__(
        self,
        folder: Path,
        results: Results,
        threads: int,
        machine: Machine,
        elsewhere: Elsewhere = HERE,
        headers: bool = True,
    ):
        self.unit: specs.Spec | None = None
        self.artifact: Artifact | None = None  # whose code is checked
        self.given = 0  # units
        self._elsewhere, self._headers = elsewhere, headers
        self._killed = False
        self._threads, self._folder, self._results = threads, folder, results
        self._log = folder / f"worker-{id(self)}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*(elsewhere.command or python_command(WORKER)), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,  # for what torch starts: it is private
                env={**worker_environment(folder, machine, threads), **elsewhere.variables},
                start_new_session=True,
                creationflags=_APART,
            )
        self._lower_priority()
        threading.Thread(target=self._read, daemon=True).start()

    def give(self, unit: specs.Spec, target: Target) -> None:
        """Let the worker compile a unit, and check it unless it is for another card."""
        stages = ["compile", "check"] if self._elsewhere.checks else ["compile"]
        self.unit, self.artifact, self.given = unit, None, self.given + 1
        self._ask(unit, target, self._output, stages)

    def check(self, unit: specs.Spec, target: Target, artifact: Artifact, code: Path) -> None:
        """Let the worker check the code of a unit, which lies in the folder `code`."""
        self.unit, self.artifact = unit, artifact
        self._ask(unit, target, code, ["check"])

    def _ask(self, unit: specs.Spec, target: Target, folder: Path, stages: list[str]) -> None:
        task = {
            "unit": specs.spec_to_dict(unit),
            "dtype": str(target.dtype).removeprefix("torch."),
            "device": self._elsewhere.device or str(target.device),
            "folder": str(folder),
            "threads": self._threads,
            "stages": stages,
            "headers": self._headers,
        }
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: `_read` reports that
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()

    def files(self) -> dict[str, Path]:
        """Return the files of the finished unit: name in the artifact, and where it is."""
        found = (file for file in self._output.rglob("*") if file.is_file())
        return {file.relative_to(self._output).as_posix(): file for file in found}

    def take_back(self) -> None:
        """Delete the files of the finished unit; the worker is free."""
        remove(self._output, patience_s=0)
        self.unit = self.artifact = None

    @property
    def _output(self) -> Path:
        assert self.unit is not None
        return self._folder / unit_key(self.unit)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = None
            # half a line of a killed worker, or text that was printed before `main` began
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
            if isinstance(answer, dict):
                self._results.put((self, answer))
        self._process.wait()
        self._results.put((self, None))

    def _lower_priority(self) -> None:
        """Let the making of images come first."""
        # where it has ended already or the system does not allow it: only a courtesy
        with contextlib.suppress(psutil.Error):
            if sys.platform != "win32":
                psutil.Process(self._process.pid).nice(10)

    def exit_code(self) -> int | None:
        """Return how the process ended; None while it runs."""
        return self._process.poll()

    def log_tail(self, lines: int = 6) -> str:
        """Return the last lines that the worker and its compilers printed."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return " | ".join(text.strip().splitlines()[-lines:]) or "it printed nothing"

    def kill(self) -> None:
        """End the process and everything it started, once: its number may be another's later."""
        if self._killed:
            return
        self._killed = True
        end(self._process.pid)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a dead process
                    pipe.close()


Results = queue.SimpleQueue[tuple[Worker, Answer | None]]
"""Where the answers of all workers of a job arrive."""

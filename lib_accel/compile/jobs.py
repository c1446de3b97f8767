"""Compiling in the background: a thread that can be watched and stopped."""

from __future__ import annotations

import atexit
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import AccelError, CompileFailed
from ..model import specs
from .target import Target
from .units import UnitFn

CompiledUnits = Mapping[specs.Spec, UnitFn]
"""Compiled units, by the spec of the layers that they compute."""

EXIT_WAIT_S = 30.0
"""How long the end of the process waits for a job."""

ESTIMATE_AFTER_S = 2.0
"""Before that, the pace says too little about the time that remains."""


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    stage: str  # as "compiling ResBlock 320 -> 640"; "done" or "failed" at the end
    elapsed_s: float
    fraction: float | None  # 0 to 1; None while it is not known
    remaining_s: float | None  # estimated from the pace so far

    def to_dict(self) -> dict[str, object]:
        """Return what the API shows of it."""
        elapsed = round(self.elapsed_s, 1)
        return {"stage": self.stage, "elapsed_s": elapsed, "fraction": self.fraction}


class Job(ABC):
    """Makes the units of `target` in a thread, which runs `work`.

    `compiled` counts the units that were compiled, without those that existed already.
    """

    def __init__(self, name: str, target: Target):
        self.target = target
        self.compiled = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._cancelled = threading.Event()
        self._started = time.monotonic()
        self._ended: float | None = None
        self._stage = "starting"
        self._fraction: float | None = None
        self._units: CompiledUnits | None = None
        self._error: AccelError | None = None

    def start(self) -> Job:
        """Start the thread and return this job."""
        self._started = time.monotonic()
        atexit.register(self._at_exit)
        self._thread.start()
        return self

    def _at_exit(self) -> None:
        """Stop the thread: a compiler in it would abort an interpreter that shuts down."""
        self.cancel()
        self._thread.join(EXIT_WAIT_S)

    @abstractmethod
    def work(self) -> CompiledUnits:
        """Make the units, calling `report` often. Raises AccelError where that fails."""

    def report(self, stage: str, fraction: float | None) -> None:
        """Set the stage and the fraction of `progress`. Raises CompileFailed after `cancel`."""
        self._stage, self._fraction = stage, fraction
        if self.cancelled:
            raise CompileFailed("cancelled")

    def progress(self) -> Progress:
        """Return how far the job is. It can be asked from any thread."""
        elapsed = (self._ended or time.monotonic()) - self._started
        fraction = self._fraction
        remaining = None
        if fraction and elapsed > ESTIMATE_AFTER_S:
            remaining = elapsed / fraction - elapsed
        return Progress(self._stage, elapsed, fraction, remaining)

    @property
    def done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self._ended is not None

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop soon; `result` then raises CompileFailed."""
        self._cancelled.set()

    def take_count(self) -> int:
        """Return how many units were compiled since the last call, whichever UNet made it."""
        count, self.compiled = self.compiled, 0
        return count

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end, at most `timeout_s` seconds. Return whether it has come."""
        self._thread.join(timeout_s)
        return self.done

    def result(self) -> CompiledUnits:
        """Wait for the end and return the units. Raises the AccelError that the job ended with."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._units is not None
        return self._units

    def _run(self) -> None:
        try:
            self._units = self.work()
            self._stage, self._fraction = "done", 1.0
        except AccelError as error:
            self._stage, self._error = "failed", error
        except Exception as error:  # noqa: BLE001  nobody is above a thread: `result` raises it
            failure = CompileFailed(f"unexpected {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._stage, self._error = "failed", failure
        finally:
            self._ended = time.monotonic()
            atexit.unregister(self._at_exit)

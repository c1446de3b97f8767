"""Work that goes on beside image making: a thread with a progress that can be read at any time, and a way to stop it."""

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

Code = Mapping[specs.Spec, UnitFn]
"""Compiled functions by the spec of the unit they compute."""


@dataclass(frozen=True)
class Progress:
    stage: str
    elapsed_s: float
    fraction: float | None  # 0 to 1; None while it cannot be told
    remaining_s: float | None  # an estimate from the pace so far

    def to_dict(self) -> dict[str, object]:
        return {
            "stage": self.stage,
            "elapsed_s": round(self.elapsed_s, 1),
            "fraction": self.fraction,
        }


EXIT_WAIT_S = 30.0


class Job(ABC):
    """Runs `work` in a thread. `result` gives the code, or raises what went wrong."""

    def __init__(self, name: str, target: Target):
        self.target = target
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._cancelled = threading.Event()
        self._started = time.monotonic()
        self._ended: float | None = None
        self._stage = "starting"
        self._fraction: float | None = None
        self.compiled = 0  # units really compiled, not taken over
        self._code: Code | None = None
        self._error: AccelError | None = None

    def start(self) -> Job:
        self._started = time.monotonic()
        atexit.register(self._at_exit)
        self._thread.start()
        return self

    def _at_exit(self) -> None:
        """A thread inside a compiler while the interpreter is torn down aborts the process: let it come to a stop first."""
        self.cancel()
        self._thread.join(EXIT_WAIT_S)

    @abstractmethod
    def work(self) -> Code:
        """Do it, calling `report` on the way and ending soon after `self._cancelled` is set."""

    def report(self, stage: str, fraction: float | None) -> None:
        self._stage, self._fraction = stage, fraction
        if self.cancelled:
            raise CompileFailed("cancelled")

    def progress(self) -> Progress:
        elapsed = (self._ended or time.monotonic()) - self._started
        fraction = self._fraction
        remaining = elapsed / fraction - elapsed if fraction and elapsed > 2 else None
        return Progress(self._stage, elapsed, fraction, remaining)

    @property
    def done(self) -> bool:
        return self._ended is not None

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop soon; `result` then raises CompileFailed."""
        self._cancelled.set()

    def take_count(self) -> int:
        """Units compiled since it was last asked: several engines may wait for one job."""
        count, self.compiled = self.compiled, 0
        return count

    def wait(self, timeout_s: float | None = None) -> bool:
        """True when it has ended."""
        self._thread.join(timeout_s)
        return self.done

    def result(self) -> Code:
        """The code of an ended job. Raises the AccelError it ended with."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._code is not None
        return self._code

    def _run(self) -> None:
        try:
            self._code = self.work()
            self._stage, self._fraction = "done", 1.0
        except AccelError as e:
            self._stage, self._error = "failed", e
        except Exception as e:  # noqa: BLE001  a thread has nobody to raise to: `result` does
            self._stage, self._error = (
                "failed",
                CompileFailed(f"unexpected {type(e).__name__}: {e}"),
            )
            self._error.__cause__ = e
        finally:
            self._ended = time.monotonic()
            atexit.unregister(self._at_exit)

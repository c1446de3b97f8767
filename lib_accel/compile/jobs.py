"""Compiling in the background: a thread that can be watched and stopped."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ..errors import AccelError, CompileFailed
from ..model import specs
from ..model.architecture import Architecture
from .target import Target
from .units import UnitFn

CompiledUnits = Mapping[specs.Spec | Architecture, UnitFn]
"""Compiled units, by the spec of the layers that they compute.

The one of an architecture is a `WholeFn`, which computes a UNet at once.
"""


class WholeFn(Protocol):
    """A compiled UNet: `[x, timesteps, context, *weights]` -> `[B, out_channels, H, W]`.

    Where the architecture takes y, it comes before the weights, which are in the order of the
    UNet's parameters. All are contiguous; timesteps are float32.
    """

    def why_not(self, activations: list[Tensor]) -> str | None:
        """Return why it cannot compute a call of these sizes, or None."""
        ...

    def settled(self, activations: list[Tensor]) -> bool:
        """Return whether calls of these sizes are computed as they will be from now on.

        Before that, none is timed or recorded.
        """
        ...

    @property
    def kept_bytes(self) -> int:
        """Video memory that it keeps only to be faster."""
        ...

    def give_up(self) -> bool:
        """Let that memory go; return whether there was any. Any thread may call it."""
        ...

    def begin_image(self) -> None:
        """Note that from here on weights may be others, also those written through `.data`."""
        ...

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        """Compute. Raises RuntimeError."""
        ...


EXIT_WAIT_S = 30.0
"""How long the end of the process waits for a job."""

TRUSTED_S = 30.0
"""The estimates count as much as the real times of units that took this long."""

LOOK_AGAIN_S = 2.0
"""Between two looks at what another machine compiles."""

LATE = 0.1
"""A unit that takes longer than expected needs this share of its time so far once more."""


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    stage: str  # as "compiling ResBlock 320 -> 640"; "done" or "failed" at the end
    elapsed_s: float
    fraction: float | None = None  # 0 to 1, of the time; None while it is not known
    part: int | None = None  # 1 to `parts`: how many units are done, and one
    parts: int | None = None  # units to compile; None while it is not known
    remaining_s: float | None = None  # estimated; None while it is not known

    def to_dict(self) -> dict[str, object]:
        """Return what the API shows of it."""
        shown = {name: vars(self)[name] for name in ("stage", "part", "parts")}
        for name, digits in (("elapsed_s", 1), ("fraction", 4), ("remaining_s", 1)):
            value = vars(self)[name]
            shown[name] = value if value is None else round(value, digits)
        return shown


Part = TypeVar("Part", bound=Hashable)


class Parts(Generic[Part]):
    """The parts of a job (units, or keys of engines) and the seconds each is expected to take.

    `workers` of them are compiled at a time. It can be asked from any thread.
    """

    def __init__(self, expected: Mapping[Part, float], workers: int = 1):
        self.longest_first = sorted(expected, key=expected.__getitem__, reverse=True)
        self._expected, self._workers = dict(expected), workers
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._began: dict[Part, float] = {}
        self._took: dict[Part, float | None] = {}
        self._fraction = 0.0

    def begin(self, unit: Part, more_s: float = 0.0) -> None:
        """Note that this unit is being compiled, which takes `more_s` seconds on top."""
        with self._lock:
            self._expected[unit] += more_s
            self._began[unit] = time.monotonic()

    def finish(self, unit: Part, seconds: float | None = None) -> None:
        """Note that this unit is there; `seconds` where it was compiled just now."""
        with self._lock:
            self._took[unit] = seconds

    def progress(self, stage: str, elapsed_s: float) -> Progress:
        """Return how far the units are. The fraction never falls."""
        with self._lock:
            now, parts = time.monotonic(), len(self._expected)
            remaining, spent = self._remaining_s(now), now - self._started
            if remaining + spent > 0:
                self._fraction = max(self._fraction, spent / (spent + remaining))
            part = min(len(self._took) + 1, parts)
            return Progress(stage, elapsed_s, self._fraction, part, parts, remaining)

    def _remaining_s(self, now: float) -> float:
        so_far = {u: now - began for u, began in self._began.items() if u not in self._took}
        known = {u: s for u, s in self._took.items() if s is not None}
        known |= {u: s for u, s in so_far.items() if s > self._expected[u]}  # late: at least that
        expected = TRUSTED_S + sum(self._expected[unit] for unit in known)
        pace = (TRUSTED_S + sum(known.values())) / expected
        left = [
            max(seconds * pace - so_far.get(unit, 0.0), LATE * so_far.get(unit, 0.0))
            for unit, seconds in self._expected.items()
            if unit not in self._took
        ]
        return max(max(left, default=0.0), sum(left) / self._workers)


class Job(ABC):
    """Makes the units of `target` in a thread, which runs `work`.

    `compiled` counts the units that were compiled, without those that existed already;
    `waits_for_memory` says whether the job waits for video memory.
    """

    def __init__(self, name: str, target: Target):
        self.target = target
        self.compiled = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._cancelled = threading.Event()
        self._started = time.monotonic()
        self._ended: float | None = None
        self._stage = "starting"
        self.parts: Parts[Any] | None = None  # while they are not known
        self.waits_for_memory = False
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

    def report(self, stage: str) -> None:
        """Set the stage of `progress`. Raises CompileFailed after `cancel`."""
        self._stage = stage
        if self.cancelled:
            raise CompileFailed("cancelled")

    def wait_for_another_machine(self) -> None:
        """Wait a little for what another machine compiles. Raises CompileFailed after `cancel`."""
        self.report("another machine is compiling this")
        self._cancelled.wait(LOOK_AGAIN_S)

    def progress(self) -> Progress:
        """Return how far the job is. It can be asked from any thread."""
        elapsed, parts = (self._ended or time.monotonic()) - self._started, self.parts
        if self.cancelled and not self.done:
            return Progress("cancelling", elapsed)
        now = parts.progress(self._stage, elapsed) if parts else Progress(self._stage, elapsed)
        return replace(now, fraction=1.0, remaining_s=0.0) if self._stage == "done" else now

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

    def give_up_memory(self) -> bool:
        """Give up the video memory that compiling takes; go on when there is room again.

        Return whether it took any. It can be called from any thread.
        """
        return False

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
            self._stage = "done"
        except AccelError as error:
            self._stage, self._error = "failed", error
        except Exception as error:  # noqa: BLE001  nobody is above a thread: `result` raises it
            failure = CompileFailed(f"unexpected {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._stage, self._error = "failed", failure
        finally:
            self._ended = time.monotonic()
            atexit.unregister(self._at_exit)


def stop(jobs: Iterable[Job]) -> list[Target]:
    """Cancel the jobs that run. Return what they are for."""
    running = [job for job in list(jobs) if not (job.done or job.cancelled)]
    for job in running:
        job.cancel()
    return [job.target for job in running]


class Turns:
    """Lets one job at a time go on, in the order in which they ask."""

    def __init__(self) -> None:
        self._waiting: list[object] = []  # the first one has the turn
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self, wait: Callable[[], object]) -> Iterator[None]:
        """Hold the turn. Until it comes, `wait` is called twice a second, and may raise."""
        me = object()
        with self._changed:
            self._waiting.append(me)
        try:
            while not self._comes(me):
                wait()
            yield
        finally:
            with self._changed:
                self._waiting.remove(me)
                self._changed.notify_all()

    def _comes(self, me: object) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting[0] is me, timeout=0.5)

"""A second form of a UNet's engine: with the weights of the loaded checkpoint built in.

TensorRT may find faster kernels for weights that it knows. So after some images with the same
weights, an engine with them is built in the background, where there is memory for a second copy.
It serves while the weights are those, and only if it was measured to be faster; otherwise, as while
a LoRA is merged, the form with weights as inputs does. Where a CUDA graph of that serves, launches
bound the calls, and nothing is built in. Refitting is no way: TensorRT for RTX 1.7
cannot build a whole UNet that can be refitted without a GPU.

Never run on a card.
"""

from __future__ import annotations

import functools
import logging
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ....errors import AccelError
from ....model.precision import relative_error
from ...jobs import CompiledUnits, Job
from ...machine import has_room
from ...target import Target
from .child import build_with
from .engines import Wanted
from .run import Engine, EngineFn

CALLS = 60
"""Calls with the same weights, three images, before they are built in."""

MOST_BYTES = 2 << 30
"""The largest weights: building takes 3.5 times as much of the computer's memory (SD1: 6 GB)."""

TIMED = 5
"""Calls of each form that decide which one serves."""

FASTER = 0.97
"""A form with a second copy of the weights must take no more than this share of the time."""

DIFFERENCE = 1e-2
"""Between two forms that are right; see `runtime/graphs/cache.py`."""

_log = logging.getLogger(__name__)
_version = operator.attrgetter("_version")


class ConstantsJob(Job):
    """Builds and reads an engine with `weights` built in; `size` is then what it takes.

    `sums` are those of the weights as they were copied: somebody may have been changing them.
    """

    def __init__(self, trt: Any, wanted: Wanted, weights: Sequence[Tensor], target: Target):
        super().__init__("accel-tensorrt-constants", target)
        self._trt, self._wanted, self._weights = trt, wanted, weights
        self.size, self.sums = 0, torch.empty(0)

    def work(self) -> CompiledUnits:
        """Return the engine, as a function of the activations alone."""
        wanted, stage = self._wanted, f"building the weights of {self._wanted.name} in"
        serialized = build_with(wanted, self._write, lambda: self.report(stage))
        self._weights, self.size = (), len(serialized)
        engine = Engine(self._trt, serialized)
        network = replace(wanted.network, weights={})
        assert self.target.architecture is not None
        channels = self.target.architecture.out_channels
        return {self.target.architecture: EngineFn(engine, network, channels, False)}

    def _write(self, stream: BinaryIO) -> None:
        sums = []
        for weight in self._weights:
            values = weight.detach().cpu().contiguous()
            sums.append(sums_of([values]))
            stream.write(values.flatten().view(torch.uint8).numpy().tobytes())
        self.sums = torch.cat(sums)


class TwoForms:
    """A `WholeFn` that has its weights as inputs, and the form with constants where it pays.

    `start` starts a job that builds in the weights that it is given. `timed` runs a call and
    returns its output and what tells the seconds it took, None while that is not known.
    """

    def __init__(
        self,
        inputs: EngineFn,
        start: Callable[[Sequence[Tensor]], ConstantsJob],
        timed: Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], float | None]]],
    ):
        self._inputs, self._start, self._timed = inputs, start, timed
        self._images, self._refused = 0, False
        self._built: EngineFn | None = None
        self._job: ConstantsJob | None = None
        self.give_up()

    def give_up(self) -> bool:
        """Let the form with constants go, to be built again later; return whether there was one.

        Any thread may call it.
        """
        there, job = self._built is not None, self._job
        if job is not None:
            job.cancel()
        self._built = self._job = None
        self._state: list[int] = []  # addresses and versions of the weights, as they were last
        self._sums: Tensor | None = None  # of the weights that are built in
        self._calls, self._same, self._checked = 0, False, False
        self._decided = False
        self._pending: tuple[int, Callable[[], float | None]] | None = None
        self._times: tuple[list[float], list[float]] = [], []  # of inputs, of constants
        self._sizes: list[torch.Size] = []  # at which they were taken
        return there

    @property
    def kept_bytes(self) -> int:
        """Video memory that the second copy of the weights takes."""
        job = self._job
        return job.size if job is not None and self._built is not None else 0

    def begin_image(self) -> None:
        """Compare the weights with those that are built in before the next call."""
        self._images += 1
        self._checked = False

    def why_not(self, activations: list[Tensor]) -> str | None:
        """Return what the form with inputs does."""
        return self._inputs.why_not(activations)

    def settled(self, activations: list[Tensor]) -> bool:
        """Return whether a recording may replace these calls: not while constants serve."""
        return self._inputs.settled(activations) and not (self._built and self._same)

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        """Compute by the form that serves now."""
        count = len(self._inputs.activations)
        built = self._current(tensors[count:])
        if built is None or built.why_not(tensors[:count]):
            return self._inputs(tensors)
        return built(tensors[:count]) if self._decided else self._compare(tensors, built)

    def _current(self, weights: Sequence[Tensor]) -> EngineFn | None:
        """Return the form with constants where these weights are built in."""
        # without images nobody would tell of weights that are written through `.data`
        if not self._images or self._refused or any(w.is_inference() for w in weights):
            return None
        state = [*map(Tensor.data_ptr, weights), *map(_version, weights)]
        if state != self._state:
            self._calls, self._checked = 0, False
            self._state = state
        if not self._checked:
            self._checked = True
            self._same = self._sums is not None and torch.equal(self._sums, sums_of(weights))
        self._calls += 1
        job = self._job
        if job is not None and job.done and self._built is None:
            self._take_up(job)
        elif self._calls > CALLS and not self._same and (job is None or job.done):
            self._begin(weights)
        return self._built if self._same else None

    def _begin(self, weights: Sequence[Tensor]) -> None:
        """Start to build these weights in, where there is memory for them."""
        size, state = sum(w.nbytes for w in weights), self._state
        if size > MOST_BYTES:
            self._stay(f"they take {size / 1e9:.1f} GB")
            return
        self.give_up()
        self._state = state
        if has_room(weights[0].device, 1.1 * size):
            self._sums, self._same, self._checked = sums_of(weights), True, True
            self._job = self._start(weights)

    def _take_up(self, job: ConstantsJob) -> None:
        """Take what the job has made, unless the weights have changed while it copied them."""
        assert self._sums is not None
        try:
            (built,) = job.result().values()
            if torch.equal(job.sums.to(self._sums.device), self._sums):
                self._built = cast("EngineFn", built)
                _log.info("TensorRT keeps the weights once more: %.1f GB", job.size / 1e9)
            else:
                self.give_up()
        except (AccelError, RuntimeError) as error:
            self._stay(str(error))

    def _compare(self, tensors: list[Tensor], built: EngineFn) -> Tensor:
        """Compute by the form that was timed less often; decide when both were often enough.

        They are timed at one size, when TensorRT should have made its kernels for that.
        """
        activations = tensors[: len(self._inputs.activations)]
        sizes = [tensor.shape for tensor in activations]
        if sizes != self._sizes:
            self._sizes, self._times, self._pending = sizes, ([], []), None
            return self._checked_output(self._inputs(tensors), built(activations))
        self._collect()
        if self._decided or self._pending or not built.settled(activations):
            return self._inputs(tensors)
        which = int(len(self._times[1]) < len(self._times[0]))
        forms = (lambda: self._inputs(tensors)), (lambda: built(activations))
        out, seconds = self._timed(forms[which])
        self._pending = which, seconds
        return out

    def _collect(self) -> None:
        """Note the time of the last timed call, where it is known by now, and decide."""
        if self._pending is None or (took := self._pending[1]()) is None:
            return
        self._times[self._pending[0]].append(took)
        self._pending = None
        if len(self._times[1]) == TIMED:
            theirs, ours = map(statistics.median, self._times)
            self._decided = True
            if ours > FASTER * theirs:
                self._stay(f"{1000 * ours:.2f} ms a call instead of {1000 * theirs:.2f}")

    def _checked_output(self, expected: Tensor, out: Tensor) -> Tensor:
        if not (difference := relative_error(out, expected)) <= DIFFERENCE:  # also for NaN
            self._stay(f"its result differs by {difference:.1e}")
        return expected

    def _stay(self, why: str) -> None:
        """Go on with weights as inputs for good."""
        _log.info("TensorRT goes on with weights as inputs, not built in: %s", why)
        self.give_up()
        self._refused = True


def sums_of(weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of the bits of each weight, as integers: what changes one changes its sum."""
    kinds = {2: torch.int16, 4: torch.int32}
    return torch.stack(
        [w.detach().view(kinds[w.element_size()]).sum(dtype=torch.int64) for w in weights]
    )


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], float | None]]:
    """Run `call` between two events of the device."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    out = call()
    ended.record()
    return out, functools.partial(_seconds, begun, ended)


def _seconds(begun: Any, ended: Any) -> float | None:
    return begun.elapsed_time(ended) / 1000 if ended.query() else None

"""CUDA graphs: record the kernels of a UNet call once for each input shape, then replay them.

What makes a replay right:
- A graph reads its inputs from static buffers of its own, allocated outside the graphs' memory
  pool. Every call copies its inputs into them.
- A graph reads weights at the addresses they had when it was recorded. Whoever moves weights has
  to call `clear`.
- All graphs share one memory pool. Their intermediates may overlap, because graphs replay one after
  the other on one stream and each recomputes everything it reads. Outputs stay referenced, so no
  other recording takes their memory, and callers get a copy.
- The first call of a shape runs without recording: libraries create handles and workspaces then,
  which cannot be recorded.
- Everything happens on the device of the inputs, which need not be torch's current one
  (`--device-id`).
- A recording serves only after one replay has given what the unrecorded call gives.

A recording costs about two calls. policy.py decides where it pays and where there is room for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...compile.machine import free_memory
from ...model.precision import relative_error
from .policy import PAYS_AFTER, Policy, call_bytes

Inputs = tuple[Tensor | None, ...]

DIFFERENCE = 1e-2
"""Largest relative difference allowed between a replay and the unrecorded call.

Libraries may pick other kernels while they are recorded; in half precision that gives some 1e-3."""


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    output: Tensor
    bytes: int
    used: int = 0  # the number of the last call that it served

    def replay(self, inputs: Inputs) -> Tensor:
        for static, given in zip(self.inputs, inputs, strict=True):
            if static is not None and given is not None:
                static.copy_(given)
        self.graph.replay()
        return self.output


class GraphCache:
    """Calls `fn` through recorded graphs, which together hold at most `max_bytes` of video memory.

    `refused` says why nothing is recorded, or why the last shape without room is not. `settled`:
    the last call ran as the next ones of its shape will.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        max_bytes: int,
        streams: dict[torch.device, torch.cuda.Stream] | None = None,
    ):
        """`streams` to record on, by device, are shared with other caches."""
        self._fn, self._policy = fn, Policy(max_bytes)
        self._recordings: dict[Hashable, _Recording] = {}
        self._met: set[Hashable] = set()  # shapes that were called once
        self._timed: dict[Hashable, tuple[Any, Any, float]] = {}  # events around a call, launches
        self._pool: Any = None
        self._streams = {} if streams is None else streams
        self._off = False
        self._calls = 0
        self.captures = 0  # recordings made so far
        self.refused: str | None = None
        self.settled = False

    @property
    def bytes(self) -> int:
        """Size of the memory pool, which is freed as a whole or not at all."""
        return sum(recording.bytes for recording in self._recordings.values())

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Return `fn(*inputs)`, replayed where these shapes and dtypes are recorded."""
        key = tuple(None if t is None else (t.shape, t.dtype) for t in inputs)
        device = next(t.device for t in inputs if t is not None)
        self._calls += 1
        self._policy.count()
        with torch.cuda.device(device):
            recording = self._recordings.get(key)
            self.settled = recording is not None
            if recording is not None:
                recording.used = self._calls
                return recording.replay(inputs).clone()
            if key not in self._met:
                self._met.add(key)
                return self._fn(*inputs)
            if self._off:
                self.settled = True
                return self._fn(*inputs)
            if not self._policy.is_measured(key):
                return self._measure(key, inputs)
            if self._policy.pays(key) and self._has_room(key, inputs, device):
                return self._record_and_call(key, inputs, device)
            self.settled = True
            return self._fn(*inputs)

    def has(self, x: Tensor) -> bool:
        """Return whether calls with an `x` like this one are replayed, in memory that is held."""
        shape = x.shape, x.dtype
        return any(key[0] == shape for key in list(self._recordings))  # type: ignore[index]

    def clear(self, other_code: bool = False) -> None:
        """Forget every recording and shape: weights or memory changed hands, or `fn` its code."""
        self._policy.given_up(bool(self._recordings))
        if other_code:
            self._policy.forget_times()
        for kept in (self._recordings, self._met, self._timed):
            kept.clear()
        self._pool = None

    def refuse(self, why: str) -> None:
        """Record nothing from now on."""
        self.clear()
        self._off, self.refused = True, f"CUDA graphs are off: {why}"

    def _measure(self, key: Hashable, inputs: Inputs) -> Tensor:
        """Call plainly, and find out whether launches bound the call; never wait for the GPU."""
        if key in self._timed:
            begun, ended, launch_s = self._timed[key]
            if ended.query():
                self._policy.measured(key, launch_s, begun.elapsed_time(ended) / 1000)
            return self._fn(*inputs)
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        start = time.perf_counter()
        result = self._fn(*inputs)
        self._timed[key] = begun, ended, time.perf_counter() - start
        ended.record()
        return result

    def _has_room(self, key: Hashable, inputs: Inputs, device: torch.device) -> bool:
        """Return whether this shape can be recorded; make room where no other one is in use."""
        since = self._calls - PAYS_AFTER
        in_use = any(recording.used > since for recording in self._recordings.values())
        others = self.bytes if in_use else 0
        free = free_memory(device) - others  # what graphs hold counts as free
        self.refused = self._policy.no_room(key, _estimate(inputs), others, free)
        if self.refused is None and self._policy.exceeds(key, self.bytes):
            self.clear()
            self._met.add(key)
        return self.refused is None

    def _record_and_call(self, key: Hashable, inputs: Inputs, device: torch.device) -> Tensor:
        """Record this shape, and return the result of an unrecorded call."""
        result = self._fn(*inputs)  # first: beside a recording it would need its memory twice
        made = self._record(inputs, device)
        if made is None:
            self._policy.ran_out(key, _estimate(inputs))
        elif isinstance(made, str):
            self.refuse(made)
        else:
            self._policy.took(key, made.bytes)
            if self._policy.exceeds(key, self.bytes):
                made = None  # before the pool, which is freed as a whole, is let go
                self.clear()
            else:
                self._keep_if_equal(key, made, inputs, result)
        return result

    def _keep_if_equal(
        self, key: Hashable, made: _Recording, inputs: Inputs, expected: Tensor
    ) -> None:
        made.output.fill_(float("nan"))
        difference = relative_error(made.replay(inputs), expected)
        if difference <= DIFFERENCE:
            self._recordings[key] = made
            made.used = self._calls
            self.captures += 1
        else:  # also for NaN
            self.refuse(
                f"a replay differs from the plain call by {difference:.1e}, "
                f"allowed {DIFFERENCE:.0e}"
            )

    def _record(self, inputs: Inputs, device: torch.device) -> _Recording | str | None:
        """Return a recording, None where memory ran out, or why nothing can be recorded.

        The error itself is not returned: its frames hold all memory that the recording had taken.
        """
        pool = self._pool = self._pool or torch.cuda.graph_pool_handle()
        errors = out_of_memory_errors(device)
        try:
            static = tuple(None if t is None else t.clone() for t in inputs)
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            with torch.cuda.stream(self._stream(device)):
                # thread_local: another thread of the host (previews, a second tab) may allocate
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    output = self._fn(*static)
                finally:
                    failure = _end(graph, device)
        except RuntimeError as e:
            if out_of_memory_errors(device) > errors:  # which compiled code does not name
                return None
            return f"recording failed: {(str(e).strip() or type(e).__name__).splitlines()[0]}"
        if failure:
            return failure
        held = sum(t.nbytes for t in (*static, output) if t is not None)
        size = max(0, torch.cuda.memory_reserved() - before) + held
        return _Recording(graph, static, output, size)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        """Return the stream to record on.

        torch's default recording stream belongs to the first device that was used. One stream is
        reused for all recordings, because libraries keep a workspace for each stream.
        """
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def _end(graph: torch.cuda.CUDAGraph, device: torch.device) -> str | None:
    """End a recording on the current stream; return what went wrong, or None.

    Where the driver has broken it off, torch's random generator behaves as if still recording. A
    recording that succeeds resets it.
    """
    try:
        graph.capture_end()
        return None
    except RuntimeError as e:
        with contextlib.suppress(RuntimeError):
            other = torch.cuda.CUDAGraph()
            other.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=device)
            other.capture_end()
        return f"recording was broken off: {str(e).splitlines()[0]}; restart to try again"


def _estimate(inputs: Inputs) -> int:
    return call_bytes(next(t for t in inputs if t is not None))


def out_of_memory_errors(device: torch.device) -> int:
    """Return how often the allocator of `device` has run out of memory in this process."""
    return torch.cuda.memory_stats(device).get("num_ooms", 0) if device.type == "cuda" else 0

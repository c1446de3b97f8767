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
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import MIB
from ..model.precision import relative_error

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

    def replay(self, inputs: Inputs) -> Tensor:
        for static, given in zip(self.inputs, inputs, strict=True):
            if static is not None and given is not None:
                static.copy_(given)
        self.graph.replay()
        return self.output


class GraphCache:
    """Calls `fn` through recorded graphs, which together hold at most `max_bytes` of video memory.

    `refused` says why nothing is recorded, or why the last shape that was too large is not.
    """

    def __init__(self, fn: Callable[..., Tensor], max_bytes: int):
        self._fn, self._max_bytes = fn, max_bytes
        self._recordings: dict[Hashable, _Recording] = {}
        self._met: set[Hashable] = set()  # shapes that were called once
        self._too_large: set[Hashable] = set()
        self._pool: Any = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._off = False
        self.captures = 0  # recordings made so far
        self.refused: str | None = None

    @property
    def bytes(self) -> int:
        """Size of the memory pool, which is freed as a whole or not at all."""
        return sum(recording.bytes for recording in self._recordings.values())

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Return `fn(*inputs)`, replayed where these shapes and dtypes are recorded."""
        key = tuple(None if t is None else (t.shape, t.dtype) for t in inputs)
        device = next(t.device for t in inputs if t is not None)
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            recording = self._recordings.get(key)
            if recording is not None:
                return recording.replay(inputs).clone()
            if key not in self._met or key in self._too_large or self._off:
                self._met.add(key)
                return self._fn(*inputs)
            return self._record_and_call(key, inputs, device)

    def clear(self) -> None:
        """Forget every recording and every shape, because weights, code or memory changed hands."""
        self._recordings.clear()
        self._met.clear()
        self._pool = None

    def refuse(self, why: str) -> None:
        """Record nothing from now on."""
        self.clear()
        self._off, self.refused = True, f"CUDA graphs are off: {why}"

    def _record_and_call(self, key: Hashable, inputs: Inputs, device: torch.device) -> Tensor:
        """Record this shape, and return the result of an unrecorded call."""
        result = self._fn(*inputs)  # first: beside a recording it would need its memory twice
        made = self._record(inputs, device)
        if isinstance(made, _Recording) and not self._fits_beside_others(made):
            made = None
            self.clear()  # the pool is freed as a whole; alone, this shape may be small enough
            made = self._record(inputs, device)
        if isinstance(made, str):
            self.refuse(made)
        elif made.bytes > self._max_bytes:
            needed, made = made.bytes / MIB, None
            self.clear()
            self._too_large.add(key)
            self.refused = (
                f"no CUDA graph for this size: it needs {needed:.0f} MiB, "
                f"the cap is {self._max_bytes / MIB:.0f} MiB"
            )
        else:
            self._keep_if_equal(key, made, inputs, result)
        return result

    def _fits_beside_others(self, made: _Recording) -> bool:
        return not self._recordings or self.bytes + made.bytes <= self._max_bytes

    def _keep_if_equal(
        self, key: Hashable, made: _Recording, inputs: Inputs, expected: Tensor
    ) -> None:
        made.output.fill_(float("nan"))
        difference = relative_error(made.replay(inputs), expected)
        if difference <= DIFFERENCE:
            self._recordings[key] = made
            self.captures += 1
        else:  # also for NaN
            self.refuse(
                f"a replay differs from the plain call by {difference:.1e}, "
                f"allowed {DIFFERENCE:.0e}"
            )

    def _record(self, inputs: Inputs, device: torch.device) -> _Recording | str:
        """Return a recording, or why there is none.

        The error itself is not returned: its frames hold all memory that the recording had taken.
        """
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            static = tuple(None if t is None else t.clone() for t in inputs)
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            # torch.cuda.graph does this too; done before, it is not subtracted from the size
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            try:
                # thread_local: another thread of the host (previews, a second tab) may allocate
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream(device),
                    capture_error_mode="thread_local",
                ):
                    output = self._fn(*static)
            except RuntimeError:
                _mend(self._pool, stream, self._stream(device), device)
                raise
        except RuntimeError as e:  # out of memory, or an operation that cannot be recorded
            return f"recording failed: {(str(e).strip() or type(e).__name__).splitlines()[0]}"
        size = max(0, torch.cuda.memory_reserved() - before) + output.nbytes
        return _Recording(graph, static, output, size)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        """Return the stream to record on.

        torch's default recording stream belongs to the first device that was used. One stream is
        reused for all recordings, because libraries keep a workspace for each stream.
        """
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def _mend(
    pool: Any, stream: torch.cuda.Stream, recording: torch.cuda.Stream, device: torch.device
) -> None:
    """Undo what torch leaves behind where a recording breaks off.

    Its stream stays current, and its allocator and random generator behave as if still recording.
    """
    torch.cuda.set_stream(stream)
    if _end_allocation(pool, recording, device):
        torch._C._cuda_releasePool(device.index, pool)  # otherwise the graph frees it
    with (
        contextlib.suppress(RuntimeError),
        torch.cuda.graph(torch.cuda.CUDAGraph(), stream=recording),
    ):
        torch.zeros(1, device=device)  # a recording that succeeds resets the generator


def _end_allocation(pool: Any, recording: torch.cuda.Stream, device: torch.device) -> bool:
    """End the allocator's recording; return whether it was still recording.

    The function's name changed with torch 2.7, its arguments with 2.2.
    """
    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")
    end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
    for arguments in ((device.index, pool), (device.index,)):
        with torch.cuda.stream(recording):
            try:
                if end is not None:
                    end(*arguments)
                    return True
            except TypeError:  # pybind11's answer to other arguments
                continue
            except RuntimeError:  # it had ended
                return False
    return False


def out_of_memory_errors(device: torch.device) -> int:
    """Return how often the allocator of `device` has run out of memory in this process."""
    return torch.cuda.memory_stats(device).get("num_ooms", 0) if device.type == "cuda" else 0

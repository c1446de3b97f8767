"""CUDA graphs: record the kernels of one UNet call per input shape, then replay them with one launch.

What makes a replay right:
- A graph reads its inputs from static buffers of its own, allocated outside the graphs' memory pool; every call copies into them.
- It reads weights at the addresses they had when it was recorded. The owner makes a new cache when weights move.
- All graphs share one memory pool. Their intermediates may overlap, because graphs replay one after the other on one stream and
  each recomputes everything it reads; outputs stay referenced, so no other graph's recording takes their memory, and callers
  get a copy.
- The first call of a shape runs plainly: libraries make their handles and workspaces then, which cannot be recorded.
- Everything happens on the device of the inputs, which need not be torch's current one (`--device-id`).
- A recording serves only after one replay has given what the plain call gives.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.precision import relative_error

Inputs = tuple[Tensor | None, ...]

DIFFERENCE = 1e-2
"""Of a replay from the plain call, relative. Libraries may pick other kernels while they are recorded; half precision gives some 1e-3."""


@dataclass
class _Recorded:
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
    """Calls `fn` through recorded graphs, as long as they hold less than `max_bytes` together."""

    def __init__(self, fn: Callable[..., Tensor], max_bytes: int):
        self._fn, self._max_bytes = fn, max_bytes
        self._graphs: dict[Hashable, _Recorded] = {}
        self._met: set[Hashable] = set()
        self._pool: Any = None
        self.captures = 0
        self._too_large: set[Hashable] = set()
        self.refused: str | None = (
            None  # why none is recorded: any more, or of the shape that was last too large
        )
        self._off = False

    @property
    def bytes(self) -> int:
        """What the pool has grown to: it is given back as a whole or not at all."""
        return sum(g.bytes for g in self._graphs.values())

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        key = tuple(None if t is None else (t.shape, t.dtype) for t in inputs)
        device = next(t.device for t in inputs if t is not None)
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            recorded = self._graphs.get(key)
            if recorded is not None:
                return recorded.replay(inputs).clone()
            if key not in self._met or key in self._too_large or self._off:
                self._met.add(key)
                return self._fn(*inputs)
            return self._record(key, inputs, device)

    def clear(self) -> None:
        """Forget every recording and every shape that was met: weights have moved, code has changed, or their memory is needed."""
        self._graphs.clear()
        self._met.clear()
        self._pool = None

    def _record(self, key: Hashable, inputs: Inputs, device: torch.device) -> Tensor:
        """Record this shape, and return what the plain call gives."""
        plain = self._fn(
            *inputs
        )  # before: beside a recording it would take its memory a second time
        made = self._recorded(inputs, device)
        if (
            isinstance(made, _Recorded)
            and self._graphs
            and self.bytes + made.bytes > self._max_bytes
        ):
            made = None
            self.clear()  # their pool goes as a whole; alone, this shape may be small enough
            made = self._recorded(inputs, device)
        if isinstance(made, str):
            self.refuse(made)
        elif made.bytes > self._max_bytes:
            needs, made = made.bytes, None
            self.clear()
            self._too_large.add(key)
            mib = 1024**2
            self.refused = f"no CUDA graph for this size: it needs {needs / mib:.0f} MiB, the cap is {self._max_bytes / mib:.0f} MiB"
        elif (difference := self._difference(made, inputs, plain)) <= DIFFERENCE:
            self._graphs[key] = made
            self.captures += 1
        else:  # or NaN
            made = None
            self.refuse(
                f"a replay differs from the plain call by {difference:.1e}, allowed {DIFFERENCE:.0e}"
            )
        return plain

    @staticmethod
    def _difference(made: _Recorded, inputs: Inputs, plain: Tensor) -> float:
        made.output.fill_(float("nan"))
        return relative_error(made.replay(inputs), plain)

    def _recorded(self, inputs: Inputs, device: torch.device) -> _Recorded | str:
        """Or why it could not be recorded. The error itself does not leave: its frames hold all that the recording had taken."""
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            static = tuple(None if t is None else t.clone() for t in inputs)
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            torch.cuda.empty_cache()  # recording begins with it: what it frees must not hide what the graph takes
            before = torch.cuda.memory_reserved()
            try:
                # thread_local: another thread of the host (previews, a second tab) may allocate meanwhile
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=_stream(device),
                    capture_error_mode="thread_local",
                ):
                    output = self._fn(*static)
            except RuntimeError:
                _mend(self._pool, stream, device)
                raise
        except RuntimeError as e:  # out of memory, or an operation that cannot be recorded: the plain call still works
            return f"recording failed: {(str(e).strip() or type(e).__name__).splitlines()[0]}"
        return _Recorded(
            graph, static, output, max(0, torch.cuda.memory_reserved() - before) + output.nbytes
        )

    def refuse(self, why: str) -> None:
        """Call plainly from now on."""
        self.clear()
        self._off, self.refused = True, f"CUDA graphs are off: {why}"


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """To record on: torch's own is for whichever device came first, and libraries keep a workspace for each stream they meet."""
    return torch.cuda.Stream(device)


def _mend(pool: Any, stream: torch.cuda.Stream, device: torch.device) -> None:
    """After a recording that broke off: torch leaves its stream current, and its allocator and its generator as if still recording."""
    torch.cuda.set_stream(stream)
    if _end_allocation(pool, device):
        torch._C._cuda_releasePool(device.index, pool)  # else the graph gives it back, when it goes
    with (
        contextlib.suppress(RuntimeError),
        torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_stream(device)),
    ):
        torch.zeros(1, device=device)  # a recording that succeeds takes the generator back


def _end_allocation(pool: Any, device: torch.device) -> bool:
    """Whether the allocator was still recording. The function's name changed with torch 2.7, its arguments with 2.2."""
    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")
    end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
    for arguments in ((device.index, pool), (device.index,)):
        with torch.cuda.stream(_stream(device)):
            try:
                if end is not None:
                    end(*arguments)
                    return True
            except TypeError:  # pybind11's answer to other arguments
                continue
            except RuntimeError:  # it had ended
                return False
    return False

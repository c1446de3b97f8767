"""CUDA graphs: record the kernels of one UNet call per input shape, then replay them with one launch.

What makes a replay right:
- A graph reads its inputs from static buffers of its own, allocated outside the graphs' memory pool; every call copies into them.
- It reads weights at the addresses they had when it was recorded. The owner calls `clear` when weights move.
- All graphs share one memory pool. Their intermediates may overlap, because graphs replay one after the other on one stream and
  each recomputes everything it reads; outputs stay referenced, so no other graph's recording takes their memory, and callers
  get a copy.
- The first call of a shape runs plainly: libraries make their handles and workspaces then, which cannot be recorded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor | None, ...]


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    output: Tensor
    bytes: int


class GraphCache:
    """Calls `fn` through recorded graphs, least recently used shapes going first once they hold more than `max_bytes`."""

    def __init__(self, fn: Callable[..., Tensor], max_bytes: int):
        self._fn, self._max_bytes = fn, max_bytes
        self._graphs: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._met: set[Hashable] = set()
        self._pool: Any = None
        self.captures = 0
        self.refused: str | None = None  # why no graph is recorded any more

    @property
    def bytes(self) -> int:
        return sum(g.bytes for g in self._graphs.values())

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        key = tuple(None if t is None else (t.shape, t.dtype) for t in inputs)
        recorded = self._graphs.get(key)
        if recorded is None:
            if key not in self._met or self.refused:
                self._met.add(key)
                return self._fn(*inputs)
            recorded = self._record(key, inputs)
            if recorded is None:
                return self._fn(*inputs)
        self._graphs.move_to_end(key)
        for static, given in zip(recorded.inputs, inputs, strict=True):
            if static is not None and given is not None:
                static.copy_(given)
        recorded.graph.replay()
        return recorded.output.clone()

    def clear(self) -> None:
        """Forget every recording and give its memory back; shapes that were met stay known."""
        self._graphs.clear()
        self._pool = None

    def _record(self, key: Hashable, inputs: Inputs) -> _Recorded | None:
        static = tuple(None if t is None else t.clone() for t in inputs)
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.empty_cache()  # recording begins with it: what it frees must not hide what the graph takes
            before = torch.cuda.memory_reserved()
            # thread_local: another thread of the host (previews, a second tab) may allocate meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = self._fn(*static)
        except RuntimeError as e:  # out of memory, or an operation that cannot be recorded: the plain call still works
            self.clear()
            self.refused = f"CUDA graphs are off: recording failed: {(str(e).strip() or type(e).__name__).splitlines()[0]}"
            return None
        grown = max(0, torch.cuda.memory_reserved() - before)
        recorded = _Recorded(graph, static, output, grown + output.nbytes)
        self._graphs[key] = recorded
        self.captures += 1
        while self.bytes > self._max_bytes and len(self._graphs) > 1:
            self._graphs.popitem(last=False)
        if self.bytes > self._max_bytes:
            self.clear()
            self.refused = (
                f"CUDA graphs are off: one shape alone needs {grown / 1024**2:.0f} MiB, the cap is {self._max_bytes / 1024**2:.0f} MiB"
            )
            return None
        return recorded

"""What is kept in video memory only to be faster, and given up where memory is short."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...compile.machine import has_room
from ...model.architecture import Architecture
from ...model.specs import Downsample, SpatialTransformer
from .cache import GraphCache, out_of_memory_errors
from .policy import call_bytes


class KeptMemory:
    """Gives up what is kept on a device before others need the memory: CUDA graphs, and more.

    `RESERVE` bytes must stay free beside what is needed. Threads may call `make_room` at any time:
    the WebUI decodes previews beside the UNet's calls.
    """

    def __init__(
        self,
        device: torch.device,
        architecture: Architecture | None = None,
        graphs: GraphCache | None = None,
    ):
        """`architecture` is that of the UNet, None for what is no UNet."""
        self._device, self._architecture, self._graphs = device, architecture, graphs
        self._more: list[Callable[[], bool]] = []
        self._errors = out_of_memory_errors(device)

    def add(self, give_up: Callable[[], bool]) -> None:
        """Add something that is kept: `give_up` frees it and returns whether there was any.

        It is called often. What was added first is given up first.
        """
        self._more.append(give_up)

    def make_room(self, needed: float) -> None:
        """Give up what it takes for RESERVE to stay free beside `needed` bytes more."""
        for give_up in self._kept():
            if self._has_room(needed):
                return
            if give_up():
                torch.cuda.empty_cache()

    def make_room_for_call(self, x: Tensor, by_others: bool = False) -> None:
        """Make room for a UNet call with `x: [B, C, H, W]`, latents.

        `by_others`: the UNet's own code computes it.
        """
        if not by_others and self._graphs is not None and self._graphs.has(x):
            self.make_room(0)  # the graph holds all that it needs
            return
        if by_others and self._architecture is not None:
            needed = call_bytes(x) + attention_bytes(self._architecture, x)
            if not self._has_room(needed):
                self._give_up_graphs()
        self.make_room(call_bytes(x))

    def has_room_for_call(self, x: Tensor) -> bool:
        """Return whether RESERVE stays free in a UNet call with `x: [B, C, H, W]`, latents."""
        return self._has_room(call_bytes(x))

    def give_up(self) -> bool:
        """Give up everything; return whether there was any."""
        kept = [give_up() for give_up in self._kept()]
        if any(kept):
            torch.cuda.empty_cache()
        return any(kept)

    def ran_out(self, error: RuntimeError | None = None) -> bool:
        """Return whether memory has run out since the last question.

        AOTInductor's code raises that as a plain RuntimeError: only the allocator's count tells.
        """
        before, self._errors = self._errors, out_of_memory_errors(self._device)
        return isinstance(error, torch.cuda.OutOfMemoryError) or self._errors > before

    def _kept(self) -> list[Callable[[], bool]]:
        # made anew: to keep one of its own methods would keep all of this until the next collection
        return [self._give_up_graphs, *self._more]

    def _has_room(self, needed: float) -> bool:
        return has_room(self._device, needed, self._graphs.bytes if self._graphs else 0)

    def _give_up_graphs(self) -> bool:
        if self._graphs is None or not self._graphs.bytes:
            return False
        self._graphs.clear()
        return True


def attention_bytes(architecture: Architecture, x: Tensor) -> int:
    """Return what the WebUI's default attention takes at most, in the UNet's own code.

    It takes three times the attention weights where that seems to be free, and counts the pools of
    CUDA graphs as free (`modules/sd_hijack_optimizations.py: split_cross_attention_forward` of the
    WebUI 1.10.1). `x: [B, C, H, W]`, latents.
    """
    pixels, most = x.shape[2:].numel(), 0
    for block in architecture.input_blocks:
        for spec in block:
            if isinstance(spec, Downsample):
                pixels //= 4
            elif isinstance(spec, SpatialTransformer):
                most = max(most, spec.heads * pixels**2)
    return 3 * x.shape[0] * most * x.element_size()

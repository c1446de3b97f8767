"""LoRA merging: where the base weights are kept, and base weights and terms in, merged weights out.

The sum is computed in a wider dtype than the weights' (float64 for float32, else float32) and
rounded once. It always begins at the base weights, so that errors do not add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...compile.machine import free_memory, has_room
from ...config import AUTO
from ...model.precision import wider, without_autocast


@dataclass(frozen=True)
class LowRank:
    """A term that adds `scale * up @ down` (Hu et al. 2021, LoRA).

    `up: [O, r, ...]`, `down: [r, I, ...]`; the further dimensions of a convolution are flattened.
    Several terms of this kind are one matrix product, so that ten cost little more than one.
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0


Rewrite = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""A term of any other kind: a function of the weight in float32, all earlier terms included.

It returns what to add to the weight, and what to add to the bias or None."""

Term = LowRank | Rewrite


CPU_ELEMENTS, GPU_ELEMENTS = 2**18, 2**24
"""Elements of a weight that are merged at a time: on a CPU 2 MB in float64, which stay in its
cache; on a GPU 64 MiB in float32, which is what a merge takes there."""


@torch.no_grad()
def merge(
    weight: Tensor, base: Tensor, terms: Sequence[Term], device: torch.device | None = None
) -> Tensor | None:
    """Write `base` with all `terms` applied, in order, into `weight: [O, ...]`.

    `base` has the shape of `weight` and may lie on another device. The sum is computed on `device`,
    by default the weight's own. Returns what to add to the bias (float32), or None. Raises
    RuntimeError where a term does not fit, and what a term raises; `weight` is then unchanged.
    """
    device = device or weight.device
    total, bias = base, None
    # Where the WebUI has switched TF32 on, the factors for a weight in half precision are rounded
    # to 10 bits, which is what half precision has; the switch belongs to all threads.
    with without_autocast(device):
        for low_rank, group in itertools.groupby(terms, lambda t: isinstance(t, LowRank)):
            run: list[Any] = list(group)
            if low_rank:
                into = (
                    weight
                    if run[-1] is terms[-1]
                    else torch.empty_like(base, dtype=wider(weight.dtype, device), device=device)
                )
                _add(into, total, run, device)
                total = into
                continue
            for rewrite in run:
                delta, more = rewrite(_moved(total, device, torch.float32))
                total = _moved(total, device, wider(weight.dtype, device)) + delta
                if more is not None:
                    bias = more.float() if bias is None else bias + more
    if total is not weight:
        weight.copy_(total)
    return bias


def _add(into: Tensor, base: Tensor, terms: Sequence[LowRank], device: torch.device) -> None:
    """Write base + terms into `into`, some rows at a time, each in the memory order of `into`."""
    wide, (outputs, *kernel) = wider(into.dtype, device), base.shape
    channels_last = (
        into.ndim == 4
        and not into.is_contiguous()
        and into.is_contiguous(memory_format=torch.channels_last)
    )

    def rows(t: Tensor) -> Tensor:
        return (t.permute(0, 2, 3, 1) if channels_last else t).flatten(1)

    for t in terms:
        factors = (t.up.shape[0], t.up.shape[1:].numel(), t.down.shape[1:].numel())
        if factors != (outputs, t.down.shape[0], base[0].numel()):
            raise RuntimeError(
                f"factors of {list(t.up.shape)} and {list(t.down.shape)} do not fit "
                f"a weight of {list(base.shape)}"
            )
    ups = [_moved(t.up, device, wide).flatten(1) for t in terms]  # [O, r]
    downs = [rows(_moved(t.down, device, wide).reshape(-1, *kernel)) for t in terms]  # [r, I*k*k]
    if len(terms) == 1:
        up, down, scale = ups[0], downs[0], terms[0].scale
    else:  # [O, sum of r] @ [sum of r, I*k*k]: one product costs less than several
        up = torch.cat([u * t.scale for u, t in zip(ups, terms, strict=True)], 1)
        down, scale = torch.cat(downs), 1.0
    most = CPU_ELEMENTS if device.type == "cpu" else GPU_ELEMENTS
    count = max(1, most // down.shape[1])
    for some in (slice(i, i + count) for i in range(0, outputs, count)):
        part = rows(base[some].to(device, non_blocking=True)).to(wide, copy=True)
        part.addmm_(up[some], down, alpha=scale)
        shape = base[some].permute(0, 2, 3, 1).shape if channels_last else base[some].shape
        merged = part.view(shape)
        into[some].copy_(merged.permute(0, 3, 1, 2) if channels_last else merged)


def _moved(t: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Move, then widen: torch would widen first, and move twice the bytes."""
    return t.to(device, non_blocking=True).to(dtype)


def copy_all(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each of `values` into its tensor: on one device with few launches, where torch can.

    From another device each is a transfer of its own.
    """
    foreach = getattr(torch, "_foreach_copy_", None)  # since torch 2.1; it is not public
    if foreach is not None and into and values[0].device == into[0].device:
        foreach(list(into), list(values))
        return
    for target, value in zip(into, values, strict=True):
        target.copy_(value, non_blocking=True)


# -- where base weights are kept

FREE_BYTES = 8 * 2**30
"""Video memory that `auto` leaves for images and the VAE."""


class BasePlacement:
    """Copies base weights to the memory that `Config.lora_base` names.

    The faster that memory, the sooner LoRAs change: a merge reads the base of each layer.
    `say` prints a line when pinned memory has run out, once.
    """

    def __init__(self, where: str, say: Callable[[str], object]):
        self._where, self._say = where, say
        self._pinned_ran_out = False

    def place(self, size: int, device: torch.device) -> str:
        """Return "host", "pinned" or "gpu": where `size` bytes of bases on `device` are kept."""
        if device.type != "cuda":
            return "host"
        where = self._where
        if where == AUTO:
            fits = free_memory(device) - size > FREE_BYTES
            where = "gpu" if fits else "pinned"
        elif where == "gpu" and not has_room(device, size):
            where = "pinned"
        return "host" if where == "pinned" and self._pinned_ran_out else where

    def keep(self, bases: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Copy `bases` to their place, or to ordinary memory where no pinned memory is left.

        The place is chosen once for all of them: a question to the driver waits for it.
        """
        where = self.place(sum(base.nbytes for base in bases), device) if bases else "host"
        if where == "gpu":
            try:
                kept = [torch.empty_like(base, device=device) for base in bases]
            except torch.cuda.OutOfMemoryError:
                where = "pinned"
            else:
                copy_all(kept, bases)
                return kept
        return [self.pin(b) if where == "pinned" else b.to("cpu", copy=True) for b in bases]

    def pin(self, base: Tensor) -> Tensor:
        """Copy `base` to pinned memory, or to ordinary memory where none is left."""
        if self._pinned_ran_out:
            return base.to("cpu", copy=True)
        try:
            return torch.empty_like(base, device="cpu", pin_memory=True).copy_(base)
        except RuntimeError as e:
            if not self._pinned_ran_out:
                self._say(
                    f"no more pinned memory for the base weights of LoRAs ({e}); "
                    "ordinary memory serves, and LoRAs change a little slower"
                )
            self._pinned_ran_out = True
            return base.to("cpu", copy=True)

"""LoRA merging: base weights and what is to be done to them in, merged weights out.

Computed wider than the weights are (float64 for float32, else float32) and rounded once at the end: always from the base, so
nothing drifts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.precision import exact_products, wider, without_autocast


@dataclass(frozen=True)
class LowRank:
    """Adds `scale * up @ down`. `up: [O, r, ...]`, `down: [r, I, ...]`; further dimensions (a convolution's) are flattened.

    Several in a row are one matrix product, so ten cost little more than one.
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0


Rewrite = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""For everything else: `weight` in float32, with what came before merged in -> what to add to it, and to the bias or None."""

Term = LowRank | Rewrite


ELEMENTS = (
    2**18
)  # of a weight at a time on a CPU: 2 MB in float64, so that all between base and weight stays in the cache


@torch.no_grad()
def merge(
    weight: Tensor, base: Tensor, terms: Sequence[Term], device: torch.device | None = None
) -> Tensor | None:
    """Write `base` with `terms` done to it, in order, into `weight: [O, ...]`. Returns what to add to the bias (float32), or None.

    `base` has the shape of `weight`, and may lie on another device. Computed on `device`, by default the weight's own. When a
    term raises, or does not fit, `weight` has not been touched.
    """
    device = device or weight.device
    total, bias = base, None
    with without_autocast(device), exact_products(device):
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
    """Write base + the terms into `into`, some rows at a time, each row in the order in which `into` lies in memory."""
    wide, (outputs, *kernel) = wider(into.dtype, device), base.shape
    channels_last = (
        into.ndim == 4
        and not into.is_contiguous()
        and into.is_contiguous(memory_format=torch.channels_last)
    )

    def rows(t: Tensor) -> Tensor:
        return (t.permute(0, 2, 3, 1) if channels_last else t).flatten(1)

    for t in terms:
        if (t.up.shape[0], t.up[0].numel(), t.down[0].numel()) != (
            outputs,
            t.down.shape[0],
            base[0].numel(),
        ):
            raise RuntimeError(
                f"factors of {list(t.up.shape)} and {list(t.down.shape)} do not fit a weight of {list(base.shape)}"
            )
    ups = [_moved(t.up, device, wide).flatten(1) for t in terms]  # [O, r]
    downs = [rows(_moved(t.down, device, wide).reshape(-1, *kernel)) for t in terms]  # [r, I*k*k]
    if len(terms) == 1:
        up, down, scale = ups[0], downs[0], terms[0].scale
    else:  # [O, sum of r] @ [sum of r, I*k*k]: one product costs less than several
        up, down, scale = (
            torch.cat([u * t.scale for u, t in zip(ups, terms, strict=True)], 1),
            torch.cat(downs),
            1.0,
        )
    count = max(1, ELEMENTS // down.shape[1]) if device.type == "cpu" else outputs
    for some in (slice(i, i + count) for i in range(0, outputs, count)):
        part = (
            rows(base[some].to(device, non_blocking=True))
            .to(wide, copy=True)
            .addmm_(up[some], down, alpha=scale)
        )
        shape = base[some].permute(0, 2, 3, 1).shape if channels_last else base[some].shape
        merged = part.view(shape)
        into[some].copy_(merged.permute(0, 3, 1, 2) if channels_last else merged)


def _moved(t: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Moved first and widened there: torch would widen before it moves, and move twice the bytes."""
    return t.to(device, non_blocking=True).to(dtype)

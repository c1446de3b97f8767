"""Merging on a GPU: the layers of one shape together, so that few kernels and copies are launched.

A checkpoint has hundreds of layers and a dozen shapes. For each layer alone, ten LoRAs are about
fifty launches; here they are between one and two.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...compile.machine import RESERVE, free_memory
from ...model.precision import wider, without_autocast
from .merging import LowRank, Term, copy_all, merge

ROOM = 512 * 2**20
"""Bytes of video memory that merging takes beside the weights, unless a single layer needs more."""


@dataclass(frozen=True)
class Merge:
    """A weight to be written: `base` with `terms` applied, as `merging.merge` does it."""

    weight: Tensor
    base: Tensor
    terms: Sequence[Term]


def merge_all(merges: Sequence[Merge]) -> None:
    """Do all of `merges`, on a GPU those of one kind together. Raises what `merging.merge` does."""
    done = merge_alike(merges)
    for i, alone in enumerate(merges):
        if i not in done:
            merge(alone.weight, alone.base, alone.terms)


@torch.no_grad()
def merge_alike(merges: Sequence[Merge]) -> set[int]:
    """Do those of `merges` that can be done together, and return which they are.

    They are those of weights on a GPU whose terms are all LowRank and fit. `merging.merge` is for
    the others. Raises torch.cuda.OutOfMemoryError; then any of them may have been written.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, one in enumerate(merges):
        if one.weight.device.type == "cuda" and (kind := _kind(one)) is not None:
            groups.setdefault(kind, []).append(i)
    done = {i for group in groups.values() for i in group}
    if done:
        room = min(ROOM, free_memory(merges[min(done)].weight.device) - RESERVE)
        for group in groups.values():
            count = max(1, int(room // needed_bytes(merges[group[0]])))
            for start in range(0, len(group), count):
                merge_together([merges[i] for i in group[start : start + count]])
    return done


def _kind(merge: Merge) -> Hashable | None:
    """Return what merges must have in common to be done together; None for one to be done alone."""
    weight, terms = merge.weight, merge.terms
    if not terms:  # the base comes back
        return weight.device, weight.dtype, merge.base.device
    rank, places = 0, set()
    for t in terms:
        if not isinstance(t, LowRank):
            return None
        rows, columns = t.up.shape[1:].numel(), t.down.shape[1:].numel()
        if (len(t.up), rows, columns) != (len(weight), len(t.down), weight[0].numel()):
            return None
        rank += rows
        places |= {t.up.device, t.down.device}
    if len(places) > 1:
        return None
    layout = weight.shape, _is_channels_last(weight), merge.base.device
    return weight.device, weight.dtype, layout, rank, _stored_dtype(terms), *places


def _stored_dtype(terms: Sequence[Any]) -> torch.dtype:
    """Return the dtype that holds the factors of all `terms`, which are LowRank."""
    dtypes = (t.dtype for term in terms for t in (term.up, term.down))
    return functools.reduce(torch.promote_types, dtypes)


def needed_bytes(merge: Merge) -> int:
    """Return the bytes that one of these merges takes: the sum and the factors, narrow and wide."""
    weight, terms = merge.weight, [t for t in merge.terms if isinstance(t, LowRank)]
    if not terms:
        return 1
    rank = sum(len(t.down) for t in terms)
    factors = rank * (len(weight) + weight[0].numel())
    wide = torch.finfo(wider(weight.dtype, weight.device)).bits // 8
    stored = max(t.element_size() for term in terms for t in (term.up, term.down))
    return weight.numel() * (weight.element_size() + wide) + factors * (stored + wide)


@torch.no_grad()
def merge_together(merges: Sequence[Merge]) -> None:
    """Do merges of one kind. The sums are computed in a wider dtype, and rounded once."""
    weight = merges[0].weight
    if not merges[0].terms:
        copy_all([merge.weight for merge in merges], [merge.base for merge in merges])
        return
    weights = [_matrix(merge.weight, weight) for merge in merges]
    bases = [_matrix(merge.base, weight) for merge in merges]
    up, down = _factors([merge.terms for merge in merges], weight)
    with without_autocast(weight.device):
        deltas = torch.bmm(up, down)
    sums = torch.empty(deltas.shape, dtype=weight.dtype, device=weight.device)
    copy_all(sums.unbind(), bases)
    sums.add_(deltas)  # in the dtype of `deltas`
    copy_all(weights, sums.unbind())


def _factors(terms: Sequence[Sequence[Any]], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Join the factors of each layer: `up: [layers, O, r]`, scaled, and `down: [layers, r, I*k*k]`.

    They are wide, on the device of `weight`, and `down` is in its memory order.
    """
    device, wide = weight.device, wider(weight.dtype, weight.device)
    outputs, inputs, rank = len(weight), weight[0].numel(), sum(len(t.down) for t in terms[0])
    dtype = _stored_dtype(terms[0])
    sizes = outputs * rank, rank * inputs
    joined = _staging(len(terms), sum(sizes), dtype=dtype, device=terms[0][0].up.device)
    for layer, own in zip(joined, terms, strict=True):
        up, down = layer.split(sizes)
        torch.cat([t.up.flatten(1) for t in own], 1, out=up.view(outputs, rank))
        torch.cat([t.down.flatten(1) for t in own], 0, out=down.view(rank, inputs))
    up, down = joined.to(device, non_blocking=True).split(sizes, 1)  # in one transfer
    down = down.unflatten(1, (rank, *weight.shape[1:]))
    if _is_channels_last(weight):
        down = down.permute(0, 1, 3, 4, 2)
    scales = torch.tensor([[t.scale for t in own for _ in t.down] for own in terms], dtype=wide)
    up = up.unflatten(1, (outputs, rank)) * scales.to(device)[:, None]
    return up, down.to(wide, memory_format=torch.contiguous_format).flatten(2)


def _is_channels_last(weight: Tensor) -> bool:
    return (
        weight.ndim == 4
        and not weight.is_contiguous()
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


def _matrix(t: Tensor, weight: Tensor) -> Tensor:
    """Return `t` as [O, I*k*k] in the memory order of `weight`: a view if that is its own."""
    return (t.permute(0, 2, 3, 1) if _is_channels_last(weight) else t).flatten(1)


def _staging(*shape: int, **like: Any) -> Tensor:
    """Return memory to gather in; pinned, from which a GPU reads without waiting for the CPU."""
    pinned = torch.cuda.is_available() and like.get("device", "cpu") in ("cpu", torch.device("cpu"))
    try:
        return torch.empty(shape, pin_memory=pinned, **like)
    except RuntimeError:  # no pinned memory is left
        return torch.empty(shape, **like)

"""What one network of the Lora extension does to one layer."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....runtime.lora.merging import LowRank, Term
from ..comparison import held_by
from ..functions import runs_original


def merges_unpatched(extension: Any) -> bool:
    """Return whether the Lora extension merges by its own code; a patch of it has to be called."""
    return runs_original(extension.network_apply_weights)


def term(part: Any, weight: Tensor) -> Term:
    """Return what a network module adds to a layer's weight. Raises what its own code raises."""
    return _factors(part, weight) or functools.partial(_delta, part)


def _factors(part: Any, weight: Tensor) -> LowRank | None:
    """Return the two factors of a network module; None where it is no plain LoRA that fits."""
    kind = type(part)
    if (
        kind.calc_updown.__module__ != "network_lora"
        or kind.finalize_updown.__module__ != "network"
        or not vars(part).keys().isdisjoint(("calc_updown", "finalize_updown"))
        or not (runs_original(kind.calc_updown) and runs_original(kind.finalize_updown))
    ):
        return None
    if part.mid_model is not None or part.dora_scale is not None or part.bias is not None:
        return None
    up, down = part.up_model.weight.flatten(1), part.down_model.weight.flatten(1)
    shapes = (up.shape[0], up.shape[1], down.shape[1])
    fits = shapes == (weight.shape[0], down.shape[0], weight[0].numel())
    if not fits or not down.shape[0] or _is_inpainting_input(weight):
        return None
    rank = part.network.dyn_dim
    return LowRank(up[:, :rank], down[:rank], part.calc_scale() * part.multiplier())


def _delta(part: Any, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the deltas of weight and bias from the network module's own code, in float32."""
    delta, bias_delta = _in_float32(part, weight.device).calc_updown(weight)
    if _is_inpainting_input(weight):
        delta = F.pad(delta, (0, 0, 0, 0, 0, 5))  # 4 latent channels of 9
    return delta.expand_as(weight), bias_delta


def _is_inpainting_input(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.shape[1] == 9


def _in_float32(part: Any, device: torch.device) -> Any:
    """Return a copy of a network module with its tensors in float32 on `device`.

    The tensors are copies: some modules write into their own.
    """
    view = copy.copy(part)
    for name, value in held_by(part):
        if isinstance(value, nn.Module):
            setattr(view, name, copy.deepcopy(value).to(device, torch.float32))
        elif value.is_floating_point():
            setattr(view, name, value.to(device, torch.float32, copy=True))
    return view

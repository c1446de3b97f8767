"""Facts: what the Lora extension makes of networks that are not as they should be."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import networks
import torch
from torch import Tensor, nn

from .lora import made, wanted
from .malformed import networks_for


@torch.no_grad()
def malformed() -> dict[str, Any]:
    """Networks of every kind, good and malformed, merged into a layer of each kind."""
    torch.manual_seed(4)
    out = {}
    for base in (nn.Linear(8, 8, bias=False), nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)):
        for name, parts in networks_for(tuple(base.weight.shape)):
            layer: Any = copy.deepcopy(base).requires_grad_(False)
            layer.network_layer_name = "standin_probe"
            with warnings.catch_warnings():  # torch warns of empty layers; tests make it raise
                warnings.simplefilter("ignore")
                out[f"{type(base).__name__}, {name}"] = _merged(layer, parts)
    return out


def _merged(layer: Any, parts: dict[str, Tensor]) -> Any:
    """Return how merging ends: what it raises, or the errors it counts and what it has written."""
    try:
        net = made("odd", layer, {k: v.clone() for k, v in parts.items()})
    except Exception:  # noqa: BLE001  how it fails is the extension's own affair
        return "cannot be read"
    with wanted(net):
        networks.extra_network_lora.errors.clear()
        try:
            networks.network_apply_weights(layer)
        except Exception as e:  # noqa: BLE001  it is compared
            return type(e).__name__
        errors = networks.extra_network_lora.errors.get("odd", 0)
    return [errors, *(None if t is None else _size(t) for t in (layer.weight, layer.bias))]


def _size(t: Tensor) -> Any:
    norm = t.double().norm().item()
    return [list(t.shape), norm if math.isfinite(norm) else "not finite"]

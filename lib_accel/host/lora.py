"""The WebUI's LoRAs, merged into the UNet's weights before a call that needs them.

The Lora extension reads the files, knows every network type and says which set is wanted; it would merge in the patched
forwards of layers, which compiled code never calls. Here the same is done for all layers at once, wider than the weights
are, and only in layers that a wanted network touches. Its marks (`network_current_names`) and backups stay true, so that whatever runs the
WebUI's way afterwards finds each layer as if it had merged there itself.
"""

from __future__ import annotations

import copy
import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.lora_bases import Bases
from ..runtime.lora_merge import LowRank, Term, merge
from . import webui

_TYPES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
_UNFINISHED = (
    "acceleration: merging was interrupted here",
)  # as a mark: unlike any set, so whoever comes next begins at the base


class Loras:
    """Keeps the layers of one UNet at the set of networks the Lora extension wants."""

    def __init__(self, unet: nn.Module, bases: Bases):
        self._bases = bases
        self._layers = [m for m in unet.modules() if isinstance(m, _TYPES)]
        self._wanted: Any = None
        self._marks: list[object] = []

    def bring_up_to_date(self) -> bool:
        """Merge what is not merged yet; True when a layer was changed. Called before every UNet call: usually a look and no more.

        Raises RuntimeError where the Lora extension would: marks without a backup.
        """
        networks = webui.networks()
        if networks is None:
            return False
        wanted = webui.lora_wanted()
        marks = self._look()
        if wanted == self._wanted and all(map(operator.is_, marks, self._marks)):
            return False
        changed = 0
        by_us = webui.merges_as_known(networks)
        for layer, mark in zip(self._layers, marks, strict=True):
            if not mark:
                _shrink(layer)
            name = getattr(layer, "network_layer_name", None)
            if name is None or mark == wanted:
                continue
            parts = [net.modules[name] for net in networks.loaded_networks if name in net.modules]
            if not parts and not mark:
                continue
            changed += 1
            if by_us:
                self.set_networks(layer, parts, wanted if parts else ())
            else:
                networks.network_apply_weights(layer)
        self._wanted, self._marks = wanted, self._look()
        return changed > 0

    def park(self) -> bool:
        """Move bases out of video memory; True when some were there."""
        there = [
            layer
            for layer in self._layers
            if (base := vars(layer).get("network_weights_backup")) is not None and base.is_cuda
        ]
        for layer in there:
            layer.network_weights_backup = self._bases.park(layer.network_weights_backup)
        if there:
            torch.cuda.empty_cache()
        return bool(there)

    def forget(self) -> None:
        """The model is thrown away: hold no bases."""
        for layer in self._layers:
            if vars(layer).get("network_weights_backup") is not None:
                layer.network_weights_backup = layer.network_bias_backup = None
                layer.network_current_names = ()

    def set_networks(self, layer: Any, parts: list[Any], mark: tuple[object, ...]) -> None:
        """The layer's weight and bias from their base with these network modules; whole or not at all."""
        weight, bias = layer.weight, getattr(layer, "bias", None)
        base = self._base(layer, weight, bias)
        base_bias = layer.network_bias_backup
        layer.network_current_names = _UNFINISHED
        terms: list[Term] = [_term(part, weight) for part in parts]
        try:
            more = merge(weight, base, terms)
        except torch.cuda.OutOfMemoryError:
            more = merge(weight, base.cpu(), terms, torch.device("cpu"))
        with torch.no_grad():
            total = (
                base_bias
                if more is None
                else more
                if base_bias is None
                else base_bias.to(more) + more
            )
            if total is None:
                layer.bias = None
            elif bias is None:
                layer.bias, layer._accel_grown = (
                    nn.Parameter(total.to(weight), requires_grad=False),
                    True,
                )
            else:
                bias.copy_(total)
        layer.network_current_names = mark

    def _base(self, layer: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weight without networks, kept where the Lora extension keeps it: of a layer never touched there is no second copy."""
        base: Tensor | None = getattr(layer, "network_weights_backup", None)
        if base is None:
            if getattr(layer, "network_current_names", ()):
                raise RuntimeError(
                    f"{layer.network_layer_name}: networks are merged but its base was not kept; load the checkpoint again"
                )
            base = layer.network_weights_backup = self._bases.keep(weight.detach(), weight.device)
            layer.network_bias_backup = None if bias is None else bias.detach().clone()
        elif (
            weight.is_cuda
            and not base.is_cuda
            and not base.is_pinned()
            and self._bases.place(base, weight.device) != "host"
        ):
            base = layer.network_weights_backup = self._bases.keep(
                base, weight.device
            )  # it was the Lora extension's own copy
        return base

    def _look(self) -> list[object]:
        return [vars(layer).get("network_current_names", ()) for layer in self._layers]


def _shrink(layer: Any) -> None:
    """Take a bias away that a network gave the layer, when other weights were loaded into it: the backup is gone by then."""
    if vars(layer).pop("_accel_grown", False) and layer.network_bias_backup is None:
        layer.bias = None


# -- what one network does to one layer


def _term(part: Any, weight: Tensor) -> Term:
    return _factors(part, weight) or functools.partial(_rewrite, part)


def _factors(part: Any, weight: Tensor) -> LowRank | None:
    """The network module as factors, where it is a plain LoRA that fits and nobody has changed how it computes."""
    kind = type(part)
    if (
        kind.calc_updown.__module__ != "network_lora"
        or kind.finalize_updown.__module__ != "network"
        or "calc_updown" in vars(part)
    ):
        return None
    if part.mid_model is not None or part.dora_scale is not None or part.bias is not None:
        return None
    up, down = part.up_model.weight.flatten(1), part.down_model.weight.flatten(1)
    fits = (up.shape[0], up.shape[1], down.shape[1]) == (
        weight.shape[0],
        down.shape[0],
        weight[0].numel(),
    )
    if not fits or _inpainting_input(weight):
        return None
    rank = part.network.dyn_dim
    return LowRank(up[:, :rank], down[:rank], part.calc_scale() * part.multiplier())


def _rewrite(part: Any, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the network module's own code answers, on float32 copies of its tensors.

    A module that does not fit is left out and counted for the WebUI's message, as the Lora extension does.
    """
    try:
        delta, more = _in_float32(part, weight.device).calc_updown(weight)
        if _inpainting_input(weight):
            delta = F.pad(
                delta, (0, 0, 0, 0, 0, 5)
            )  # for the 4 latent channels of 9, whatever it was made for
        return delta.expand_as(weight), more
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:
        webui.count_lora_error(part.network.name)
        return weight.new_zeros(()), None


def _inpainting_input(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.shape[1] == 9


def _in_float32(part: Any, device: torch.device) -> Any:
    view = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(view, name, value.to(device, torch.float32))
        elif isinstance(value, nn.Module) and value is not part.sd_module:
            setattr(view, name, copy.deepcopy(value).to(device, torch.float32))
    return view

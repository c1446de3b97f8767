"""Merges the WebUI's LoRAs into the weights of a UNet before a call that needs them.

The Lora extension reads the files, implements every network type and decides which set is wanted.
It merges inside the patched forwards of layers, which compiled code never calls. This file merges
the same set into all layers at once: only into layers that a wanted network changes, and with one
rounding to the dtype of the weights. It keeps the Lora extension's marks (`network_current_names`)
and backups true, so that a layer that runs unaccelerated afterwards is not merged twice.
"""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...compile.machine import free_memory
from ...runtime.lora.merging import BasePlacement, LowRank, Term, merge
from .. import webui
from .comparison import held_by, merged_otherwise
from .functions import at_home, runs_original

_TYPES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
WIDE_COPIES = 6
"""Of a weight, in float32: what a merge takes at most by a network's own code (LoKr, DoRA)."""

_UNFINISHED = ("accel-unfinished",)
"""The mark of a layer being written. It equals no set: the next merge begins at the base."""


class Loras:
    """Keeps the layers of one UNet merged with the networks that the Lora extension wants."""

    def __init__(self, unet: nn.Module, bases: BasePlacement):
        self._placement = bases
        # Any: the Lora extension adds attributes to layers
        self._layers: list[Any] = [m for m in unet.modules() if isinstance(m, _TYPES)]
        self._wanted: Any = None
        self._foreign: tuple[type, ...] = ()  # kinds of layers that are left to others
        self._marks: list[object] = []
        self._told: set[str] = set()  # the networks of layers that our merge has failed on
        self._by_extension = False  # whose code merges, because ours has differed
        self.kinds: frozenset[str] = frozenset()  # the types of the networks that are wanted

    def bring_up_to_date(self) -> bool:
        """Merge what is not merged yet and return whether a layer was changed.

        Called before every UNet call: where nothing has changed, it only reads the layers' marks.
        Raises RuntimeError, as the Lora extension does, for a layer that is merged and has no
        backup.
        """
        extension = webui.lora_extension()
        if extension is None:
            return False
        # their own forward merges, or does otherwise what an extension wants, at each step
        foreign = tuple(cls for cls in _TYPES if not at_home(cls.forward))
        wanted, marks = webui.wanted_loras(), self._read_marks()
        same = wanted == self._wanted and foreign == self._foreign
        if same and all(map(operator.is_, marks, self._marks)):
            return False
        changed = [
            not isinstance(layer, foreign) and self._update(extension, layer, mark, wanted)
            for layer, mark in zip(self._layers, marks, strict=True)
        ]
        self._wanted, self._foreign, self._marks = wanted, foreign, self._read_marks()
        self.kinds = frozenset(
            type(part).__name__
            for net in extension.loaded_networks
            for part in net.modules.values()
        )
        return any(changed)

    def leave_video_memory(self) -> bool:
        """Move base weights out of video memory and return whether some were there."""
        there = [x for x in self._layers if (base := _backup(x)) is not None and base.is_cuda]
        for layer in there:
            layer.network_weights_backup = self._placement.pin(layer.network_weights_backup)
        return bool(there)

    def check(self) -> str | None:
        """Compare a few merged layers with what the Lora extension's own code makes of copies.

        Where they differ, return how. From then on that code merges, also what is merged now.
        """
        extension = webui.lora_extension()
        if extension is None or self._by_extension or not webui.merges_unpatched(extension):
            return None
        ours = [layer for layer in self._layers if not isinstance(layer, self._foreign)]
        what = merged_otherwise(ours, extension)
        if what is not None:
            self._by_extension = True
            for layer in self._layers:
                if getattr(layer, "network_current_names", ()):
                    layer.network_current_names = _UNFINISHED
                    self._apply_weights(extension, layer)
        return what

    def forget(self) -> None:
        """Drop all base weights: the model is being discarded."""
        for layer in self._layers:
            if _backup(layer) is not None:
                layer.network_weights_backup = layer.network_bias_backup = None
                layer.network_current_names = ()

    def _update(self, extension: Any, layer: Any, mark: object, wanted: tuple[object, ...]) -> bool:
        """Merge the wanted networks into one layer. Return whether that changed it."""
        if not mark:
            _remove_added_bias(layer)
        name = getattr(layer, "network_layer_name", None)
        if name is None or mark == wanted:
            return False
        parts = [net.modules[name] for net in extension.loaded_networks if name in net.modules]
        # with a backup it may hold networks though its mark is gone: extensions reset marks
        if not parts and not mark and _backup(layer) is None:
            return False
        if self._by_extension or not webui.merges_unpatched(extension):
            extension.network_apply_weights(layer)
            return True
        base = self._base(layer)
        layer.network_current_names = _UNFINISHED  # and so it stays where this is interrupted
        try:
            _merge_into(layer, base, parts)
        except Exception as e:  # noqa: BLE001  whatever a network's own code raises
            error = f"{type(e).__name__}: {e}"
        else:
            layer.network_current_names = wanted if parts else ()
            return True
        self._leave_to(extension, layer, parts, error)
        return True

    def _leave_to(self, extension: Any, layer: Any, parts: list[Any], error: str) -> None:
        """Let the Lora extension merge a layer: it skips and counts a network that does not fit.

        What it raises, it raises without us too.
        """
        names = ", ".join(str(part.network.name) for part in parts)
        if names not in self._told:
            self._told.add(names)
            webui.say(
                f"LoRA {names}: {layer.network_layer_name} is left to the Lora extension's own "
                f"code, and so is each layer like it ({error})"
            )
        self._apply_weights(extension, layer)

    def _apply_weights(self, extension: Any, layer: Any) -> None:
        if layer.network_bias_backup is None:
            layer.bias = None  # it takes one that a network has added for the layer's own
        with torch.no_grad():
            extension.network_apply_weights(layer)

    def _base(self, layer: Any) -> Tensor:
        """Return the weight without networks, from where the Lora extension keeps it: one copy."""
        weight, bias = layer.weight, getattr(layer, "bias", None)
        mark = getattr(layer, "network_current_names", ())
        base: Tensor | None = getattr(layer, "network_weights_backup", None)
        if base is None:
            if mark:
                raise RuntimeError(
                    f"{layer.network_layer_name}: networks are merged into this layer and the "
                    "weight without them was not kept; load the checkpoint again"
                )
            base = layer.network_weights_backup = self._placement.keep(
                weight.detach(), weight.device
            )
            layer.network_bias_backup = None if bias is None else bias.detach().clone()
            return base
        if bias is not None and layer.network_bias_backup is None and not mark:
            # a network added it and the mark was reset: the extension takes it for the layer's own
            layer.network_bias_backup = bias.detach().clone()
        if self._belongs_elsewhere(base, weight):
            base = layer.network_weights_backup = self._placement.keep(base, weight.device)
        return base

    def _belongs_elsewhere(self, base: Tensor, weight: Tensor) -> bool:
        """Return whether a base is in ordinary memory though the settings ask for a faster one."""
        ordinary = weight.is_cuda and not base.is_cuda and not base.is_pinned()
        return ordinary and self._placement.place(base, weight.device) != "host"

    def _read_marks(self) -> list[object]:
        own = map(operator.attrgetter("__dict__"), self._layers)
        names, default = itertools.repeat("network_current_names"), itertools.repeat(())
        return list(map(dict.get, own, names, default))


def _backup(layer: Any) -> Tensor | None:
    return vars(layer).get("network_weights_backup")


def _remove_added_bias(layer: Any) -> None:
    """Remove a bias that a network added, after another checkpoint was loaded into the layer."""
    if _backup(layer) is None and vars(layer).pop("_accel_grown", False):
        layer.bias = None


def _merge_into(layer: Any, base: Tensor, parts: list[Any]) -> None:
    """Write a layer's weight and bias: its base with these network modules merged into it."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    terms = [_term(part, weight) for part in parts]
    device = weight.device
    rewritten = not all(isinstance(term, LowRank) for term in terms)
    if rewritten and free_memory(device) < WIDE_COPIES * 4 * weight.numel():
        device = torch.device("cpu")
    try:
        delta = merge(weight, base, terms, device)
    except torch.cuda.OutOfMemoryError:
        delta = merge(weight, base.cpu(), terms, torch.device("cpu"))
    with torch.no_grad():
        _set_bias(layer, bias, _sum(layer.network_bias_backup, delta))


def _sum(base: Tensor | None, delta: Tensor | None) -> Tensor | None:
    if base is None or delta is None:
        return delta if base is None else base
    return base.to(delta) + delta


def _set_bias(layer: Any, bias: Tensor | None, total: Tensor | None) -> None:
    """Write `total` into the layer's bias, adding or removing it where that is needed."""
    if total is None:
        layer.bias = None
    elif bias is None:
        whole = total.to(layer.weight).squeeze(0).expand(layer.weight.shape[0]).clone()
        layer.bias = nn.Parameter(whole, requires_grad=False)
        layer._accel_grown = True
    else:
        bias.copy_(total)


# -- what one network does to one layer


def _term(part: Any, weight: Tensor) -> Term:
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

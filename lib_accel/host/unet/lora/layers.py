"""Merges the WebUI's LoRAs into the weights of a UNet before a call that needs them.

The Lora extension reads the files, implements every network type and decides which set is wanted.
It merges inside the patched forwards of layers, which compiled code never calls. This file merges
the same set into all layers at once: only into layers that a wanted network changes, and with one
rounding to the dtype of the weights. It keeps the Lora extension's marks (`network_current_names`)
and backups true, so that a layer that runs unaccelerated afterwards is not merged twice.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ....compile.machine import free_memory
from ....runtime.lora.batches import Merge, merge_alike
from ....runtime.lora.merging import BasePlacement, LowRank, copy_all, merge
from ... import webui
from ..comparison import merged_otherwise
from ..functions import at_home
from .networks import merges_unpatched, term

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
        self._placed: dict[Any, weakref.ref[Tensor]] = {}  # by layer, the base that was put there
        self._told: set[str] = set()  # the networks of layers that our merge has failed on
        self._by_extension = False  # whose code merges, because ours has differed
        self.kinds: frozenset[str] = frozenset()  # the types of the networks that are wanted

    def bring_up_to_date(self) -> bool:
        """Merge what is not merged yet and return whether a layer was changed.

        Called before every UNet call: where nothing has changed, it only reads the layers' marks.
        Raises RuntimeError, as the Lora extension does, for a layer that is merged and has no
        backup.
        """
        extension = webui.host.lora_extension()
        if extension is None:
            return False
        # their own forward merges, or does otherwise what an extension wants, at each step
        foreign = tuple(cls for cls in _TYPES if not at_home(cls.forward))
        wanted, marks = webui.wanted_loras(), self._read_marks()
        same = wanted == self._wanted and foreign == self._foreign
        if same and all(map(operator.is_, marks, self._marks)):
            return False
        changed = {
            layer: parts
            for layer, mark in zip(self._layers, marks, strict=True)
            if not isinstance(layer, foreign)
            and (parts := _parts(extension, layer, mark, wanted)) is not None
        }
        self._update(extension, changed, wanted)
        self._wanted, self._foreign, self._marks = wanted, foreign, self._read_marks()
        self.kinds = frozenset(
            type(part).__name__
            for net in extension.loaded_networks
            for part in net.modules.values()
        )
        return bool(changed)

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
        extension = webui.host.lora_extension()
        if extension is None or self._by_extension or not merges_unpatched(extension):
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

    def _update(self, extension: Any, layers: dict[Any, list[Any]], wanted: object) -> None:
        """Merge into each layer the network modules that are wanted for it."""
        if self._by_extension or not merges_unpatched(extension):
            for layer in layers:
                extension.network_apply_weights(layer)
            return
        bases = self._bases(list(layers))
        for layer in layers:
            layer.network_current_names = _UNFINISHED  # and so it stays where this is interrupted
        errors = _merge_into(layers, bases)
        for layer, parts in layers.items():
            if layer in errors:
                self._leave_to(extension, layer, parts, errors[layer])
            else:
                layer.network_current_names = wanted if parts else ()

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

    def _bases(self, layers: list[Any]) -> dict[Any, Tensor]:
        """Return the weights without networks, from where the Lora extension keeps them: one copy.

        Raises RuntimeError for a layer that is merged and has none.
        """
        elsewhere = []
        for layer in layers:
            mark = getattr(layer, "network_current_names", ())
            base: Tensor | None = getattr(layer, "network_weights_backup", None)
            if base is None and mark:
                raise RuntimeError(
                    f"{layer.network_layer_name}: networks are merged into this layer and the "
                    "weight without them was not kept; load the checkpoint again"
                )
            bias = getattr(layer, "bias", None)
            if base is None:
                layer.network_bias_backup = None if bias is None else bias.detach().clone()
            elif bias is not None and layer.network_bias_backup is None and not mark:
                # a network added it and the mark was reset: it is not the layer's own
                layer.network_bias_backup = bias.detach().clone()
            if base is None or self._belongs_elsewhere(layer, base):
                elsewhere.append(layer)
        self._keep(elsewhere)
        return {layer: layer.network_weights_backup for layer in layers}

    def _keep(self, layers: list[Any]) -> None:
        """Copy base weights to where the settings want them."""
        for device in {layer.weight.device for layer in layers}:
            here = [layer for layer in layers if layer.weight.device == device]
            bases = [
                layer.weight.detach() if (b := _backup(layer)) is None else b for layer in here
            ]
            for layer, base in zip(here, self._placement.keep(bases, device), strict=True):
                layer.network_weights_backup = base
                self._placed[layer] = weakref.ref(base)

    def _belongs_elsewhere(self, layer: Any, base: Tensor) -> bool:
        """Return whether a base is in ordinary memory though the settings ask for a faster one.

        The Lora extension has put it there. Where ours are, nobody need ask the driver.
        """
        placed = self._placed.get(layer)
        if not layer.weight.is_cuda or base.is_cuda or (placed and placed() is base):
            return False
        return (
            not base.is_pinned()
            and self._placement.place(base.nbytes, layer.weight.device) != "host"
        )

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


def _parts(extension: Any, layer: Any, mark: object, wanted: object) -> list[Any] | None:
    """Return the network modules that are wanted for a layer; None where it is left as it is."""
    if not mark:
        _remove_added_bias(layer)
    name = getattr(layer, "network_layer_name", None)
    if name is None or mark == wanted:
        return None
    parts = [net.modules[name] for net in extension.loaded_networks if name in net.modules]
    # with a backup it may hold networks though its mark is gone: extensions reset marks
    if not parts and not mark and _backup(layer) is None:
        return None
    return parts


def _merge_into(layers: dict[Any, list[Any]], bases: dict[Any, Tensor]) -> dict[Any, str]:
    """Write weights and biases: the bases with these network modules merged into them.

    Return, by layer, what a network's own code has raised; such a layer is not finished.
    """
    errors, merges = {}, {}
    for layer, parts in layers.items():
        try:
            terms = [term(part, layer.weight) for part in parts]
        except Exception as e:  # noqa: BLE001  whatever a network's own code raises
            errors[layer] = f"{type(e).__name__}: {e}"
        else:
            merges[layer] = Merge(layer.weight, bases[layer], terms)
    alone, deltas, biases = list(merges.items()), {}, {}
    with contextlib.suppress(torch.cuda.OutOfMemoryError):  # then each is done alone
        done = merge_alike(list(merges.values()))
        alone = [pair for i, pair in enumerate(alone) if i not in done]
    for layer, one in alone:
        try:
            deltas[layer] = _merge_alone(one)
        except Exception as e:  # noqa: BLE001  whatever a network's own code raises
            errors[layer] = f"{type(e).__name__}: {e}"
    for layer in (layer for layer in merges if layer not in errors):
        try:
            biases[layer] = _sum(layer.network_bias_backup, deltas.get(layer))
            _check_bias(layer, biases[layer])
        except RuntimeError as e:  # a network's bias of another length
            errors[layer] = f"{type(e).__name__}: {e}"
    _set_biases({layer: total for layer, total in biases.items() if layer not in errors})
    return errors


def _merge_alone(one: Merge) -> Tensor | None:
    device = one.weight.device
    rewritten = not all(isinstance(each, LowRank) for each in one.terms)
    if rewritten and free_memory(device) < WIDE_COPIES * 4 * one.weight.numel():
        device = torch.device("cpu")
    try:
        return merge(one.weight, one.base, one.terms, device)
    except torch.cuda.OutOfMemoryError:
        return merge(one.weight, one.base.cpu(), one.terms, torch.device("cpu"))


def _sum(base: Tensor | None, delta: Tensor | None) -> Tensor | None:
    if base is None or delta is None:
        return delta if base is None else base
    return base.to(delta) + delta


def _check_bias(layer: Any, total: Tensor | None) -> None:
    """Raise RuntimeError where a layer cannot have this bias."""
    if total is not None:
        torch.broadcast_shapes(total.squeeze(0).shape, layer.weight.shape[:1])


@torch.no_grad()
def _set_biases(totals: dict[Any, Tensor | None]) -> None:
    """Write each layer's bias, adding or removing it where that is needed."""
    there = []
    for layer, total in totals.items():
        bias = getattr(layer, "bias", None)
        if total is None:
            layer.bias = None
        elif bias is None:
            whole = total.to(layer.weight).squeeze(0).expand(layer.weight.shape[0]).clone()
            layer.bias = nn.Parameter(whole, requires_grad=False)
            layer._accel_grown = True
        else:
            there.append((bias, total))
    copy_all([bias for bias, _ in there], [total for _, total in there])

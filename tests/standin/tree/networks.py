"""The Lora extension: patched class forwards of torch's layers.

Each layer merges the wanted networks into itself before it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import network
import torch
from modules import shared
from network_full import ModuleTypeFull
from network_lora import ModuleTypeLora
from network_lycoris import (
    ModuleTypeGLora,
    ModuleTypeHada,
    ModuleTypeIa3,
    ModuleTypeLokr,
    ModuleTypeNorm,
)
from network_oft import ModuleTypeOFT
from torch import Tensor, nn

module_types: list[Any] = [
    ModuleTypeLora(),
    ModuleTypeHada(),
    ModuleTypeIa3(),
    ModuleTypeLokr(),
    ModuleTypeFull(),
    ModuleTypeNorm(),
    ModuleTypeGLora(),
    ModuleTypeOFT(),
]

PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
loaded_networks: list[network.Network] = []
networks_in_memory: dict[str, network.Network] = {}
extra_network_lora = SimpleNamespace(errors={})
_originals: dict[tuple[type, str], Any] = {}
computed: set[int] | None = None
"""For tests: where this is a set, the ids of the modules whose own forward has run."""


def load_networks(
    names: Sequence[str],
    te_multipliers: Sequence[float],
    unet_multipliers: Sequence[float],
    dyn_dims: Sequence[int | None],
) -> None:
    """Want networks of these names. The WebUI's reads those whose file is newer than `mtime`."""
    known = {net.name: net for net in loaded_networks}
    loaded_networks.clear()
    for name, te, unet, rank in zip(names, te_multipliers, unet_multipliers, dyn_dims, strict=True):
        net = known[name]
        net.mtime = max(net.mtime, 1)
        net.te_multiplier, net.unet_multiplier, net.dyn_dim = te, unet, rank
        loaded_networks.append(net)


def assign_network_names_to_compvis_modules(sd_model: Any) -> None:
    sd_model.network_layer_mapping = {}
    for name, module in sd_model.model.named_modules():
        module.network_layer_name = name.replace(".", "_")
        sd_model.network_layer_mapping[module.network_layer_name] = module


# where the base of each is kept
KEPT = {"weight": "network_weights_backup", "bias": "network_bias_backup"}


def network_apply_weights(self: Any) -> None:
    """Merge the wanted set into the layer, beginning at its base, which the first merge keeps."""
    wanted = tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in loaded_networks)
    merged = getattr(self, "network_current_names", ())
    name = getattr(self, "network_layer_name", None)
    if name is None:
        return
    for part, kept in KEPT.items() if wanted else ():
        value = getattr(self, part)
        if getattr(self, kept, None) is None:
            if merged and value is not None:  # a network added it, or its base was lost
                raise RuntimeError(f"{name}.{part}: {merged} are merged and its base is not known")
            setattr(self, kept, None if value is None else value.to("cpu", copy=True))
    if merged != wanted:
        network_restore_weights_from_backup(self)
        for net in loaded_networks:
            _merge_or_count(self, net, name)
        self.network_current_names = wanted


def _merge_or_count(layer: Any, net: network.Network, name: str) -> None:
    try:
        if name in net.modules:
            _merge(layer, net.modules[name])
    except RuntimeError:
        extra_network_lora.errors[net.name] = extra_network_lora.errors.get(net.name, 0) + 1


@torch.no_grad()
def _merge(layer: Any, module: network.NetworkModule) -> None:
    delta, more = module.calc_updown(layer.weight)
    layer.weight.copy_(layer.weight + delta)
    if more is None:
        return
    if layer.bias is None:
        layer.bias = nn.Parameter(more, requires_grad=False)
    else:
        layer.bias.copy_(layer.bias + more)


@torch.no_grad()
def network_restore_weights_from_backup(self: Any) -> None:
    base = {part: getattr(self, kept, None) for part, kept in KEPT.items()}
    if base["weight"] is None:
        return
    self.weight.copy_(base["weight"])
    if base["bias"] is None:
        self.bias = None
    else:
        self.bias.copy_(base["bias"])


def network_reset_cached_weight(self: Any) -> None:
    self.network_current_names, self.network_weights_backup, self.network_bias_backup = (
        (),
        None,
        None,
    )


def _patched_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, input: Tensor) -> Tensor:  # noqa: A002
        if computed is not None:
            computed.add(id(self))
        if not shared.opts.lora_functional:
            network_apply_weights(self)
            return original(self, input)
        if not loaded_networks:
            return original(self, input)
        network_restore_weights_from_backup(self)
        network_reset_cached_weight(self)
        y = original(self, input)
        for net in loaded_networks:
            module = net.modules.get(getattr(self, "network_layer_name", ""))
            y = y if module is None else module.forward(input, y)
        return y

    return forward


def _patched_load(original: Callable[..., None]) -> Callable[..., None]:
    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        network_reset_cached_weight(self)
        original(self, *args, **kwargs)

    return load


def patch() -> None:
    for cls in PATCHED:
        for name, patched in (
            ("forward", _patched_forward),
            ("_load_from_state_dict", _patched_load),
        ):
            _originals[cls, name] = vars(cls).get(name)
            setattr(cls, name, patched(getattr(cls, name)))


def undo() -> None:
    for (cls, name), original in _originals.items():
        if original is None:
            delattr(cls, name)  # inherited
        else:
            setattr(cls, name, original)
    _originals.clear()

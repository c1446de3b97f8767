"""Facts: the Lora extension, on layers made for this."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import network
import network_full
import networks
import torch
from modules import shared
from torch import Tensor, nn

Wanted = list[tuple[str, dict[str, Tensor]]]


def _layer(bias: bool = True, cls: Any = nn.Linear) -> Any:
    torch.manual_seed(0)
    layer = {
        nn.Linear: lambda: nn.Linear(6, 6, bias=bias),
        nn.Conv2d: lambda: nn.Conv2d(6, 6, 3, padding=1),
    }.get(cls, lambda: cls(6))()
    layer.requires_grad_(False).network_layer_name = "standin_probe"
    return layer


def _lora() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "lora_up.weight": torch.randn(6, 2),
        "lora_down.weight": torch.randn(2, 6),
        "alpha": torch.tensor(1.0),
    }


def made(name: str, layer: nn.Module, parts: dict[str, Tensor]) -> Any:
    """Return a network of these parts for one layer."""
    net = network.Network(name, None)
    weights = network.NetworkWeights(
        network_key="standin_probe", sd_key="standin_probe", w=dict(parts), sd_module=layer
    )
    net.modules["standin_probe"] = next(
        m for t in networks.module_types if (m := t.create_module(net, weights))
    )
    return net


@contextlib.contextmanager
def wanted(*nets: Any) -> Iterator[None]:
    """Want these networks, and leave wishes and counted errors as they were."""
    before, errors = list(networks.loaded_networks), dict(networks.extra_network_lora.errors)
    networks.loaded_networks[:] = nets
    try:
        yield
    finally:
        networks.loaded_networks[:] = before
        networks.extra_network_lora.errors.clear()
        networks.extra_network_lora.errors.update(errors)


def _marks(layer: Any) -> list[Any]:
    names = ("network_current_names", "network_weights_backup", "network_bias_backup")
    return [
        _numbers(value) if isinstance(value, Tensor) else value
        for value in (getattr(layer, name, "none") for name in names)
    ]


def _numbers(t: Tensor | None) -> Any:
    return None if t is None else [round(v, 4) for v in t.flatten().tolist()]


def fields() -> dict[str, Any]:
    """What a loaded network and its modules consist of, as far as we read them."""
    layer = _layer()
    net = made("a", layer, _lora())
    part = net.modules["standin_probe"]
    kind = type(part)
    return {
        "network": [net.name, net.te_multiplier, net.unet_multiplier, net.dyn_dim],
        "part": [
            part.network is net,
            part.sd_module is layer,
            part.mid_model,
            part.dora_scale,
            part.bias,
            part.alpha,
            part.scale,
            part.dim,
        ],
        "factors": [
            type(part.up_model).__name__,
            list(part.up_model.weight.shape),
            list(part.down_model.weight.shape),
            str(part.up_model.weight.dtype),
        ],
        "scale": [part.calc_scale(), part.multiplier()],
        "modules": [
            kind.calc_updown.__module__,
            kind.finalize_updown.__module__,
            networks.network_apply_weights.__module__,
        ],
        "full": [
            network_full.NetworkModuleFull.calc_updown.__module__,
            network_full.NetworkModuleFull.finalize_updown.__module__,
        ],
        "patched": [
            getattr(cls, name).__module__
            for cls in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
            for name in ("forward", "_load_from_state_dict")
        ],
        "names": type(networks.loaded_networks).__name__,
    }


@torch.no_grad()
def updown() -> dict[str, Any]:
    """What each type computes, at several strengths and ranks."""
    out = {}
    layer, conv = _layer(), _layer(cls=nn.Conv2d)
    torch.manual_seed(2)
    small = {"lora_up.weight": torch.randn(6, 2, 1, 1), "lora_down.weight": torch.randn(2, 6, 3, 3)}
    whole = {"diff": torch.randn(6, 6), "diff_b": torch.randn(6)}
    for name, module, parts in (
        ("lora", layer, _lora()),
        ("convolution", conv, small),
        ("full", layer, whole),
    ):
        net = made("a", module, parts)
        net.te_multiplier, net.unet_multiplier = 5.0, -0.5
        for rank in (None, 1):
            net.dyn_dim = rank
            delta, more = net.modules["standin_probe"].calc_updown(module.weight)
            out[f"{name} {rank}"] = [list(delta.shape), _numbers(delta), _numbers(more)]
    return out


@torch.no_grad()
def merging() -> dict[str, Any]:
    """A layer's own forward under several wanted sets and none; with and without a bias."""
    out: dict[str, Any] = {}
    x = torch.linspace(-1, 1, 6)[None]
    for bias in (True, False):
        layer = _layer(bias)
        steps = out["with a bias" if bias else "without"] = [
            ["base", *_marks(layer), _numbers(layer(x))]
        ]
        a, b = made("a", layer, _lora()), made("b", layer, {"diff": torch.eye(6)})
        foreign = network.Network("foreign", None)
        for name, nets in (
            ("a", (a,)),
            ("a again", (a,)),
            ("a and b", (a, b)),
            ("foreign", (foreign,)),
            ("nothing", ()),
            ("b", (b,)),
        ):
            with wanted(*nets):
                steps.append([name, _numbers(layer(x)), *_marks(layer), _numbers(layer.weight)])
        with wanted():
            steps.append([_numbers(layer(x)), *_marks(layer)])
    return out


@torch.no_grad()
def a_new_bias() -> list[Any]:
    """A network with a bias for a layer without one: two calls, and one without the network."""
    layer = _layer(bias=False)
    net = made("a", layer, {"diff": torch.eye(6), "diff_b": torch.ones(6)})
    x = torch.linspace(-1, 1, 6)[None]
    out: list[Any] = []
    with wanted(net):
        for _ in range(2):
            try:
                out.append(_numbers(layer(x)))
            except RuntimeError as e:
                out.append(type(e).__name__)  # the texts differ
            out += [_marks(layer), _numbers(layer.bias)]
    out += [_numbers(layer(x)), _marks(layer), _numbers(layer.bias)]
    return out


@torch.no_grad()
def failing() -> dict[str, Any]:
    """A network that does not fit is counted and left out; a mark without a backup raises."""
    layer = _layer()
    base = layer.weight.clone()
    bad = made("bad", layer, {"diff": torch.zeros(7, 5)})
    with wanted(bad):
        networks.network_apply_weights(layer)
        errors = dict(networks.extra_network_lora.errors)
    unnamed = nn.Linear(6, 6)
    with wanted(made("a", unnamed, _lora())):
        networks.network_apply_weights(unnamed)
    torn = _layer()
    torn.network_current_names = (("x", 1.0, 1.0, None),)
    try:
        with wanted(bad):
            networks.network_apply_weights(torn)
        raised = None
    except RuntimeError as e:
        raised = type(e).__name__
    return {
        "errors": errors,
        "base": bool(torch.equal(layer.weight, base)),
        "marks": _marks(layer),
        "unnamed": _marks(unnamed),
        "raised": raised,
    }


@torch.no_grad()
def loading() -> list[Any]:
    """Restoring writes the backup back; loading a state dict drops marks and backups."""
    layer = _layer()
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    with wanted(made("a", layer, _lora())):
        layer(torch.ones(1, 6))
    changed = not torch.equal(layer.weight, state["weight"])
    networks.network_restore_weights_from_backup(layer)
    restored = bool(torch.equal(layer.weight, state["weight"]))
    layer.load_state_dict(state)
    return [changed, restored, _marks(layer)]


@torch.no_grad()
def at_run_time() -> list[Any]:
    """The old method, an option: the same answer without changing the weight."""
    layer = _layer()
    base, x = layer.weight.clone(), torch.linspace(-1, 1, 6)[None]
    out: list[Any] = []
    with wanted(made("a", layer, _lora())):
        out.append(_numbers(layer(x)))
        shared.opts.data["lora_functional"] = True
        try:
            out += [_numbers(layer(x)), bool(torch.equal(layer.weight, base)), _marks(layer)]
        finally:
            shared.opts.data["lora_functional"] = False
    return out


def classes() -> dict[str, Any]:
    """All four kinds of layer merge in their forward."""
    out = {}
    given = {
        nn.Linear: torch.ones(1, 6),
        nn.Conv2d: torch.ones(1, 6, 4, 4),
        nn.LayerNorm: torch.ones(1, 6),
    }
    for cls in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm):
        layer = _layer(cls=cls) if cls is not nn.GroupNorm else nn.GroupNorm(2, 6)
        layer.network_layer_name = "standin_probe"
        with (
            torch.no_grad(),
            wanted(made("a", layer, {"diff": torch.ones_like(layer.weight)})),
        ):
            layer(given.get(cls, torch.ones(1, 6, 4, 4)))
            out[cls.__name__] = getattr(layer, "network_current_names", None)
    return out


FACTS = (
    fields,
    updown,
    merging,
    a_new_bias,
    failing,
    loading,
    at_run_time,
    classes,
)

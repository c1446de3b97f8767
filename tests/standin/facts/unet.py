"""Facts: the loaded UNet, whatever its size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from modules import sd_models
from torch import Tensor, nn


def unet() -> dict[str, Any]:
    """Classes, names of parts with parameters, and where the forwards come from."""
    from lib_accel.host.unet.functions import HOME

    whole = sd_models.model_data.sd_model.model.diffusion_model
    block = whole.input_blocks[1]
    layers = {
        "ResBlock": block[0],
        "SpatialTransformer": block[1],
        "out": whole.out,
        "time_embed": whole.time_embed,
    }
    layers |= {
        "first": whole.input_blocks[0][0],
        "Downsample": _first(whole, "Downsample"),
        "Upsample": _first(whole, "Upsample"),
    }
    forwards = [
        getattr(type(m), name).__module__
        for m in whole.modules()
        for name in ("forward", "_forward")
        if hasattr(type(m), name)
    ]
    return {
        "classes": {
            name: [c.__name__ for c in type(layer).__mro__ if c is not object]
            for name, layer in layers.items()
        },
        "leaves": {name: _leaves(layer) for name, layer in layers.items()},
        "blocks": [
            type(b).__name__
            for b in (
                whole,
                whole.input_blocks,
                block,
                whole.middle_block,
                whole.output_blocks,
                whole.output_blocks[0],
            )
        ],
        "foreign forwards": sorted({f.partition(".")[0] for f in forwards} - set(HOME)),
        "joining": _joining(whole),
        "heads": type(block[1].transformer_blocks[0].attn1.heads).__name__,
        "gradients": sorted({p.requires_grad for p in whole.parameters()}),
        "training": whole.training,
        "first layer's name": block[0].in_layers[2].network_layer_name,
    }


def _joining(whole: Any) -> list[Any]:
    """Return what replaces torch in the UNet's own file, and how it joins tensors."""
    th = vars(sys.modules[type(whole).__module__])["th"]
    a, b = torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 3, 4)
    return [type(th).__name__, th.cat.__module__, list(th.cat([a, b], dim=1).shape)]


def _first(network: nn.Module, name: str) -> nn.Module:
    return next(m for m in network.modules() if type(m).__name__ == name)


def _leaves(layer: nn.Module) -> dict[str, list[Any]]:
    """Return the parts with parameters: torch's class, and the dimensions of each parameter."""
    out = {}
    for name, module in layer.named_modules():
        own = {k: p.ndim for k, p in module.named_parameters(recurse=False)}
        if own:
            torchs = next(
                c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.")
            )
            out[name] = [
                torchs,
                own,
                getattr(module, "eps", None),
                getattr(module, "padding_mode", None),
            ]
    return out


@torch.no_grad()
def unet_calls() -> dict[str, Any]:
    """How the class forward calls blocks, and a block its layers; sizes that halve to odd ones."""
    whole = sd_models.model_data.sd_model.model.diffusion_model
    block, last = whole.input_blocks[1], whole.output_blocks[-1]
    watched = {"input": block, "middle": whole.middle_block, "output": last, "out": whole.out}
    watched |= {
        "ResBlock": block[0],
        "SpatialTransformer": block[1],
        "Downsample": _first(whole, "Downsample"),
    }
    seen: dict[str, list[Any]] = {}

    def see(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = [[getattr(a, "ndim", None) for a in args], list(kwargs)]

        return hook

    hooks = [
        m.register_forward_pre_hook(see(name), with_kwargs=True) for name, m in watched.items()
    ]
    try:
        shapes = [
            list(type(whole).forward(whole, torch.zeros(1, 4, *size), *_small(whole)).shape)
            for size in ((16, 16), (9, 13))
        ]
    finally:
        for hook in hooks:
            hook.remove()
    return {"seen": seen, "shapes": shapes, "wrapper": _wrapper(whole)}


def _small(whole: Any) -> list[Tensor]:
    context = whole.input_blocks[1][1].transformer_blocks[0].attn2.to_k.weight.shape[1]
    return [torch.tensor([3.0]), torch.zeros(1, 77, context)]


def _wrapper(whole: Any) -> list[Any]:
    """Return how the model calls its UNet when the sampler calls the model."""
    calls: list[list[Any]] = []
    before = vars(whole).get("forward")

    def recorder(*args: Any, **kwargs: Any) -> Tensor:
        calls.append([len(args), list(kwargs)])
        return args[0]

    whole.forward = recorder
    timesteps, context = _small(whole)
    x = torch.ones(1, 4, 8, 8)
    try:
        answer = sd_models.model_data.sd_model.apply_model(x, timesteps, {"c_crossattn": [context]})
    finally:
        del whole.forward
        if before is not None:
            whole.forward = before
    return [calls, bool(torch.equal(answer, x))]

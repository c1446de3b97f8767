"""Every family of UNets that this extension serves, built by diffusers, with LDM parameter names.

diffusers is the independent witness: it has its own layers, names and wiring. A family is a
function from a width to a diffusers config. So one definition gives the real size (on `meta`,
without memory, only described) and a small one (run).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from lib_accel.model.random_weights import random_weight
from lib_accel.runtime.lora.diffusers_names import RESIDUAL_BLOCK

Config = dict[str, Any]
Shape = tuple[int, ...]


def sd1(width: int = 320, context: int = 768, in_channels: int = 4) -> Config:
    return {
        "in_channels": in_channels,
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "cross_attention_dim": context,
        "attention_head_dim": 8,  # diffusers' name for the number of heads
    }


def sd2(width: int = 320, context: int = 1024, in_channels: int = 4) -> Config:
    heads = [width * m // 64 for m in (1, 2, 4, 4)]
    return {
        **sd1(width, context, in_channels),
        "attention_head_dim": heads,
        "use_linear_projection": True,
    }


def unclip(width: int = 320, context: int = 1024, adm: int = 2048) -> Config:
    """SD2 with an image embedding as `y`."""
    return {
        **sd2(width, context),
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": adm,
    }


def sdxl(
    width: int = 320,
    context: int = 2048,
    in_channels: int = 4,
    pooled: int = 1280,
    numbers: int = 256,
) -> Config:
    return {
        "in_channels": in_channels,
        "block_out_channels": [width, 2 * width, 4 * width],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": context,
        "attention_head_dim": [max(1, width * m // 64) for m in (1, 2, 4)],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": numbers,
        "projection_class_embeddings_input_dim": pooled + 6 * numbers,
    }


def ssd1b(width: int = 320, context: int = 2048, pooled: int = 1280, numbers: int = 256) -> Config:
    """Segmind SSD-1B: SDXL with shallower transformers and a middle of one residual block.

    The transformers have other depths on the way up than on the way down.
    """
    return {
        **sdxl(width, context, 4, pooled, numbers),
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
    }


def refiner(
    width: int = 384, context: int = 1280, pooled: int = 1280, numbers: int = 256
) -> Config:
    return {
        **sdxl(width, context, 4, pooled, numbers),
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "down_block_types": [
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "attention_head_dim": [max(1, width * m // 64) for m in (1, 2, 4, 4)],
        "projection_class_embeddings_input_dim": pooled + 5 * numbers,
    }


@dataclass(frozen=True)
class Family:
    label: str  # `Architecture.name` of the real size
    config: Callable[..., Config]
    small: Config  # arguments of the size that is run
    real: Config  # arguments of the real size
    parameters: int | None = None  # of the real size, where it is published


def _family(
    label: str, config: Callable[..., Config], parameters: int | None = None, **real: int
) -> Family:
    # SD2 has heads of 64 channels from the first level on.
    width = 64 if config in (sd2, unclip) else 32
    small = {**real, "width": width, "context": 48}
    if config in (sdxl, ssd1b, refiner):
        small |= {"pooled": 16, "numbers": 8}
    if config is unclip:
        small["adm"] = 40
    return Family(label, config, small, real, parameters)


FAMILIES: dict[str, Family] = {
    "sd1": _family("SD1", sd1, 859_520_964),
    "sd1-inpainting": _family("SD1 inpainting", sd1, in_channels=9),
    "sd1-edit": _family("SD1 edit", sd1, in_channels=8),
    "sd2": _family("SD2", sd2, 865_910_724),
    "sd2-inpainting": _family("SD2 inpainting", sd2, in_channels=9),
    "sd2-unclip": _family("UNet 320/1024", unclip),
    "sdxl": _family("SDXL", sdxl, 2_567_463_684),
    "sdxl-inpainting": _family("SDXL inpainting", sdxl, in_channels=9),
    "sdxl-edit": _family("SDXL edit", sdxl, in_channels=8),
    "sdxl-refiner": _family("SDXL refiner", refiner),
    "ssd-1b": _family("SDXL (reduced)", ssd1b),
}


def random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill with weights that keep activations near 1, none of them zero, and return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.requires_grad_(False)
            p.copy_(random_weight(name, p.shape, generator))
    return module.eval()


@functools.cache
def small_unet(name: str) -> UNet2DConditionModel:
    """Return the UNet of the small size, which tests share and must not change."""
    family = FAMILIES[name]
    unet = UNet2DConditionModel(**family.config(**family.small))
    random_weights(unet)
    return unet


@functools.cache
def real_unet(name: str) -> UNet2DConditionModel:
    """Return the UNet of the real size on `meta`: it takes no memory and cannot run."""
    family = FAMILIES[name]
    with torch.device("meta"):
        return UNet2DConditionModel(**family.config(**family.real))


@functools.cache
def real_shapes(name: str) -> dict[str, Shape]:
    """Return the parameter names and shapes of the real size, in the LDM layout."""
    return shapes(ldm_parameters(real_unet(name)))


def shapes(parameters: dict[str, nn.Parameter]) -> dict[str, Shape]:
    return {name: tuple(p.shape) for name, p in parameters.items()}


_LDM_PARTS = {theirs: ours for ours, theirs in RESIDUAL_BLOCK.items()}


def ldm_parameters(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """Return all of the UNet's own Parameter objects under the checkpoint's names."""
    renamed = dict(_ldm_modules(unet))
    out: dict[str, nn.Parameter] = {}
    for name, p in unet.named_parameters():
        prefix = max((k for k in renamed if name.startswith(f"{k}.")), key=len)
        rest = name[len(prefix) + 1 :]
        if ".resnets." in prefix:
            layer, _, kind = rest.rpartition(".")
            rest = f"{_LDM_PARTS[layer]}.{kind}"
        out[f"{renamed[prefix]}.{rest}"] = p
    assert len(out) == len(list(unet.parameters()))
    return out


def _ldm_modules(unet: UNet2DConditionModel) -> Iterator[tuple[str, str]]:
    """Yield (diffusers module, LDM module), numbering blocks in the order data passes them."""
    yield from {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
    }.items()
    for theirs in ("add_embedding", "class_embedding"):
        yield from {
            f"{theirs}.linear_1": "label_emb.0.0",
            f"{theirs}.linear_2": "label_emb.0.2",
        }.items()
    yield from {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items()
    n = 0
    for i, down in enumerate(unet.down_blocks):
        for j in range(len(down.resnets)):
            n += 1
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{n}.1"
        if down.downsamplers:
            n += 1
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{n}.0.op"
    for theirs, number in {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}.items():
        yield f"mid_block.{theirs}", f"middle_block.{number}"
    n = 0
    for i, up in enumerate(unet.up_blocks):
        attention = hasattr(up, "attentions")
        for j in range(len(up.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{n}.1"
            n += 1
        yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{n - 1}.{2 if attention else 1}"

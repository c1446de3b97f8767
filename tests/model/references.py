"""What our UNet is compared with: diffusers' layers, in diffusers' and in the WebUI's wiring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from .families import Config


@dataclass(frozen=True)
class Inputs:
    """The inputs of one call of a UNet, float32."""

    x: Tensor  # [B, C, H, W] latents
    t: Tensor  # [B]
    context: Tensor  # [B, L, context_dim]
    y: Tensor | None  # [B, adm]
    diffusers: dict[str, Any]  # what `y` was made of, as diffusers takes it


def inputs(
    config: Config, batch: int, height: int, width: int, length: int, seed: int = 1
) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config["in_channels"], height, width, generator=g)
    t = torch.rand(batch, generator=g) * 999
    context = torch.randn(batch, length, config["cross_attention_dim"], generator=g)
    y, extra, adm = None, {}, config.get("projection_class_embeddings_input_dim")
    if "addition_embed_type" in config:
        numbers = config["addition_time_embed_dim"]
        # The refiner takes one number less: a score instead of a size.
        count = 5 if len(config["block_out_channels"]) == 4 else 6
        sizes = torch.randint(0, 1024, (batch, count), generator=g).float()
        pooled = torch.randn(batch, adm - count * numbers, generator=g)
        frequencies = 10000.0 ** (-torch.arange(numbers // 2) / (numbers // 2))
        angles = sizes[:, :, None] * frequencies
        y = torch.cat([pooled, torch.cat([angles.cos(), angles.sin()], -1).flatten(1)], 1)
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    elif adm:
        y = torch.randn(batch, adm, generator=g)
        extra = {"class_labels": y}
    return Inputs(x, t, context, y, extra)


@torch.no_grad()
def diffusers_forward(unet: UNet2DConditionModel, i: Inputs) -> Tensor:
    return unet(i.x, i.t, i.context, **i.diffusers, return_dict=False)[0]


@torch.no_grad()
def webui_forward(unet: UNet2DConditionModel, i: Inputs) -> Tensor:
    """Run diffusers' layers in the WebUI's wiring.

    Upsampling is always nearest x2 and a convolution, and a decoder tensor that came back larger
    than its skip is resized (nearest) before the two are joined.
    """
    emb = unet.time_embedding(unet.get_time_embed(i.x, i.t))
    if i.y is not None:
        emb = emb + (
            unet.class_embedding if unet.class_embedding is not None else unet.add_embedding
        )(i.y)
    h = unet.conv_in(i.x)
    skips = [h]
    for down in unet.down_blocks:
        for j, resnet in enumerate(down.resnets):
            h = _attend(down, j, resnet(h, emb), i.context)
            skips.append(h)
        for sampler in down.downsamplers or []:
            h = sampler(h)
            skips.append(h)
    middle = unet.mid_block
    h = _attend(middle, 0, middle.resnets[0](h, emb), i.context)
    for resnet in middle.resnets[1:]:
        h = resnet(h, emb)
    for up in unet.up_blocks:
        for j, resnet in enumerate(up.resnets):
            skip = skips.pop()
            if h.shape[-2:] != skip.shape[-2:]:
                h = F.interpolate(h, skip.shape[-2:], mode="nearest")
            h = _attend(up, j, resnet(torch.cat([h, skip], 1), emb), i.context)
        for sampler in up.upsamplers or []:
            h = sampler.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
    return unet.conv_out(F.silu(unet.conv_norm_out(h)))


def _attend(block: nn.Module, j: int, h: Tensor, context: Tensor) -> Tensor:
    attentions = getattr(block, "attentions", None)
    if not attentions or attentions[j] is None:
        return h
    return attentions[j](h, encoder_hidden_states=context, return_dict=False)[0]

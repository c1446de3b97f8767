"""The baseline: diffusers' own UNet over the same Parameter objects, so that only the code differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BackendUnavailable
from ...model.architecture import Architecture, Block, Downsample, Layer, SpatialTransformer
from ...model.diffusers_names import diffusers_names

_INNER = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
}


class Reference(nn.Module):
    """Called as our own UNet is. `sdpa`: with fused attention, else with the plain one (scores held in memory)."""

    def __init__(
        self, architecture: Architecture, parameters: Mapping[str, nn.Parameter], sdpa: bool
    ):
        super().__init__()
        try:
            from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        except ImportError as e:
            raise BackendUnavailable(
                f"diffusers is not installed ({e}); pip install diffusers"
            ) from e
        with torch.device("meta"):
            self.unet = UNet2DConditionModel(**_config(architecture))
        _adopt(self.unet, architecture, parameters)
        self.unet.set_attn_processor(AttnProcessor2_0() if sdpa else AttnProcessor())
        self.unet.eval()

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None
    ) -> Tensor:
        return self.unet(x, timesteps, context, class_labels=y, return_dict=False)[0]


def _levels(a: Architecture) -> list[list[Block]]:
    levels: list[list[Block]] = [[]]
    for block in a.input_blocks[1:]:
        if isinstance(block[0], Downsample):
            levels.append([])
        else:
            levels[-1].append(block)
    return levels


def _transformer(block: tuple[Layer, ...]) -> SpatialTransformer | None:
    return next((layer for layer in block if isinstance(layer, SpatialTransformer)), None)


def _config(a: Architecture) -> dict[str, Any]:
    """The diffusers configuration of a UNet whose levels are alike on both ways (SD1, SD2, SDXL, refiner and their variants)."""
    levels = _levels(a)
    firsts = [_transformer(blocks[0]) for blocks in levels]
    some = next(t for t in firsts if t)
    kind = ["CrossAttnDownBlock2D" if t else "DownBlock2D" for t in firsts]
    return {
        "in_channels": a.in_channels,
        "out_channels": a.out_channels,
        "block_out_channels": [blocks[0][0].out_channels for blocks in levels],  # type: ignore[union-attr]
        "layers_per_block": len(levels[0]),
        "down_block_types": kind,
        "up_block_types": [k.replace("Down", "Up") for k in reversed(kind)],
        "transformer_layers_per_block": [t.depth if t else _middle_depth(a) for t in firsts],
        "cross_attention_dim": a.context_dim,
        "attention_head_dim": [
            t.heads if t else _heads(a, blocks) for t, blocks in zip(firsts, levels, strict=True)
        ],
        "use_linear_projection": some.linear,
        **(
            {
                "class_embed_type": "projection",
                "projection_class_embeddings_input_dim": a.adm_channels,
            }
            if a.adm_channels
            else {}
        ),
    }


def _middle_depth(a: Architecture) -> int:
    middle = _transformer(a.middle_block)
    return middle.depth if middle else 1


def _heads(a: Architecture, blocks: list[Block]) -> int:
    """diffusers takes the middle block's heads from the last level, which may have no transformer of its own."""
    middle = _transformer(a.middle_block)
    return middle.heads if middle and blocks[-1][0].out_channels == middle.channels else 1  # type: ignore[union-attr]


def _adopt(unet: nn.Module, a: Architecture, parameters: Mapping[str, nn.Parameter]) -> None:
    renamed = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
    }
    renamed |= {
        "label_emb.0.0": "class_embedding.linear_1",
        "label_emb.0.2": "class_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    renamed |= dict(diffusers_names(a))
    for name, parameter in parameters.items():
        layer, _, kind = name.rpartition(".")
        prefix = max((k for k in renamed if f"{layer}.".startswith(f"{k}.")), key=len)
        rest = layer[len(prefix) + 1 :]
        path = ".".join(filter(None, (renamed[prefix], _INNER.get(rest, rest))))
        twin = _part(unet, path, kind)
        if twin is None or twin.shape != parameter.shape:
            raise BackendUnavailable(
                f"this architecture has no diffusers twin here: {name} has no place; choose a preset family"
            )
        setattr(unet.get_submodule(path), kind, parameter)
    left = [n for n, p in unet.named_parameters() if p.device.type == "meta"]
    if left:
        raise BackendUnavailable(
            f"this architecture has no diffusers twin here: {left[0]} got no weight; choose a preset family"
        )


def _part(unet: nn.Module, path: str, kind: str) -> Tensor | None:
    try:
        return getattr(unet.get_submodule(path), kind)
    except AttributeError:
        return None

"""The names diffusers (and most LoRA files) give to a UNet's layers, from the architecture alone."""

from __future__ import annotations

from collections.abc import Iterator

from .architecture import Architecture
from .specs import Downsample, ResBlock, SpatialTransformer, Upsample


def layer_aliases(a: Architecture) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(layer name in the checkpoint, its names in LoRA files): the checkpoint's own, and diffusers'."""
    for name, block in diffusers_names(a):
        inner = dict(a.layers())[name]
        if isinstance(inner, ResBlock):
            pairs = {
                "in_layers.2": "conv1",
                "out_layers.3": "conv2",
                "emb_layers.1": "time_emb_proj",
                "skip_connection": "conv_shortcut",
            }
        elif isinstance(inner, Downsample):
            pairs = {"op": "conv"}
        elif isinstance(inner, Upsample):
            pairs = {"conv": "conv"}
        elif isinstance(inner, SpatialTransformer):
            layers = ["proj_in", "proj_out"]
            for i in range(inner.depth):
                at = f"transformer_blocks.{i}"
                layers += [
                    f"{at}.attn{n}.{p}"
                    for n in (1, 2)
                    for p in ("to_q", "to_k", "to_v", "to_out.0")
                ]
                layers += [f"{at}.ff.net.0.proj", f"{at}.ff.net.2"]
            pairs = dict(zip(layers, layers, strict=True))
        else:
            continue
        for ours, theirs in pairs.items():
            yield f"{name}.{ours}", (f"{name}.{ours}", f"{block}.{theirs}")


def diffusers_names(a: Architecture) -> Iterator[tuple[str, str]]:
    """(`input_blocks.4.1`, `down_blocks.1.attentions.0`): diffusers counts per level, and residual blocks and transformers apart."""
    level = index = 0
    for i, block in enumerate(a.input_blocks):
        for j, layer in enumerate(block):
            if isinstance(layer, Downsample):
                yield f"input_blocks.{i}.{j}", f"down_blocks.{level}.downsamplers.0"
                level, index = level + 1, -1
            elif isinstance(layer, (ResBlock, SpatialTransformer)):
                yield f"input_blocks.{i}.{j}", f"down_blocks.{level}.{_plural(layer)}.{index}"
        index += i > 0
    seen: dict[str, int] = {}
    for j, layer in enumerate(a.middle_block):
        kind = _plural(layer)
        yield f"middle_block.{j}", f"mid_block.{kind}.{seen.get(kind, 0)}"
        seen[kind] = seen.get(kind, 0) + 1
    level = index = 0
    for i, block in enumerate(a.output_blocks):
        for j, layer in enumerate(block):
            if isinstance(layer, Upsample):
                yield f"output_blocks.{i}.{j}", f"up_blocks.{level}.upsamplers.0"
            else:
                yield f"output_blocks.{i}.{j}", f"up_blocks.{level}.{_plural(layer)}.{index}"
        index += 1
        if isinstance(block[-1], Upsample):
            level, index = level + 1, 0


def _plural(layer: object) -> str:
    return "resnets" if isinstance(layer, ResBlock) else "attentions"

"""The names that diffusers, and with it most LoRA files, gives to the layers of a UNet.

They follow from the architecture alone, so a LoRA can be read without diffusers. diffusers numbers
blocks level by level, and counts residual blocks and transformers apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...model.architecture import Architecture
from ...model.specs import Downsample, ResBlock, SpatialTransformer, Spec, Upsample

RESIDUAL_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
"""The parts of a residual block: the checkpoint's name and diffusers'."""


def layer_aliases(architecture: Architecture) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each linear layer and convolution that a LoRA may change.

    An item is (name in the checkpoint, (the same name, diffusers' name)), such as
    `input_blocks.1.0.in_layers.2` and `down_blocks.0.resnets.0.conv1`.
    """
    layers = dict(architecture.layers())
    for ours, theirs in diffusers_names(architecture):
        for part, their_part in _parts(layers[ours]).items():
            yield f"{ours}.{part}", (f"{ours}.{part}", f"{theirs}.{their_part}")


def _parts(layer: Spec) -> dict[str, str]:
    """The matrices and kernels of a layer: the checkpoint's name and diffusers'."""
    if isinstance(layer, ResBlock):
        parts = {a: b for a, b in RESIDUAL_BLOCK.items() if not b.startswith("norm")}
        if layer.in_channels == layer.out_channels:
            del parts["skip_connection"]
        return parts
    if isinstance(layer, Downsample):
        return {"op": "conv"}
    if isinstance(layer, Upsample):
        return {"conv": "conv"}
    if not isinstance(layer, SpatialTransformer):
        return {}
    names = ["proj_in", "proj_out"]
    for block in (f"transformer_blocks.{i}" for i in range(layer.depth)):
        for attention in ("attn1", "attn2"):
            names += [f"{block}.{attention}.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")]
        names += [f"{block}.ff.net.0.proj", f"{block}.ff.net.2"]
    return {name: name for name in names}


def diffusers_names(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """Yield the layers of a UNet, such as (`input_blocks.4.1`, `down_blocks.1.attentions.0`)."""
    level = index = 0
    for i, block in enumerate(architecture.input_blocks):
        for j, layer in enumerate(block):
            if isinstance(layer, Downsample):
                yield f"input_blocks.{i}.{j}", f"down_blocks.{level}.downsamplers.0"
                level, index = level + 1, -1
            elif isinstance(layer, (ResBlock, SpatialTransformer)):
                yield f"input_blocks.{i}.{j}", f"down_blocks.{level}.{_plural(layer)}.{index}"
        index += i > 0
    seen: dict[str, int] = {}
    for j, layer in enumerate(architecture.middle_block):
        kind = _plural(layer)
        yield f"middle_block.{j}", f"mid_block.{kind}.{seen.get(kind, 0)}"
        seen[kind] = seen.get(kind, 0) + 1
    level = index = 0
    for i, block in enumerate(architecture.output_blocks):
        for j, layer in enumerate(block):
            if isinstance(layer, Upsample):
                yield f"output_blocks.{i}.{j}", f"up_blocks.{level}.upsamplers.0"
            else:
                yield f"output_blocks.{i}.{j}", f"up_blocks.{level}.{_plural(layer)}.{index}"
        index += 1
        if isinstance(block[-1], Upsample):
            level, index = level + 1, 0


def _plural(layer: Spec) -> str:
    return "resnets" if isinstance(layer, ResBlock) else "attentions"

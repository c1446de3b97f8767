"""Makes control models with random weights, in the layouts of real files, to fit a checkpoint.

ControlNet, T2I adapter, ControlLoRA and IP-Adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .network_files import Shape, shapes_of

HINT = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256)]
ENCODER = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
CLIP_WIDTH = 1024  # of ViT-H's image embedding, which an IP-Adapter is made for


class _Maker:
    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, shape: Shape, scale: float = 1.0) -> None:
        """Return a weight that keeps activations' size, a norm's weight near 1, or a small bias."""
        t = torch.randn(shape, generator=self.generator)
        if len(shape) > 1:
            t *= scale * torch.Size(shape[1:]).numel() ** -0.5
        else:
            t = 0.02 * t + (0.0 if name.endswith("bias") else 1.0)
        self.tensors[name] = t

    def conv(
        self, name: str, inputs: int, outputs: int, kernel: int = 3, scale: float = 1.0
    ) -> None:
        self.put(f"{name}.weight", (outputs, inputs, kernel, kernel), scale)
        self.put(f"{name}.bias", (outputs,))


def controlnet(shapes: Mapping[str, Shape], seed: int, strength: float = 0.05) -> dict[str, Tensor]:
    """Return the layout of lllyasviel/ControlNet.

    It has the UNet's encoder, an encoder of the hint, and a 1x1 convolution after each block.
    """
    m = _Maker(seed)
    for name, shape in shapes.items():
        if name.startswith(ENCODER):
            m.put(name, (shape[0], 4, *shape[2:]) if name == "input_blocks.0.0.weight" else shape)
    _hint_and_zero_convolutions(m, shapes, strength)
    return m.tensors


def control_lora(
    shapes: Mapping[str, Shape], seed: int, strength: float = 0.05, rank: int = 8
) -> dict[str, Tensor]:
    """Return the layout of stabilityai/control-lora.

    It has `up` and `down` for each of the UNet's weights, which the file itself does not hold.
    """
    m = _Maker(seed)
    for name, shape in shapes.items():
        if not name.startswith(ENCODER):
            continue
        if len(shape) == 1:
            m.put(name, shape)
        else:
            layer = name.removesuffix(".weight")
            m.put(f"{layer}.up", (shape[0], rank, *[1] * (len(shape) - 2)), 0.3)
            m.put(
                f"{layer}.down", (rank, 4 if layer == "input_blocks.0.0" else shape[1], *shape[2:])
            )
    _hint_and_zero_convolutions(m, shapes, strength)
    return {**m.tensors, "lora_controlnet": torch.zeros(0)}


def _hint_and_zero_convolutions(m: _Maker, shapes: Mapping[str, Shape], strength: float) -> None:
    first = shapes["input_blocks.0.0.weight"][0]
    for i, (inputs, outputs) in enumerate([*HINT, (256, first)]):
        m.conv(f"input_hint_block.{2 * i}", inputs, outputs)
    widths, i = [first], 1
    while (
        f"input_blocks.{i}.0.in_layers.2.weight" in shapes
        or f"input_blocks.{i}.0.op.weight" in shapes
    ):
        key = f"input_blocks.{i}.0.in_layers.2.weight"
        widths.append(shapes[key][0] if key in shapes else widths[-1])
        i += 1
    for i, width in enumerate(widths):
        m.conv(f"zero_convs.{i}.0", width, width, 1, strength)
    m.conv("middle_block_out.0", widths[-1], widths[-1], 1, strength)


def t2i_adapter(shapes: Mapping[str, Shape], seed: int, inputs: int = 192) -> dict[str, Tensor]:
    """Return the layout of TencentARC/T2I-Adapter at full size: 4 levels of two residual blocks.

    `inputs` is 192 for SD1 and 768 for SDXL.
    """
    m, first = _Maker(seed), shapes["input_blocks.0.0.weight"][0]
    widths = [first, 2 * first, 4 * first, 4 * first]
    m.conv("conv_in", inputs, first)
    before = first
    for i in range(8):
        width = widths[i // 2]
        if before != width:
            m.conv(f"body.{i}.in_conv", before, width, 1)
        m.conv(f"body.{i}.block1", width, width)
        m.conv(f"body.{i}.block2", width, width, 1, 0.5)
        before = width
    return m.tensors


def ip_adapter(shapes: Mapping[str, Shape], seed: int, tokens: int = 4) -> dict[str, Tensor]:
    """Return the layout of h94/IP-Adapter.

    It turns an image embedding into `tokens` of context, with keys and values for each
    cross-attention.

    The cross-attentions have odd numbers: first the encoder's, then the decoder's, the middle's.
    """
    m = _Maker(seed)
    keys = [name for name in shapes if name.endswith(".attn2.to_k.weight")]
    keys.sort(
        key=lambda name: (
            name.startswith("middle"),
            name.startswith("output"),
            [int(x) for x in name.split(".") if x.isdigit()],
        )
    )
    context = shapes[keys[0]][1]
    m.put("image_proj.proj.weight", (tokens * context, CLIP_WIDTH))
    m.put("image_proj.proj.bias", (tokens * context,))
    m.put("image_proj.norm.weight", (context,))
    m.put("image_proj.norm.bias", (context,))
    for i, key in enumerate(keys):
        for which in "kv":
            m.put(f"ip_adapter.{2 * i + 1}.to_{which}_ip.weight", shapes[key])
    return m.tensors


def write_all(folder: Path, checkpoint: Path) -> list[str]:
    """Half-precision files; returns their names without the ending."""
    shapes = shapes_of(checkpoint)
    made = {
        "control_a": controlnet(shapes, 11),
        "control_b": controlnet(shapes, 12),
        "t2iadapter_a": t2i_adapter(shapes, 13),
        "control_lora_a": control_lora(shapes, 14),
        "ip-adapter_sd15": ip_adapter(shapes, 16),
    }
    for name, tensors in made.items():
        save_file(
            {k: t.half().contiguous() for k, t in tensors.items()}, folder / f"{name}.safetensors"
        )
    return list(made)

"""Reading LoRA files that fit no layer; merging is tested in test_merge.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_accel.errors import BadCheckpoint
from lib_accel.runtime.lora_files import parse_tag, read_lora

from .checkpoint_files import TINY


def test_a_layer_that_this_unet_does_not_have_is_refused(tmp_path: Path) -> None:
    """The residual block has equal widths, so it has no skip convolution."""
    group = "lora_unet_input_blocks_1_0_skip_connection"
    parts = {"lora_up.weight": torch.ones(32, 2), "lora_down.weight": torch.ones(2, 32)}
    path = tmp_path / "lora.safetensors"
    save_file({f"{group}.{name}": t for name, t in parts.items()}, path)
    with pytest.raises(BadCheckpoint, match=f"the layer {group} is not in this UNet"):
        read_lora(path, TINY)


def test_a_file_without_unet_layers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_te_text_model.alpha": torch.ones(1)}, path)
    with pytest.raises(BadCheckpoint, match=r"holds no UNet layers\. Expected a LoRA"):
        read_lora(path, TINY)


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:-0.5", "style.safetensors", -0.5),
        (r"C:\loras\style.safetensors", r"C:\loras\style.safetensors", 1.0),
        (r"C:\loras\style.safetensors:1e-1", r"C:\loras\style.safetensors", 0.1),
    ],
)
def test_strength_follows_the_last_colon(text: str, file: str, strength: float) -> None:
    assert parse_tag(text) == (Path(file), strength)

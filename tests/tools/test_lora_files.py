"""Reading LoRA files that fit no layer; merging is tested in test_merge.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_accel.errors import BadCheckpoint
from lib_accel.runtime.lora.files import parse_tag, random_deltas, read_lora, save_lora

from ..attack.loras import FILES, good
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
    ("name", "words"),
    [
        ("up is NaN", "holds NaN or infinite values in lora_up.weight, which would spoil every"),
        ("down is infinite", "holds NaN or infinite values in lora_down.weight"),
        ("alpha is NaN", "holds NaN or infinite values in alpha"),
        (
            "both of rank 0",
            "has factors of [32, 0] and [0, 32]; expected matrices of rank 1 or more",
        ),
        ("both scalars", "has factors of [] and []"),
        ("alpha has two values", "has 2 values of alpha; expected one"),
        ("alpha has no value", "has 0 values of alpha; expected one"),
        ("up is whole numbers", "stores lora_up.weight as torch.int8; expected floating-point"),
    ],
)
def test_a_layer_that_would_spoil_pictures_is_refused(
    tmp_path: Path, name: str, words: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(good() | FILES[name], path)
    with pytest.raises(BadCheckpoint) as e:
        read_lora(path, TINY)
    assert str(e.value).startswith(f"{path}: lora_unet_input_blocks_1_1_proj_in {words}")


@pytest.mark.skipif(os.name != "posix", reason="this system has no pipes with names")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lora.safetensors")
    with pytest.raises(BadCheckpoint, match="is a pipe or a device"):
        read_lora(tmp_path / "lora.safetensors", TINY)


@pytest.mark.parametrize("text", ["", "x:1e999", "x:-1e999"])
def test_a_strength_that_is_not_finite_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no LoRA; expected FILE or FILE:STRENGTH"):
        parse_tag(text)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"cannot be written .*Expected a folder"):
        save_lora(tmp_path / "none" / "x.safetensors", TINY, random_deltas(TINY, rank=1, seed=0))


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

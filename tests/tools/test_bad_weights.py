"""Checkpoints whose weights cannot be used: not finite, quantised, of mixed dtypes.

Each message says what was found, what was expected and what to do.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_accel.errors import BadWeights
from lib_accel.model.architecture import Architecture
from lib_accel.tools.checkpoints.reading import LDM_PREFIX, open_checkpoint

from .checkpoint_files import refused, write


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_counted(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str, value: float
) -> None:
    spoilt = {n: t.clone() for n, t in weights.items()}
    spoilt["middle_block.0.in_layers.2.weight"].view(-1)[5:8] = value
    message = refused(write(tmp_path / f"nan{suffix}", spoilt), BadWeights)
    assert "model.diffusion_model.middle_block.0.in_layers.2.weight has 3 of 36864" in message
    assert "NaN or infinite" in message


def test_many_weights_that_are_not_finite_make_a_short_message(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    spoilt = {n: torch.full_like(t, float("nan")) for n, t in weights.items()}
    message = refused(write(tmp_path / "a.safetensors", spoilt), BadWeights)
    assert f"and {len(weights) - 3} more tensors" in message
    assert len(message) < 1000


def test_weights_too_large_for_a_dtype_are_counted(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = write(tmp_path / "a.safetensors", {**weights, "out.2.bias": torch.full((4,), 1e6)})
    assert open_checkpoint(path).load_unet(dtype=torch.bfloat16)
    message = refused(path, BadWeights, lambda c: c.load_unet(dtype=torch.float16))
    assert "out.2.bias has 4 of 4 once converted from float32 to float16" in message
    assert "bfloat16 or float32" in message


def test_mixed_dtypes_need_a_choice(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = write(
        tmp_path / "a.safetensors",
        {n: t.half() if n.startswith("out.") else t for n, t in weights.items()},
    )
    message = refused(path, BadWeights)
    assert f"float32 ({len(weights) - 4} tensors, such as model.diffusion_model." in message
    assert "float16 (4 tensors, such as model.diffusion_model.out." in message
    assert "Say which dtype" in message
    assert {p.dtype for p in open_checkpoint(path).load_unet(dtype=torch.float16).values()} == {
        torch.float16
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_dtype_that_nothing_computes_in_needs_a_choice(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str
) -> None:
    try:
        path = write(
            tmp_path / f"a{suffix}", {n: t.to(torch.float8_e4m3fn) for n, t in weights.items()}
        )
    except KeyError:
        pytest.skip(f"NOT RUN: torch {torch.__version__} writes no float8 into a {suffix}")
    assert "float8_e4m3fn" in refused(path, BadWeights)
    assert {p.dtype for p in open_checkpoint(path).load_unet(dtype=torch.float16).values()} == {
        torch.float16
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_quantised_weights_are_refused(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str
) -> None:
    path = write(
        tmp_path / f"a{suffix}",
        {n: t.to(torch.int8) if n == "out.2.weight" else t for n, t in weights.items()},
    )
    message = refused(path, act=lambda c: c.load_unet(dtype=torch.float16))
    assert "model.diffusion_model.out.2.weight is stored as int8" in message


def shared(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights as parts of the largest."""
    numbers = torch.ones(max(t.numel() for t in weights.values()))
    return {name: numbers[: t.numel()].view(t.shape) for name, t in weights.items()}


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_take_more_memory_than_the_file_are_refused(
    tmp_path: Path, weights: dict[str, Tensor], legacy: bool
) -> None:
    path = tmp_path / "a.ckpt"
    for name, value, words in (
        ("out.2.weight", torch.zeros(1).expand(4, 2**36, 3, 3), "uses numbers more than once"),
        ("out.2.weight", torch.zeros(4, 32, 3, 3).to_sparse(), "as a sparse tensor"),
        ("out.2.weight", torch.zeros(2**36, device="meta"), "as a meta tensor no storage"),
    ):
        named = {LDM_PREFIX + n: t for n, t in {**weights, name: value}.items()}
        torch.save(named, path, _use_new_zipfile_serialization=not legacy)
        message = refused(path)
        assert f"{LDM_PREFIX}{name}" in message
        assert words in message
    named = {LDM_PREFIX + n: t for n, t in shared(weights).items()}
    torch.save(named, path, _use_new_zipfile_serialization=not legacy)
    assert f"for weights of {sum(4 * t.numel() for t in weights.values())} bytes" in refused(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        torch.ones(4, 64, 3, 3)[:, :32],
        torch.arange(1152.0).view(3, 3, 32, 4).permute(3, 2, 0, 1),
        torch.ones(9, 4, 32, 3, 3)[5],
        torch.nn.Parameter(torch.ones(4, 32, 3, 3)),
        torch.ones(4, 32, 3, 3, dtype=torch.bfloat16),
    ],
)
def test_parts_of_larger_tensors_are_read(
    tmp_path: Path, weights: dict[str, Tensor], value: Tensor, legacy: bool
) -> None:
    path = tmp_path / "a.ckpt"
    named = {LDM_PREFIX + n: t for n, t in {**weights, "out.2.weight": value}.items()}
    torch.save({"state_dict": named}, path, _use_new_zipfile_serialization=not legacy)
    loaded = open_checkpoint(path).load_unet(dtype=torch.float32)
    assert torch.equal(loaded["out.2.weight"], value.detach().float())
    assert all(torch.equal(loaded[n], t) for n, t in weights.items() if n != "out.2.weight")


def test_a_dtype_that_torch_does_not_know_is_named(tmp_path: Path) -> None:
    header = json.dumps(
        {"time_embed.0.weight": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    message = refused(tmp_path / "a.safetensors")
    assert "F8_E8M0" in message or "damaged" in message


def test_a_checkpoint_holds_no_file_open(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = write(tmp_path / "a.safetensors", weights)
    checkpoint = open_checkpoint(path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.unet_prefix = ""  # type: ignore[misc]
    path.unlink()  # nothing is held open
    assert Architecture.from_shapes(checkpoint.shapes()) == checkpoint.architecture()

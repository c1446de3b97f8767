"""Bad checkpoint files, for real. Each message says what happened, what was expected and what to do; nothing in a file runs."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_accel.errors import AccelError, BadCheckpoint, BadWeights, UnsupportedArchitecture
from lib_accel.model.architecture import Architecture
from lib_accel.tools.checkpoint import LDM_PREFIX, Checkpoint, open_checkpoint

from .checkpoint_files import write


def refused(
    path: Path,
    error: type[AccelError] = BadCheckpoint,
    act: Callable[[Checkpoint], object] = Checkpoint.load_unet,
) -> str:
    """The message of the refusal, which comes at opening or at `act`; it names the file, an expectation and a way out."""
    with pytest.raises(error) as e:
        act(open_checkpoint(path))
    assert type(e.value) is error
    message = str(e.value)
    assert str(path) in message
    assert "xpected" in message
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("keep", [3, 20, 200, -100])
def test_a_truncated_file(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str, keep: int
) -> None:
    path = write(tmp_path / f"cut{suffix}", weights)
    path.write_bytes(path.read_bytes()[:keep])
    message = refused(path)
    assert "is damaged or is no " in message
    assert "Download the file again" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_cut_between_opening_and_loading(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str
) -> None:
    path = write(tmp_path / f"cut{suffix}", weights)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match="is damaged"):
        checkpoint.load_unet()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_replaced_between_opening_and_loading(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str
) -> None:
    path = write(tmp_path / f"a{suffix}", weights)
    checkpoint = open_checkpoint(path)
    write(path, {n: t for n, t in weights.items() if n != "out.2.bias"})
    with pytest.raises(BadCheckpoint, match=r"out\.2\.bias"):
        checkpoint.load_unet()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is no checkpoint\n" * 20,
        b"<html>404</html>",
        b"\x00" * 64,
        bytes(range(256)) * 4,
    ],
)
def test_another_kind_of_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(content)
    assert "is damaged or is no " in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    assert "is empty" in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ""])
def test_a_folder(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"folder{suffix}"
    path.mkdir()
    assert "is a folder" in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_missing_file(tmp_path: Path, suffix: str) -> None:
    assert "does not exist" in refused(tmp_path / f"none{suffix}")


def test_an_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    message = refused(tmp_path / "a.gguf")
    assert "'.gguf'" in message
    assert ".safetensors, .ckpt, .pt, .pth" in message


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Not root, who may read anything."""
    if not hasattr(os, "seteuid"):
        pytest.skip("permissions are another matter here")
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_an_unreadable_file(
    weights: dict[str, Tensor], suffix: str, closed: str, request: pytest.FixtureRequest
) -> None:
    with (
        tempfile.TemporaryDirectory() as outer
    ):  # pytest's own folders are closed to others already
        Path(outer).chmod(0o755)
        folder = Path(outer) / "models"
        folder.mkdir()
        path = write(folder / f"a{suffix}", weights)
        (path if closed == "file" else folder).chmod(0)
        request.getfixturevalue("ordinary_user")
        message = refused(path)
        assert "Permission denied" in message
        assert "Check its permissions" in message
        os.seteuid(os.getuid())
        folder.chmod(0o755)


class Payload:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare, protocol 2", "bare, protocol 4"])
def test_a_pickle_that_would_run_something(tmp_path: Path, how: str) -> None:
    path, created = tmp_path / "evil.ckpt", tmp_path / "pwned"
    evil = {"state_dict": {LDM_PREFIX + "out.2.bias": torch.ones(4), "evil": Payload(created)}}
    if how.startswith("bare"):
        path.write_bytes(pickle.dumps({"evil": Payload(created)}, protocol=int(how[-1])))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "zip")
    message = refused(path)
    assert not created.exists()
    assert "weights_only" not in message  # torch's own advice is to switch the protection off
    if how != "bare, protocol 4":  # one that torch does not read at all
        assert (
            f"wants to run or build {os.mkdir.__module__}.mkdir; nothing of it was run" in message
        )
        assert "convert it to .safetensors" in message
    with path.open("rb") as f:
        pickle.load(f) if how.startswith("bare") else torch.load(f, weights_only=False)
    assert created.exists()  # the payload was real


@pytest.mark.parametrize("content", [[torch.ones(3)], torch.ones(3), 5])
def test_a_pickle_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert f"holds a {type(content).__name__}" in refused(tmp_path / "a.pt")


NOT_UNETS = {
    "a LoRA": [
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
    ],
    "a LoRA in the diffusers layout": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
    "a VAE": ["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"],
    "a UNet in the diffusers layout": [
        "conv_in.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "time_embedding.linear_1.weight",
    ],
    "a ControlNet": ["control_model.time_embed.0.weight", "control_model.zero_convs.0.0.weight"],
    "a text encoder": ["text_model.embeddings.position_embedding.weight"],
    "SD3": ["joint_blocks.0.x_block.attn.qkv.weight", "x_embedder.proj.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight", "img_in.weight"],
    "not known here": ["some.layer.weight"],
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", NOT_UNETS)
def test_a_file_without_a_unet(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(
        tmp_path / f"other{suffix}", {name: torch.ones(2, 2) for name in NOT_UNETS[kind]}, prefix=""
    )
    message = refused(path)
    assert "holds no UNet" in message
    assert kind in message
    assert sorted(NOT_UNETS[kind])[0] in message


def test_a_checkpoint_whose_unet_is_gone(tmp_path: Path) -> None:
    names = [
        "first_stage_model.encoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ]
    assert "holds no UNet" in refused(
        write(tmp_path / "a.safetensors", {n: torch.ones(2) for n in names}, prefix="")
    )


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert "0 tensors" in refused(tmp_path / "a.ckpt")


def test_a_diffusion_transformer(tmp_path: Path) -> None:
    names = [
        "joint_blocks.0.x_block.attn.qkv.weight",
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
    ]
    path = write(tmp_path / "sd3.safetensors", {n: torch.ones(2, 2) for n in names})
    words = r"sd3\.safetensors: .*time_embed\.0\.weight is missing; this is a diffusion transformer \(SD3\), not a UNet"
    with pytest.raises(UnsupportedArchitecture, match=words):
        open_checkpoint(path).architecture()


def test_an_architecture_that_is_not_ours(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = write(tmp_path / "a.safetensors", {**weights, "label_emb.weight": torch.ones(10, 128)})
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"a\.safetensors: .*label_emb\.weight \[10, 128\].*after model\.diffusion_model\.",
    ):
        open_checkpoint(path).architecture()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str, value: float
) -> None:
    spoilt = {n: t.clone() for n, t in weights.items()}
    spoilt["middle_block.0.in_layers.2.weight"].view(-1)[5:8] = value
    message = refused(write(tmp_path / f"nan{suffix}", spoilt), BadWeights)
    assert "model.diffusion_model.middle_block.0.in_layers.2.weight has 3 of 36864" in message
    assert "NaN or infinite" in message


def test_many_weights_that_are_not_finite(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    spoilt = {n: torch.full_like(t, float("nan")) for n, t in weights.items()}
    message = refused(write(tmp_path / "a.safetensors", spoilt), BadWeights)
    assert f"and {len(weights) - 3} more tensors" in message
    assert len(message) < 1000


def test_weights_too_large_for_the_dtype(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = write(tmp_path / "a.safetensors", {**weights, "out.2.bias": torch.full((4,), 1e6)})
    assert open_checkpoint(path).load_unet(dtype=torch.bfloat16)
    message = refused(path, BadWeights, lambda c: c.load_unet(dtype=torch.float16))
    assert "out.2.bias has 4 of 4 once converted from float32 to float16" in message
    assert "bfloat16 or float32" in message


def test_mixed_dtypes(tmp_path: Path, weights: dict[str, Tensor]) -> None:
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
def test_a_dtype_nothing_computes_in(
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
def test_quantised_weights(tmp_path: Path, weights: dict[str, Tensor], suffix: str) -> None:
    path = write(
        tmp_path / f"a{suffix}",
        {n: t.to(torch.int8) if n == "out.2.weight" else t for n, t in weights.items()},
    )
    message = refused(path, act=lambda c: c.load_unet(dtype=torch.float16))
    assert "model.diffusion_model.out.2.weight is stored as int8" in message


def test_a_dtype_torch_does_not_know(tmp_path: Path) -> None:
    header = json.dumps(
        {"time_embed.0.weight": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    message = refused(tmp_path / "a.safetensors")
    assert "F8_E8M0" in message or "damaged" in message


def test_a_checkpoint_is_a_value(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = write(tmp_path / "a.safetensors", weights)
    checkpoint = open_checkpoint(path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.unet_prefix = ""  # type: ignore[misc]
    path.unlink()  # nothing is held open
    assert Architecture.from_shapes(checkpoint.shapes()) == checkpoint.architecture()

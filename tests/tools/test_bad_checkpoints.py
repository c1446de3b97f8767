"""Files that are damaged, hostile, or no checkpoints. Nothing in a file runs.

Each message says what was found, what was expected and what to do.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_accel.errors import BadCheckpoint, UnsupportedArchitecture
from lib_accel.tools.checkpoints.reading import LDM_PREFIX, open_checkpoint

from .checkpoint_files import refused, write


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("keep", [3, 20, 200, -100])
def test_a_truncated_file_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str, keep: int
) -> None:
    path = write(tmp_path / f"cut{suffix}", weights)
    path.write_bytes(path.read_bytes()[:keep])
    message = refused(path)
    assert "is damaged or is no " in message
    assert "Download the file again" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_cut_between_opening_and_loading_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str
) -> None:
    path = write(tmp_path / f"cut{suffix}", weights)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match="is damaged"):
        checkpoint.load_unet()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_replaced_between_opening_and_loading_is_refused(
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
def test_another_kind_of_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(content)
    assert "is damaged or is no " in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    assert "is empty" in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ""])
def test_a_folder_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"folder{suffix}"
    path.mkdir()
    assert "is a folder" in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_missing_file_is_refused(tmp_path: Path, suffix: str) -> None:
    assert "does not exist" in refused(tmp_path / f"none{suffix}")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    message = refused(tmp_path / "a.gguf")
    assert "'.gguf'" in message
    assert ".safetensors, .ckpt, .pt, .pth" in message


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Run as a user who is not root: root may read anything."""
    if not hasattr(os, "seteuid"):
        pytest.skip("this system has no effective user")
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_an_unreadable_file_is_refused(
    weights: dict[str, Tensor], suffix: str, closed: str, request: pytest.FixtureRequest
) -> None:
    # pytest's own folders are closed to other users
    with tempfile.TemporaryDirectory() as outer:
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
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare, protocol 2", "bare, protocol 4"])
def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path, how: str) -> None:
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
def test_a_pickle_without_a_dictionary_is_refused(tmp_path: Path, content: object) -> None:
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
def test_a_file_without_a_unet_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(
        tmp_path / f"other{suffix}", {name: torch.ones(2, 2) for name in NOT_UNETS[kind]}, prefix=""
    )
    message = refused(path)
    assert "holds no UNet" in message
    assert kind in message
    assert sorted(NOT_UNETS[kind])[0] in message


def test_a_checkpoint_without_its_unet_is_refused(tmp_path: Path) -> None:
    names = [
        "first_stage_model.encoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ]
    assert "holds no UNet" in refused(
        write(tmp_path / "a.safetensors", {n: torch.ones(2) for n in names}, prefix="")
    )


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert "0 tensors" in refused(tmp_path / "a.ckpt")


def test_a_diffusion_transformer_is_named(tmp_path: Path) -> None:
    names = [
        "joint_blocks.0.x_block.attn.qkv.weight",
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
    ]
    path = write(tmp_path / "sd3.safetensors", {n: torch.ones(2, 2) for n in names})
    words = (
        r"sd3\.safetensors: .*time_embed\.0\.weight is missing; "
        r"this is a diffusion transformer \(SD3\), not a UNet"
    )
    with pytest.raises(UnsupportedArchitecture, match=words):
        open_checkpoint(path).architecture()


def test_an_unknown_architecture_is_refused_by_name_and_shape(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = write(tmp_path / "a.safetensors", {**weights, "label_emb.weight": torch.ones(10, 128)})
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"a\.safetensors: .*label_emb\.weight \[10, 128\].*after model\.diffusion_model\.",
    ):
        open_checkpoint(path).architecture()

"""Reading checkpoints in the layouts in use, and writing random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib_accel.errors import BadCheckpoint
from lib_accel.model.presets import sdxl
from lib_accel.model.random_weights import random_weights
from lib_accel.model.unet import UNet
from lib_accel.tools.checkpoints.reading import (
    LDM_PREFIX,
    open_checkpoint,
    save_random_checkpoint,
)

from .checkpoint_files import TINY, write


@pytest.mark.parametrize("prefix", [LDM_PREFIX, "diffusion_model.", ""])
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.pt", "a.pth", "A.SafeTensors"])
def test_every_layout_is_read(
    tmp_path: Path, weights: dict[str, Tensor], name: str, prefix: str
) -> None:
    path = tmp_path / name
    other = (
        {
            "first_stage_model.encoder.conv_in.weight": torch.ones(3),
            "model_ema.decay": torch.ones(1),
        }
        if prefix
        else {}
    )
    write(path, {**{prefix + n: t for n, t in weights.items()}, **other}, prefix="")
    checkpoint = open_checkpoint(path)
    assert checkpoint.path == path
    assert checkpoint.unet_prefix == prefix
    assert checkpoint.shapes() == {n: tuple(t.shape) for n, t in weights.items()}
    assert checkpoint.dtypes() == {torch.float32: len(weights)}
    assert checkpoint.architecture() == TINY
    loaded = checkpoint.load_unet()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[n], t) for n, t in weights.items())
    assert not any(p.requires_grad for p in loaded.values())
    UNet(TINY).adopt(loaded)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_nested_state_dict_is_read(
    tmp_path: Path, weights: dict[str, Tensor], zipped: bool
) -> None:
    path = tmp_path / "a.ckpt"
    state = {LDM_PREFIX + name: t for name, t in weights.items()}
    torch.save(
        {"state_dict": state, "global_step": 7, "lr": 0.5},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    loaded = open_checkpoint(str(path)).load_unet()
    assert all(torch.equal(loaded[n], t) for n, t in weights.items())


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes read as Linux does")
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_files_are_mapped_not_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, {"time_embed.0.weight": torch.zeros(2**24)})  # 64 MiB
    before = bytes_read()
    checkpoint = open_checkpoint(path)
    assert checkpoint.shapes() == {"time_embed.0.weight": (2**24,)}
    assert checkpoint.load_unet()["time_embed.0.weight"].shape == (2**24,)
    assert bytes_read() - before < 2**22


def bytes_read() -> int:
    """Return what this process has read so far; pages of mapped files do not count."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_changing_loaded_weights_leaves_the_file(
    tmp_path: Path, weights: dict[str, Tensor], name: str
) -> None:
    path = write(tmp_path / name, weights)
    before = path.read_bytes()
    with torch.no_grad():
        for p in open_checkpoint(path).load_unet().values():
            p.add_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_converted_to_a_dtype(
    tmp_path: Path, weights: dict[str, Tensor], dtype: torch.dtype
) -> None:
    path = write(tmp_path / "a.safetensors", weights)
    loaded = open_checkpoint(path).load_unet(dtype=dtype)
    assert {p.dtype for p in loaded.values()} == {dtype}
    assert all(torch.equal(loaded[n], t.to(dtype)) for n, t in weights.items())


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_dtypes_are_kept_as_stored(tmp_path: Path, weights: dict[str, Tensor], name: str) -> None:
    path = write(tmp_path / name, {n: t.half() for n, t in weights.items()})
    assert open_checkpoint(path).dtypes() == {torch.float16: len(weights)}
    assert {p.dtype for p in open_checkpoint(path).load_unet().values()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_random_checkpoint_is_a_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "r.safetensors"
    save_random_checkpoint(path, TINY, dtype, seed=3)
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]
    assert all(name.startswith(LDM_PREFIX) for name in load_file(path))
    checkpoint = open_checkpoint(path)
    assert checkpoint.architecture() == TINY
    loaded = checkpoint.load_unet()
    assert {p.dtype for p in loaded.values()} == {dtype}
    assert all(p.float().abs().sum() > 0 for p in loaded.values())


def test_random_checkpoints_repeat_by_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save_random_checkpoint(tmp_path / f"{name}.safetensors", TINY, torch.float16, seed)
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_random_weights_keep_activations_in_range() -> None:
    """At the depth of SDXL; float16 ends at 65504."""
    architecture = sdxl(32, context_dim=64, adm_channels=48)
    unet = UNet(architecture).adopt(random_weights(architecture, torch.float32, seed=0))
    peaks: dict[str, float] = {}
    for name, layer in unet.named_modules():
        layer.register_forward_hook(
            lambda _m, _i, out, name=name: peaks.update({name: out.abs().max().item()})
        )
    with torch.no_grad():
        out = unet(
            torch.randn(1, 4, 16, 16),
            torch.tensor([500.0]),
            torch.randn(1, 77, 64),
            torch.randn(1, 48),
        )
    assert len(peaks) > 500
    assert max(peaks.values()) < 200, max(peaks, key=lambda n: peaks[n])
    assert 0.1 < out.std() < 10


def test_a_random_checkpoint_needs_its_ending(tmp_path: Path) -> None:
    with pytest.raises(
        BadCheckpoint, match=r"r\.ckpt does not end in \.safetensors\. Expected .* Rename it"
    ):
        save_random_checkpoint(tmp_path / "r.ckpt", TINY, torch.float32, 0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"cannot be written .*Expected a folder"):
        save_random_checkpoint(tmp_path / "none" / "r.safetensors", TINY, torch.float32, 0)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib_accel.tools.checkpoints.reading.save_file", full)
    (tmp_path / "r.safetensors").write_bytes(b"older")
    with pytest.raises(BadCheckpoint, match="No space left"):
        save_random_checkpoint(tmp_path / "r.safetensors", TINY, torch.float32, 0)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"r.safetensors": b"older"}

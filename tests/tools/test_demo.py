"""The command `demo`, on tiny models without a compiler."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from lib_accel.model import presets
from lib_accel.runtime.lora.files import random_deltas, save_lora
from lib_accel.tools import setup_environment
from lib_accel.tools.checkpoints.reading import save_random_checkpoint
from lib_accel.tools.demo import clock

from .commands import TINY, Run, failure


@pytest.mark.slow
def test_the_report_says_what_was_measured(run: Run, tmp_path: Path) -> None:
    small = ("--channels", "32", "--steps", "2", "--backend", "eager")
    folders = ("--out", tmp_path, "--store", tmp_path / "store")
    status, out, err = run("demo", *TINY, *small, *folders, "--json")
    result = json.loads(out)
    assert status == 0
    assert "left] making images of 64x64" in err
    assert "It compiles nothing, makes" in err
    assert "compiling" not in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert result == report | {"report": result["report"]}
    page = Path(result["report"]).read_text()
    assert page.startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "report.html",
        "report.json",
    ]
    assert set(result["seconds_of_steps"]) == {"off", "on", "off, LoRA", "on, LoRA"}
    assert {len(s) for s in result["seconds_of_steps"].values()} == {2}
    assert result["speed"]["word"] == "too few measurements to tell"
    checks = (result["same_after_lora"], result["error_ok"], result["compiles_for_lora"])
    assert checks == (True, True, 0)
    assert result["error_on"] < 1e-5
    assert result["lora_effect"] > 0.01  # the LoRA changes the picture, with acceleration too
    assert result["latent_difference_lora"] < 1e-4


@pytest.mark.slow
def test_a_checkpoint_file_with_two_loras(run: Run, tmp_path: Path) -> None:
    """An inpainting model that takes `y`, in bfloat16, at a size whose levels round up."""
    architecture = presets.sdxl_refiner(64, in_channels=9, context_dim=64, adm_channels=32)
    model, style = tmp_path / "model.safetensors", tmp_path / "style.safetensors"
    save_random_checkpoint(model, architecture, torch.float16, seed=0)
    save_lora(style, architecture, random_deltas(architecture, rank=2, seed=3))
    loras = ("--lora", f"{style}:0.5", "--lora", f"{style}:-0.2")
    picture = ("--size", 72, "--steps", 1, "--dtype", "bfloat16", "--device", "cpu")
    folders = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    status, out, _ = run(
        "demo", "--checkpoint", model, *loras, *picture, "--backend", "eager", *folders
    )
    assert status == 0
    assert "inpainting" in out.splitlines()[1]
    assert "The LoRA removed: the picture is bit-identical" in out


def test_files_that_cannot_be_used_are_refused(run: Run, tmp_path: Path) -> None:
    base = ("demo", *TINY, "--backend", "eager", "--out", tmp_path / "out", "--channels", "32")

    def refused(argument: str, file: Path) -> str:
        return failure(run(*base, argument, file))

    absent, cut = tmp_path / "absent.safetensors", tmp_path / "cut.safetensors"
    assert "does not exist" in refused("--checkpoint", absent)
    assert "is a folder" in refused("--checkpoint", tmp_path)
    cut.write_bytes(b"cut")
    assert "is damaged or is no safetensors file" in refused("--checkpoint", cut)
    assert "does not exist" in refused("--lora", absent)
    assert "is damaged or is no safetensors file" in refused("--lora", cut)
    foreign = presets.sdxl(64, context_dim=64, adm_channels=32)
    lora = tmp_path / "xl.safetensors"
    save_lora(lora, foreign, random_deltas(foreign, rank=1, seed=0))
    assert "the LoRA is for another architecture" in refused("--lora", lora)
    assert "holds no UNet; it looks like a LoRA" in refused("--checkpoint", lora)
    assert "expected a multiple of 32" in failure(run(*base[:-1], "33"))
    assert not (tmp_path / "out").exists()


def test_loras_that_make_weights_infinite_are_refused(run: Run, tmp_path: Path) -> None:
    lora, architecture = tmp_path / "style.safetensors", presets.sd1(32)
    save_lora(lora, architecture, random_deltas(architecture, rank=1, seed=0))
    base = ("demo", *TINY, "--backend", "eager", "--out", tmp_path / "out", "--channels", "32")
    message = failure(run(*base, "--steps", 1, "--lora", f"{lora}:1e300"))
    assert f"with {lora}:1e300 merged, input_blocks." in message
    assert "Use smaller strengths or --dtype float32" in message


@pytest.mark.usefixtures("packaging")
def test_a_store_that_cannot_be_used_is_named_and_pictures_are_made(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "store").touch()
    small = ("--channels", "32", "--steps", "1", "--backend", "aoti")
    folders = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    status, out, _ = run("demo", *TINY, *small, *folders)
    assert status == 0
    assert "\nCompiled: nothing; eager serves.\n" in out
    assert "\nnote: aoti: " in out, out
    assert "is a file" in out, out


def test_the_largest_images_that_fit_into_the_time_are_chosen() -> None:
    """A call of 256x256 takes 1 second: larger ones take more than the square of their side."""
    chosen = [clock.choose(left, 1.0) for left in (1000, 100, 30, 1)]
    assert [(c.size, c.steps) for c in chosen] == [(512, 6), (384, 6), (256, 4), (192, 3)]
    assert all(c.seconds(1.0) <= left for c, left in zip(chosen[:3], (1000, 100, 30), strict=True))


@pytest.mark.slow
def test_a_compiler_that_needs_longer_than_the_time_is_stopped(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command began so long ago that nothing is left for the compiler."""
    monkeypatch.setenv(setup_environment.BEGAN, str(time.time() - 290))
    small = ("--channels", "32", "--backend", "aoti", "--device", "cpu")
    folders = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    status, out, _ = run("demo", *small, *folders, "--json")
    result = json.loads(out)
    assert status == 0
    assert (result["compile_unfinished"], result["backend"]) == (True, "eager")
    assert result["same_after_lora"]

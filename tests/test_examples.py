"""The files of examples/ do what they show."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lib_accel

pytestmark = pytest.mark.slow


def test_examples_are_short(root: Path):
    for file in (root / "examples").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 40, file.name


def test_accelerate_unet(root: Path, tiny_store: Path, tmp_path: Path):
    """With the code of tests/tiny.py's UNet, which is the same."""
    example = root / "examples" / "accelerate_unet.py"
    environment = {**os.environ, "ACCEL_STORE": str(tiny_store)}
    command = [sys.executable, str(example)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    first, difference, lora, exact = done.stdout.splitlines()
    assert first.endswith("ready, backend aoti"), done.stdout
    assert float(difference.rpartition(" ")[2]) < 1e-4
    assert float(lora.rpartition(" ")[2]) > 1e-3
    assert exact == "exact after remove: True"


def tiny_pipeline() -> Any:
    """A StableDiffusionPipeline with random weights that takes embedded prompts."""
    pytest.importorskip("transformers", reason="NOT RUN: diffusers' pipelines need transformers")
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=32, latent_channels=4)
    return StableDiffusionPipeline(
        vae,
        None,
        None,
        unet,
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )


def test_accelerate_diffusers(root: Path, tmp_path: Path):
    pytest.importorskip("diffusers")
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompt, negative = torch.randn(2, 1, 77, 32)

    def picture() -> torch.Tensor:
        return pipe(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            generator=torch.Generator().manual_seed(1),
            num_inference_steps=2,
            output_type="latent",
            height=16,
            width=24,
        ).images

    plain = picture()
    addresses = {name: p.data_ptr() for name, p in pipe.unet.named_parameters()}
    example = load(root / "examples" / "accelerate_diffusers.py")
    config = lib_accel.Config(store=tmp_path, backend="eager")
    accelerated = example.AcceleratedPipeline(pipe, config)
    shared = {p.data_ptr() for p in accelerated.accelerated.unet.parameters()}
    assert shared == set(addresses.values()), "a second copy of the weights"
    fast = picture()
    assert torch.allclose(fast, plain, atol=1e-4)
    assert not torch.equal(fast, plain), "our UNet never ran"
    accelerated.remove()
    assert {name: p.data_ptr() for name, p in pipe.unet.named_parameters()} == addresses
    assert torch.equal(picture(), plain)


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""The VAE on the backend `kernels`, whose operations are torch's here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lib_accel.compile import accuracy
from lib_accel.compile import session as session_module
from lib_accel.compile.backends.kernels.backend import FusedKernels
from lib_accel.config import Config
from lib_accel.model.random_weights import random_weight
from lib_accel.model.vae.network import DECODER, ENCODER, Half
from lib_accel.runtime.vae import VaeEngine
from lib_accel.tools.bench.images.vae import donor

from .. import tiny
from .test_kernel_backend import Compiler, compiler

__all__ = ["compiler"]


@pytest.mark.parametrize("kind", [DECODER, ENCODER])
def test_half_a_vae_is_served_with_its_upsamplings(
    kind: str, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session_module, "BACKENDS", (FusedKernels, session_module.Eager))
    # so narrow a VAE counts as one at a large level, where attention takes minutes
    monkeypatch.setattr(accuracy, "level_side", lambda unit: accuracy.SMALLEST_SIDE)
    half = Half.preset(kind, 32)
    shapes = {name: torch.Size(shape) for name, shape in half.shapes().items()}
    network = donor(
        {
            name: nn.Parameter(random_weight(name, shape, torch.Generator()), requires_grad=False)
            for name, shape in shapes.items()
        }
    )
    engine = VaeEngine(network, Config(store=tmp_path, blocking=True))
    x = torch.randn(1, 4 if kind == DECODER else 3, 16, 24)
    before = engine.compute(x)
    engine.prepare()
    assert (engine.status.state, engine.status.backend) == ("ready", "kernels"), engine.status
    assert tiny.error(engine.compute(x), before) < 1e-5
    assert engine.counters.accelerated_calls == 1
    unserved = {name for name, _ in half.layers} - engine.binding.compiled.keys()
    downsamplings = {f"down.{level}.downsample" for level in range(3)}
    assert unserved == {"conv_in"} | (downsamplings if kind == ENCODER else set())

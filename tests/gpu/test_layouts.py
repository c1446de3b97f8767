"""Without compiled code a half-precision call on a card is channels-last throughout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lib_accel.config import Config
from lib_accel.model.parts.modules import GroupNorm

from .. import tiny

CARD = torch.device("cuda:0")


def launched(run: Callable[[], object]) -> list[str]:
    """Return the log's lines of what `run` launches."""
    log = Path(os.environ["PRETEND_LOG"])
    before = log.stat().st_size if log.exists() else 0
    run()
    return log.read_text()[before:].splitlines()


def engine_of(dtype: torch.dtype) -> tiny.Engine:
    network = tiny.donor(dtype=dtype).to(CARD)
    return tiny.Engine(network, Config(compile=False, backend="eager", graphs=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_call_copies_no_activation_for_its_layout(dtype: torch.dtype):
    engine = engine_of(dtype)
    x, timesteps, context, _ = tiny.inputs()
    given = x.to(CARD, dtype), timesteps.to(CARD), context.to(CARD, dtype)
    engine.compute(*given)
    lines = launched(lambda: engine.compute(*given))
    assert len(lines) > 100
    copies = [line for line in lines if "direct_copy" in line]
    assert len(copies) == (dtype == torch.float16), "the latent itself, which has 4 channels"


def test_the_layout_of_the_weights_is_given_back():
    engine = engine_of(torch.float16)
    convolutions = [p for p in engine.network.parameters() if p.ndim == 4 and p.shape[2] == 3]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    engine.close()
    assert all(p.is_contiguous() for p in convolutions)


def test_float32_weights_stay_as_they_are():
    engine = engine_of(torch.float32)
    assert all(p.is_contiguous() for p in engine.network.parameters())


def test_torch_copies_for_a_norm_and_ours_does_not():
    """What tests/model/layouts.py says of torch."""
    norm = GroupNorm(64).to_empty(device=CARD).half()
    x = torch.zeros(2, 64, 8, 8, device=CARD, dtype=torch.half)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        theirs = launched(lambda: F.group_norm(x, 32, norm.weight, norm.bias))
        assert F.group_norm(x, 32, norm.weight, norm.bias).is_contiguous()
        ours = launched(lambda: norm(x))
        assert norm(x).stride() == x.stride()
    assert (len(theirs), sum("direct_copy" in line for line in theirs)) == (4, 1)
    fill = sum("fill" in line.lower() for line in ours)  # torch 2.1 cannot do without
    assert (len(ours) - fill, sum("direct_copy" in line for line in ours)) == (6, 0)

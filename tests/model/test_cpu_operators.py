"""The CPU operators against torch's in float64, with sizes on both sides of every choice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lib_accel.model.parts import cpu_operators

BOUND = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
SIZES = [(1, 1, 1), (2, 2, 3), (1, 9, 7), (3, 16, 16), (2, 13, 40)]  # batch, height, width
CHANNELS = [(4, 320), (64, 96), (320, 4)]  # few pixels for many outputs, and the other way round


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    cpu_operators.register()


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_conv2d(dtype: torch.dtype, kernel: int, stride: int, channels_last: bool) -> None:
    for batch, height, width in SIZES:
        for inputs, outputs in CHANNELS:
            x = torch.randn(batch, inputs, height, width).to(dtype)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            weight = (
                torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
            ).to(dtype)
            bias = torch.randn(outputs).to(dtype)
            out = cpu_operators.conv2d(x, weight, bias, stride, kernel // 2)
            assert out.dtype == dtype
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert (
                relative(
                    out, F.conv2d(x.double(), weight.double(), bias.double(), stride, kernel // 2)
                )
                < BOUND[dtype]
            )


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("tokens", [1, 513, 2 * cpu_operators.ROWS + 1])
def test_feed_forward(dtype: torch.dtype, tokens: int) -> None:
    c = 32
    x, into, out = (
        torch.randn(2, tokens, c),
        torch.randn(8 * c, c) / c**0.5,
        torch.randn(c, 4 * c) / (4 * c) ** 0.5,
    )
    x, into, into_bias, out, out_bias = (
        t.to(dtype) for t in (x, into, torch.randn(8 * c), out, torch.randn(c))
    )
    hidden, gate = F.linear(x.double(), into.double(), into_bias.double()).chunk(2, dim=-1)
    reference = F.linear(hidden * F.gelu(gate), out.double(), out_bias.double())
    assert (
        relative(cpu_operators.feed_forward(x, into, into_bias, out, out_bias), reference)
        < BOUND[dtype]
    )


def test_feed_forward_does_not_change_its_input() -> None:
    x = torch.randn(1, cpu_operators.ROWS + 3, 32)
    before = x.clone()
    cpu_operators.feed_forward(
        x, torch.randn(256, 32), torch.randn(256), torch.randn(32, 128), torch.randn(32)
    )
    assert torch.equal(x, before)


def test_conv2d_of_meta_tensors_gives_shape_and_layout() -> None:
    x = torch.empty(2, 8, 9, 7, device="meta")
    out = cpu_operators.conv2d(
        x, torch.empty(16, 8, 3, 3, device="meta"), torch.empty(16, device="meta"), 2, 1
    )
    assert out.shape == (2, 16, 5, 4)
    assert out.is_contiguous(memory_format=torch.channels_last)


PROBE = """
import time
from concurrent.futures import ThreadPoolExecutor
import torch
from lib_accel.compile import units
from lib_accel.model import layers, presets, unet
from lib_accel.model.parts import cpu_operators

def known():
    return hasattr(torch.ops.accel, "conv2d") and hasattr(torch.ops.accel, "feed_forward")

assert not known(), "importing has registered operators"
"""
IN_TWO_THREADS = """
library = torch.library.Library
torch.library.Library = lambda *a: time.sleep(0.2) or library(*a)  # the other thread gets its turn
with ThreadPoolExecutor(2) as pool:
    for done in [pool.submit(cpu_operators.register) for _ in range(2)]:
        done.result()
"""
USES = {
    "twice": "cpu_operators.register(); cpu_operators.register()",
    "in two threads": IN_TWO_THREADS,
    "by a convolution": "layers.Conv2d(4, 4)",
    "by a feed-forward layer": "layers.FeedForward(32)",
}


@pytest.mark.parametrize("use", USES)
def test_operators_are_registered_at_first_use_and_not_at_import(root: Path, use: str) -> None:
    code = f"{PROBE}\n{USES[use]}\nassert known()"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


@torch.no_grad()
def test_a_convolution_of_a_doubled_image_is_computed_from_the_image() -> None:
    for batch, height, width in SIZES:
        x = torch.randn(batch, 8, height, width).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(6, 8, 3, 3), torch.randn(6)
        doubled = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
        reference = F.conv2d(doubled, weight.double(), bias.double(), padding=1)
        out = cpu_operators.conv2d_of_doubled(x, weight, bias)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert relative(out, reference) < BOUND[torch.float32]
        assert not cpu_operators.doubles_faster(x.bfloat16(), weight)  # sums would be rounded

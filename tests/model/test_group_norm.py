"""Group normalisation as a GPU's compiled code computes it: its accuracy and its memory layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.compile.accuracy import example_inputs
from lib_accel.compile.units import UnitModule, unit_key
from lib_accel.model.parts.group_norm import fused_group_norm
from lib_accel.model.specs import Output, ResBlock, SpatialTransformer, Spec

from ..tiny import error

WIDTHS = (64, 320, 1280)
SIZES = ((2, 16, 16), (1, 9, 7), (3, 1, 5), (1, 1, 1))
HEIGHT, WIDTH = 6, 5
UNITS = (
    ResBlock(64, 96, 128),
    ResBlock(1280, 64, 128),
    SpatialTransformer(64, 48, 2, 1, linear=False),
    SpatialTransformer(1280, 48, 2, 1, linear=True),
    Output(64, 4),
)


def given(channels: int, size: tuple[int, int, int], mean: float = 0.0) -> list[Tensor]:
    """x, weight and bias in float64; the channels of a group differ as those of real images do."""
    g = torch.Generator().manual_seed(channels)
    batch, height, width = size
    x = torch.randn(batch, channels, height, width, generator=g, dtype=torch.float64)
    x = x + mean + torch.randn(channels, 1, 1, generator=g, dtype=torch.float64)
    return [x, *torch.randn(2, channels, generator=g, dtype=torch.float64)]


def fused(x: Tensor, weight: Tensor, bias: Tensor, by_rows: bool) -> Tensor:
    tokens = fused_group_norm(x, weight, bias, 1e-5, by_rows)
    return tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 32, weight, bias, 1e-5)


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("by_rows", [False, True])
def test_it_is_as_exact_as_torch_at_small_and_large_means(
    channels: int, size: tuple[int, int, int], dtype: torch.dtype, mean: float, by_rows: bool
):
    narrow = [t.to(dtype) for t in given(channels, size, mean)]
    exact = plain(*(t.double() for t in narrow))
    x, weight, bias = narrow
    x = x.contiguous(memory_format=torch.channels_last)
    own = error(plain(*(t.float() for t in narrow)).to(dtype), exact)
    # the statistics are float32 numbers near the mean
    rounding = 2 * torch.finfo(dtype).eps + mean * torch.finfo(torch.float32).eps
    assert error(fused(x, weight, bias, by_rows), exact) <= 1.25 * max(own, rounding)


@pytest.mark.parametrize("by_rows", [False, True])
def test_one_pixel_unlike_the_others_costs_no_digits(by_rows: bool):
    x, weight, bias = given(64, (2, 64, 64))
    x[:, :, 0, 0] += 1e4
    exact = plain(x, weight, bias)
    assert error(fused(x.float(), weight.float(), bias.float(), by_rows), exact) < 1e-5


class Copies(TorchDispatchMode):
    """Records every copy of an image into another layout that a GPU would make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out, name = func(*args, **(kwargs or {})), str(func)
        is_image = isinstance(out, Tensor) and out.shape[2:] == (HEIGHT, WIDTH)
        if "clone" in name and is_image:
            self.made.append(name)
        if "convolution" in name:
            if not channels_last(args[0]):
                self.made.append(name)
            # cuDNN's result; without a device it would be contiguous
            out = out.contiguous(memory_format=torch.channels_last)
        return out


def channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def copies(unit: Spec, as_fused: bool) -> list[str]:
    """Let the unit compute shapes and strides, with the operators that it calls on a GPU."""
    size = (2, HEIGHT, WIDTH, 7)
    with torch.no_grad():
        activations, weights = example_inputs(unit, size, torch.float16, torch.device("meta"))
        with Copies() as found:
            out = UnitModule(unit, fused=as_fused)(activations, weights)
    assert channels_last(out) or not as_fused
    return found.made


@pytest.mark.parametrize("unit", UNITS, ids=unit_key)
def test_no_image_is_copied_into_another_layout(unit: Spec):
    assert copies(unit, as_fused=True) == []


def test_an_image_that_is_copied_into_another_layout_is_seen():
    """Else the test above sees nothing. torch's own norm copies no image from torch 2.14 on."""
    with Copies() as found:
        x = torch.empty(2, 64, HEIGHT, WIDTH, device="meta")
        F.conv2d(x, torch.empty(8, 64, 1, 1, device="meta"))
        x.contiguous(memory_format=torch.channels_last)
    assert [name.split(".")[1] for name in found.made] == ["convolution", "clone"]

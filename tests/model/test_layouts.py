"""Without compiled code on CUDA no activation and no weight is copied for its layout alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lib_accel.model import presets
from lib_accel.model.parts.group_norm import channels_last_norm
from lib_accel.model.unet import UNet

from .layouts import LayoutCopies

IS_2_1 = torch.__version__.startswith("2.1.")
by_fakes = pytest.mark.skipif(
    IS_2_1, reason="NOT RUN: torch 2.1 asks for a driver, for fake tensors too"
)


@pytest.fixture(autouse=True)
def flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give attention the layout of torch's CUDA kernels; fake tensors would compute it in parts."""
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v: torch.empty_like(q.transpose(1, 2)).transpose(1, 2),
    )


def one_call(dtype: torch.dtype, layout: torch.memory_format) -> tuple[LayoutCopies, Tensor]:
    """Compute a call of SD1 on a fake card, with the convolutions' weights in that layout."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    a = presets.sd1()
    with FakeTensorMode(), torch.no_grad():
        unet = UNet(a)
        parameters = {}
        for name, p in unet.named_parameters():
            weight = empty(*p.shape)
            if weight.ndim == 4:
                weight = torch.empty_like(weight, memory_format=layout)
            parameters[name] = nn.Parameter(weight, requires_grad=False)
        unet.adopt(parameters)
        inputs = empty(2, 4, 64, 64), empty(2), empty(2, 77, a.context_dim)
        with LayoutCopies() as copies:
            out = unet(*inputs)
    return copies, out


@by_fakes
def test_in_half_precision_all_is_channels_last():
    """Otherwise cuDNN copies, for its tensor cores, what torch does not show."""
    copies, out = one_call(torch.float16, torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert +copies.counts == {"copy": 1}, "the latent of 4 channels, as it comes in"


@by_fakes
def test_in_float32_all_is_contiguous():
    copies, out = one_call(torch.float32, torch.contiguous_format)
    assert out.is_contiguous()
    assert not +copies.counts


@by_fakes
def test_what_is_contiguous_in_half_precision_is_copied_inside_cudnn():
    """The reason for the other layout."""
    copies, _ = one_call(torch.float16, torch.contiguous_format)
    assert +copies.counts == {"inside cuDNN": 3 * 66}


@pytest.mark.parametrize("mean", [0, 30, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_norm_of_channels_last_is_as_exact_as_its_dtype(dtype: torch.dtype, mean: float):
    """Also far from zero, where float16 has few digits left for what varies."""
    if IS_2_1 and dtype != torch.float32:
        pytest.skip(
            "NOT RUN: torch 2.1 has the deviation of 16-bit numbers in float32 on CUDA only"
        )
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 64, 9, 7, generator=g) + mean).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(64, generator=g).to(dtype) for _ in range(2))
    out = channels_last_norm(x, weight, bias, 1e-5)
    exact = F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5)
    bound = torch.finfo(dtype).eps * (0.6 if dtype != torch.float32 else 3 + mean)
    assert (out.double() - exact).norm() <= bound * exact.norm()
    assert (out.dtype, out.stride()) == (dtype, x.stride())

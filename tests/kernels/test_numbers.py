"""What the kernels compute, against float64 and against torch's own operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import CASES, Case, convert, error
from .emulator import EmulatedKernels
from .reference import TorchKernels

TORCH = TorchKernels()
ALLOWED = 1.25
"""How many times the error of torch's own operations is allowed, as of every backend."""


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def by_torch(case: Case, inputs: dict[str, Any]) -> list[Tensor]:
    """Return what torch's own operations return; skip where torch has none for float16 on a CPU."""
    try:
        return case.call(TORCH, inputs)
    except RuntimeError as missing:
        if "not implemented for 'Half'" not in str(missing):
            raise
        pytest.skip(f"NOT RUN: torch {torch.__version__} on a CPU: {missing}")


@by_name(CASES)
def test_an_operation_is_as_exact_as_torchs_own(kernels: EmulatedKernels, case: Case):
    inputs = case.inputs(lambda *shape: torch.randn(shape).to(kernels.dtype))
    kept = convert(inputs, torch.float64)
    got = case.call(kernels, inputs)
    expected = case.call(TORCH, kept)
    theirs = by_torch(case, inputs)
    once = torch.finfo(kernels.dtype).eps / 2  # rounding a number has at most this error
    assert len(got) == len(expected)
    for one, exact, torchs in zip(got, expected, theirs, strict=True):
        assert one.dtype == kernels.dtype
        assert error(one, exact) <= ALLOWED * max(error(torchs, exact), once)
    unchanged = convert(inputs, torch.float64)
    for before, after in zip(_tensors(kept), _tensors(unchanged), strict=True):
        assert torch.equal(before, after), "an input was written"


def _tensors(inputs: dict) -> list[Tensor]:
    lists = [each if isinstance(each, list) else [each] for each in inputs.values()]
    return [t for each in lists for t in each if isinstance(t, Tensor)]


@pytest.mark.parametrize("mean", [0, 30, 3000])
def test_a_large_mean_costs_a_norm_no_digits(make, mean: float):
    """torch loses them where it subtracts squares."""
    kernels = make(torch.float32)
    x = (torch.randn(1, 64, 12, 11) + mean).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones(64), torch.zeros(64)
    exact = F.group_norm(x.double(), 32, weight.double(), bias.double())
    lost = 2 * mean * 2**-24  # x is rounded to float32, and so is its mean
    assert error(kernels.group_norm(x, weight, bias, 32, 1e-5), exact) <= 1e-7 + lost
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    exact = F.layer_norm(tokens.double(), (64,))
    assert error(kernels.layer_norm(tokens, weight, bias, 1e-5)[1], exact) <= 1e-7 + lost


@pytest.mark.parametrize("multiprocessors", [1, 7, 132])
def test_the_size_of_the_card_changes_no_result(make, multiprocessors: int):
    x = torch.randn(2, 64, 24, 23).half().contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(64).half(), torch.randn(64).half()
    got = make(torch.float16, multiprocessors).group_norm(x, weight, bias, 32, 1e-5)
    exact = F.group_norm(x.double(), 32, weight.double(), bias.double())
    assert error(got, exact) < 3e-4


def test_a_group_of_equal_numbers_has_no_deviation(kernels: EmulatedKernels):
    x = torch.full((1, 64, 5, 5), 3.0).to(kernels.dtype)
    weight, bias = torch.ones(64).to(kernels.dtype), torch.full((64,), 0.5).to(kernels.dtype)
    assert (kernels.group_norm(x, weight, bias, 32, 1e-5) == 0.5).all()
    assert (kernels.layer_norm(x.flatten(2), weight[:25], bias[:25], 1e-5)[1] == 0.5).all()


FINITE_OR_NOT = [case for case in CASES if case.name.count("33") or case.name.count("(2,")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 6e4])
@by_name(FINITE_OR_NOT)
def test_numbers_that_are_not_finite_go_through(make, case: Case, value: float):
    """Where torch has NaN or an infinity there is the same, and nowhere else."""
    kernels = make(torch.float16)
    inputs = case.inputs(lambda *shape: torch.randn(shape).half())
    name = "x" if "x" in inputs else "timesteps"
    inputs[name] = inputs[name].clone() if name == "x" else inputs[name].half()
    for corner in 0, -1:
        inputs[name][(corner,) * inputs[name].ndim] = value
    for one, torchs in zip(case.call(kernels, inputs), by_torch(case, inputs), strict=True):
        assert torch.equal(one.isnan(), torchs.isnan())
        assert torch.equal(one.isinf() & (one > 0), torchs.isinf() & (torchs > 0))
        assert torch.equal(one.isinf() & (one < 0), torchs.isinf() & (torchs < 0))


def test_every_half_is_widened_and_rounded_as_torch_does(make):
    """All 65,536 values, and the sums of neighbours, which must be rounded."""
    for dtype in torch.float16, torch.bfloat16:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 256, 256)
        kernels = make(dtype)
        assert torch.equal(kernels.add(x).nan_to_num(7), x.nan_to_num(7))
        other = x.roll(1, -1).contiguous()
        expected = (x.float() + other.float()).to(dtype)
        got = kernels.add(x, residual=other)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(7), expected.nan_to_num(7))


def test_large_timesteps_keep_their_angles(make):
    """In float32, angles near 1000 are known to 6e-5, and torch's are no better."""
    identity = [torch.eye(64), torch.zeros(64)]
    timesteps = torch.tensor([0.0, 1.5, 999.0, 1e5])
    emb = make(torch.float32).embedding(timesteps, None, [*identity, *identity]).view(4, 64)
    theirs = TORCH.embedding(timesteps, None, [*identity, *identity]).view(4, 64)
    assert torch.allclose(emb[:3], theirs[:3], atol=2e-4)
    assert (emb[3].abs() <= 1).all()

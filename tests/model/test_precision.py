"""Which precision is computed in, and the error that it costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lib_accel.model import presets
from lib_accel.model.precision import (
    exact_products,
    fastest_cpu_dtype,
    relative_error,
    wider,
    without_autocast,
)
from lib_accel.model.random_weights import random_weights
from lib_accel.model.unet import UNet

from ..threads import one_thread  # noqa: F401  (a fixture)


def test_autocast_is_off_inside_without_autocast():
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast(torch.device("cpu")):
            assert (a @ b).dtype == torch.float32
        assert (a @ b).dtype == torch.bfloat16


def test_without_autocast_does_nothing_where_the_device_has_no_autocast():
    device = torch.device("meta")
    with pytest.raises(RuntimeError):
        torch.autocast(device.type, enabled=False)
    with without_autocast(device):
        pass


def _tf32() -> list[object]:
    """The switches by their old and new names; reading an old one raises once a new one was set."""
    owners = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn,
        getattr(torch.backends.cudnn, "conv", None),
    )
    found: list[object] = []
    for owner in owners:
        for name in ("allow_tf32", "fp32_precision"):
            try:
                found.append(getattr(owner, name))
            except (AttributeError, AssertionError, RuntimeError) as e:
                found.append(type(e))
    return found


@pytest.mark.parametrize(
    ("name", "on", "off"), [("allow_tf32", True, False), ("fp32_precision", "tf32", "ieee")]
)
def test_tf32_is_off_inside_and_restored_afterwards(name: str, on: object, off: object):
    """With both of torch's names for the switch; the new ones are there from torch 2.9 on."""
    matmul: Any = torch.backends.cuda.matmul
    try:
        was = getattr(matmul, name)
    except (AttributeError, AssertionError):
        pytest.skip(f"NOT RUN: torch {torch.__version__} has no {name}")
    try:
        setattr(matmul, name, on)
        before = _tf32()
        with exact_products(torch.device("cuda")):
            assert getattr(matmul, name) == off
        assert _tf32() == before
    finally:
        setattr(matmul, name, was)


def test_sums_are_computed_in_a_wider_dtype_where_the_device_has_one():
    cpu, apple = torch.device("cpu"), torch.device("mps")
    assert [wider(d, cpu) for d in (torch.float16, torch.bfloat16, torch.float32)] == [
        torch.float32,
        torch.float32,
        torch.float64,
    ]
    assert wider(torch.float32, apple) == torch.float32


def test_the_fastest_dtype_of_a_cpu_is_that_of_the_weights_or_float32() -> None:
    assert fastest_cpu_dtype(torch.float32) == torch.float32
    assert fastest_cpu_dtype(torch.bfloat16) in (torch.bfloat16, torch.float32)
    assert fastest_cpu_dtype(torch.float16) in (torch.float16, torch.float32)


def test_narrow_weights_stay_narrow_when_the_unet_computes_in_float32() -> None:
    architecture = presets.sd1(32, context_dim=16)
    unet = UNet(architecture).adopt(random_weights(architecture, torch.bfloat16, 0))
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5.0]), torch.randn(1, 3, 16)
    with torch.no_grad():
        narrow = unet(x, t, context)
        unet.compute_dtype = torch.float64
        truth = unet(x.double(), t, context)
        unet.compute_dtype = torch.float32
        wide = unet(x, t, context)
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    assert relative_error(wide, truth) < 1e-5 < relative_error(narrow, truth)


def test_relative_error_is_computed_in_the_dtype_of_the_reference() -> None:
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(reference.float() + torch.tensor([0.0, 0.5]), reference) == 0.1
    assert math.isnan(relative_error(torch.zeros(3), reference))

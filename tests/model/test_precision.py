"""Which precision is computed in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_accel.model.precision import exact_products, wider, without_autocast


def test_autocast_is_off_inside():
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast(torch.device("cpu")):
            assert (a @ b).dtype == torch.float32
        assert (a @ b).dtype == torch.bfloat16


def test_a_device_without_autocast_has_none_to_switch_off():
    device = torch.device("meta")
    with pytest.raises(RuntimeError):
        torch.autocast(device.type, enabled=False)
    with without_autocast(device):
        pass


def _tf32() -> list[object]:
    """In the old names and the new ones; reading an old one raises once the new one was set."""
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
def test_tf32_is_off_inside_and_as_it_was_afterwards(name: str, on: object, off: object):
    """Whichever way somebody has switched it on: with the old names or, from torch 2.9 on, the new."""
    matmul: Any = torch.backends.cuda.matmul
    try:
        was = getattr(matmul, name)
    except (AttributeError, AssertionError):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    try:
        setattr(matmul, name, on)
        before = _tf32()
        with exact_products(torch.device("cuda")):
            assert getattr(matmul, name) == off
        assert _tf32() == before
    finally:
        setattr(matmul, name, was)


def test_wider():
    cpu, apple = torch.device("cpu"), torch.device("mps")
    assert [wider(d, cpu) for d in (torch.float16, torch.bfloat16, torch.float32)] == [
        torch.float32,
        torch.float32,
        torch.float64,
    ]
    assert wider(torch.float32, apple) == torch.float32

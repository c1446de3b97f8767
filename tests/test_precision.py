"""Which precision is computed in."""

from __future__ import annotations

import pytest
import torch

from lib_accel.precision import wider, without_autocast


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


def test_wider():
    cpu, apple = torch.device("cpu"), torch.device("mps")
    assert [wider(d, cpu) for d in (torch.float16, torch.bfloat16, torch.float32)] == [torch.float32, torch.float32, torch.float64]
    assert wider(torch.float32, apple) == torch.float32

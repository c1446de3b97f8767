"""lib_accel.host with any torch: the other tests need one that can load compiled code."""

from __future__ import annotations

import pytest
import torch

from .driver import drive
from .host import MIDDLE_QUERY, Host, factors


@pytest.fixture
def host(eager_host: Host) -> Host:
    return eager_host


def test_images_and_loras_without_compiled_code(host: Host) -> None:
    lora = host.network("lora", {MIDDLE_QUERY: factors()})
    bare, merged, again = host.image(), host.image(lora), host.image()
    assert not torch.equal(bare.made[0], merged.made[0])
    assert torch.equal(bare.made[0], again.made[0])
    assert host.counters()["host_calls"] == 0
    assert torch.allclose(host.call(), host.plain(), atol=1e-5)
    host.opts.set("accel_enable", False)
    assert torch.equal(host.call(), host.plain())


def test_a_driven_unet_without_compiled_code(host: Host) -> None:
    leave = drive(host.unet)
    assert torch.equal(host.call(), host.plain())
    leave()
    assert torch.allclose(host.call(), host.plain(), atol=1e-5)
    assert host.status()["reason"] is None


def test_a_discarded_model_without_compiled_code(host: Host) -> None:
    host.call()
    host.module("modules.sd_models").send_model_to_trash(host.model)
    host.load(seed=2)
    assert torch.allclose(host.call(), host.plain(seed=2), atol=1e-5)

"""What other programs and settings do that must neither fail an image nor outlast it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.compile.units import UnitFn

from .backends import Stub, serve
from .conftest import Start
from .driver import drive
from .host import MIDDLE_QUERY, Host, counted, factors

# -- what was refused is tried again


class Wrapper(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return self.block(x, *more) * 1.3


def test_a_refused_unet_is_tried_again_when_it_has_changed(host: Host) -> None:
    """A failed image has left a wrapper in it; the next image takes that out."""
    plain = host.call()
    host.opts.set("accel_enable", False)
    block = host.unet.input_blocks[1]
    host.unet.input_blocks[1] = Wrapper(block)
    host.opts.set("accel_enable", True)
    assert "input_blocks.1" in host.status()["reason"]
    assert host.status()["state"] == "fallback"
    host.image()
    assert host.status()["state"] == "fallback"
    host.unet.input_blocks[1] = block
    host.image()
    assert host.status()["state"] == "ready"
    with counted(host, accelerated_calls=1, host_calls=0):
        assert torch.equal(host.call(), plain)


def test_what_has_not_changed_is_not_tried_again(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed: Any = host.new_unet()
    mixed.out[2].half()
    host.module("modules.sd_models").load_model(mixed)
    with pytest.raises(RuntimeError):
        host.image()
    assert capsys.readouterr().out.count("this model is not accelerated") == 1
    mixed.out[2].float()
    host.image()
    assert host.status()["state"] == "ready"


# -- switched for one job alone


def test_switched_on_for_one_job_alone(host: Host) -> None:
    host.opts.set("accel_enable", False)
    before = set(vars(host.unet))
    p = host.image(override_settings={"accel_enable": True})
    assert p.extra_generation_params["Accel"] == "aoti"
    assert (host.status()["state"], set(vars(host.unet))) == ("off", before)
    assert "Accel" not in host.image().extra_generation_params


def test_switched_off_for_one_job_alone(host: Host) -> None:
    with counted(host, accelerated_calls=0, binds=0):
        p = host.image(override_settings={"accel_enable": False}, n_iter=2)
    assert "Accel" not in p.extra_generation_params
    assert torch.equal(p.made[0], host.image(override_settings={"accel_enable": False}).made[0])
    with counted(host, binds=0):
        assert host.image().extra_generation_params["Accel"] == "aoti"


def test_a_failed_job_leaves_nothing_switched_on(host: Host) -> None:
    host.opts.set("accel_enable", False)
    host.model.apply_model = None
    with pytest.raises(TypeError):
        host.image(override_settings={"accel_enable": True})
    del host.model.apply_model
    host.image()
    assert "forward" not in vars(host.unet)


def test_a_change_of_the_settings_meanwhile_waits_for_the_next_job(host: Host) -> None:
    """While a job has settings for itself alone, the user's own cannot be read."""
    there = host.service.current()
    host.module("modules.script_callbacks").on_cfg_denoised(
        lambda _: host.opts.set("accel_graphs_mib", 64)
    )
    host.image(override_settings={"accel_enable": False}, n_iter=2)
    assert host.service.current() is there
    host.image()
    assert host.service.current().engine.config.graph_bytes == 64 * 2**20


# -- out of memory


class _Full(Stub):
    """A backend whose code runs out of memory."""

    name = "full"

    def code(self, unit: Any) -> UnitFn:
        return self._fail

    def _fail(self, given: list[Tensor]) -> Tensor:
        type(self).calls += 1
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.fixture
def full(start: Start, monkeypatch: pytest.MonkeyPatch) -> Host:
    serve(monkeypatch, _Full)
    host = start("--accel-backend", "full")
    host.load()
    return host


MEMORY = "memory ran out in accelerated code; the model's own code computed the call"


def test_out_of_memory_is_answered_by_the_webuis_own_code(full: Host) -> None:
    """Its attention may need less; the next call is tried anew."""
    lora = full.network("lora", {MIDDLE_QUERY: factors()})
    for networks in ((), (lora,), ()):
        full.want(*networks)
        calls = _Full.calls
        with counted(full, accelerated_calls=0, host_calls=1):
            out = full.call()
        assert calls < _Full.calls <= calls + 2, "once more where something was given up"
        assert full.status()["reason"] == MEMORY
        full.opts.data["accel_enable"] = False
        assert torch.equal(full.call(), out)
        full.opts.data["accel_enable"] = True


def test_out_of_memory_in_a_layer_is_answered_by_the_layer(full: Host) -> None:
    drive(full.unet)
    out = full.call()
    assert _Full.calls > 1
    assert torch.equal(out, full.plain())
    assert full.status()["reason"] == MEMORY


def test_memory_that_the_webui_lacks_too_is_an_error(full: Host) -> None:
    def fail(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    full.unet.out.register_forward_pre_hook(fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        full.call()


# -- a user without a home


def test_a_user_without_a_home_makes_images_and_reads_why(start: Start) -> None:
    """The store is below `~` then, which names no place."""
    host = start("--accel-store", "~nobody-of-this-name/store")
    host.load()
    host.image()
    assert host.status()["state"] == "fallback"
    assert "~nobody-of-this-name" in host.status()["reason"]
    host.opts.set("accel_graphs_mib", 64)
    with counted(host, accelerated_calls=0):
        assert torch.equal(host.call(), host.plain())

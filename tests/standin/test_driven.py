"""Another extension's forward drives the UNet, and its layers still run compiled code.

So do the layers of control models. Everything is given back when the driver leaves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.compile.units import UnitFn

from ..tiny import inputs
from .backends import Stub, serve
from .conftest import Start
from .driver import ControlNet, Unit, drive
from .host import Host, counted, left_behind, own_attributes, unit_layers

DRIVEN = "another extension drives the UNet: compiled layer by layer"


def _control(host: Host, seed: int = 7) -> ControlNet:
    return ControlNet(host.new_unet(seed)).eval()


def _expected(host: Host, units: list[Unit], **size: int) -> Tensor:
    """Compute the same with an equal, unaccelerated UNet and control models that are it too."""
    unet = host.new_unet()
    drive(unet, units)
    return host.call(inputs(**size), unet)


@pytest.mark.parametrize("size", [{}, {"batch": 1, "height": 9, "width": 13}, {"length": 154}])
def test_every_layer_of_a_driven_unet_is_compiled(host: Host, size: dict[str, int]) -> None:
    drive(host.unet)
    with host.watched() as unaccelerated, counted(host, accelerated_calls=1, host_calls=0):
        out = host.call(inputs(**size))
        assert unaccelerated(host.unet) == set()
    assert torch.allclose(out, host.plain(inputs(**size)), atol=1e-5)
    assert host.status()["reason"] == DRIVEN


def test_without_compiled_code_the_layers_are_the_webuis_own(start: Start) -> None:
    host = start("--accel-backend", "eager")
    host.load()
    drive(host.unet)
    with host.watched() as unaccelerated, counted(host, accelerated_calls=0, host_calls=1):
        out = host.call()
        assert unaccelerated(host.unet) == unit_layers(host.unet)
    assert torch.equal(out, host.plain())
    assert host.status()["reason"] == (
        "another extension drives the UNet: without compiled code its layers run unaccelerated"
    )


class _Failing(Stub):
    """A backend whose code raises whenever it is called."""

    name = "failing"

    def code(self, unit: Any) -> UnitFn:
        return self._fail

    def _fail(self, given: list[Tensor]) -> Tensor:
        type(self).calls += 1
        raise RuntimeError(f"layer {self.calls} broke")


def test_each_layer_whose_compiled_code_fails_is_computed_by_the_webui(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is that of the first layer that failed; the next pass is not accelerated."""
    serve(monkeypatch, _Failing)
    host = start("--accel-backend", "failing")
    host.load()
    drive(host.unet)
    assert torch.allclose(host.call(), host.plain(), atol=1e-5)
    assert _Failing.calls == len(unit_layers(host.unet))
    assert "failing: it failed while computing: layer 1 broke" in host.status()["reason"]
    with counted(host, accelerated_calls=0, host_calls=1):
        assert torch.equal(host.call(), host.plain())


def test_acceleration_of_the_whole_unet_returns_when_the_driver_leaves(host: Host) -> None:
    """Also where the driver came before acceleration was switched on."""
    plain = host.call()
    for _ in range(2):
        leave = drive(host.unet)
        driven = host.image()
        leave()
        with counted(host, accelerated_calls=1):
            assert torch.equal(host.call(), plain)
        assert torch.allclose(driven.made[0], host.image().made[0], atol=1e-5)
        assert driven.extra_generation_params["Accel"] == "aoti"
    host.opts.set("accel_enable", False)
    leave = drive(host.unet)
    host.opts.set("accel_enable", True)
    with counted(host, accelerated_calls=1, host_calls=0):
        assert torch.allclose(host.call(), plain, atol=1e-5)
    leave()  # which leaves the bound method of the class on the UNet
    host.image()
    assert torch.equal(host.call(), plain)
    assert host.status()["reason"] is None, "the whole UNet again, not layer by layer"


def test_off_while_driven(host: Host) -> None:
    """The driver kept our forward and puts it back after we have gone; it must compute nothing."""
    bare = host.plain()
    leave = drive(host.unet)
    host.call()
    host.opts.set("accel_enable", False)
    with counted(host, accelerated_calls=0, host_calls=0):
        assert torch.equal(host.call(), bare)
        leave()
        assert torch.equal(host.call(), bare)
    assert "forward" not in vars(host.unet), "ours goes as soon as it is called"
    host.opts.set("accel_enable", True)
    with counted(host, accelerated_calls=1, host_calls=0):
        assert torch.allclose(host.call(), bare, atol=1e-5)


def test_control_models_are_accelerated_each_with_its_own_weights(host: Host) -> None:
    """They are found behind a closure over what a user has set, in the first pass."""
    a, b = _control(host), _control(host, 8)
    units = [Unit(a), Unit(b, 0.5)]
    expected, plain = _expected(host, units), host.call()
    before = [own_attributes(a), own_attributes(b)]
    leave = drive(host.unet, units)
    with host.watched() as unaccelerated, counted(host, accelerated_calls=1, host_calls=0):
        host.call()
        assert unaccelerated(host.unet) == set()
        assert unaccelerated(a) == unit_layers(a), "found when its own pass had begun"
    with host.watched() as unaccelerated, counted(host, accelerated_calls=1, host_calls=0):
        out = host.call()
        assert [unaccelerated(n) for n in (a, b, host.unet)] == [set(), set(), set()]
    assert torch.allclose(out, expected, atol=1e-5)
    assert not torch.allclose(out, plain, atol=1e-3)
    assert host.status()["control_models"] == 2
    leave()
    assert torch.equal(host.call(), plain)
    host.opts.set("accel_enable", False)
    assert [left_behind(x, n) for x, n in zip(before, (a, b), strict=True)] == [[], []]


def test_other_weights_of_a_control_model_are_followed(host: Host) -> None:
    """Loaded in place, moved, or those of another model in the same place."""
    units = [Unit(_control(host))]
    drive(host.unet, units)
    host.call()
    units[0].control_model.load_state_dict(_control(host, 9).state_dict())
    assert torch.allclose(host.call(), _expected(host, [Unit(_control(host, 9))]), atol=1e-5)
    units[0].control_model.double().float()
    assert torch.allclose(host.call(), _expected(host, [Unit(_control(host, 9))]), atol=1e-5)
    units[0] = Unit(_control(host, 10))
    assert torch.allclose(host.call(), _expected(host, [Unit(_control(host, 10))]), atol=1e-5)


def test_a_new_control_model_is_accelerated_in_the_next_image(host: Host) -> None:
    """The driver comes anew for each image, with other control models."""
    for seed in (7, 8):
        control = _control(host, seed)
        leave = drive(host.unet, [Unit(control)])
        host.image(steps=1)
        with host.watched() as unaccelerated:
            host.image(steps=1)
            assert unaccelerated(control) == set()
        leave()


def test_a_hypernetwork_keeps_control_models_unaccelerated(host: Host) -> None:
    """It changes their attention as it does the UNet's."""
    control = _control(host)
    drive(host.unet, [Unit(control)])
    host.image(steps=1)
    active = host.module("modules.shared").loaded_hypernetworks
    active.append(object())
    with host.watched() as unaccelerated:
        host.call()
        assert [unaccelerated(n) for n in (control, host.unet)] == [
            unit_layers(control),
            unit_layers(host.unet),
        ]
    active.clear()
    with host.watched() as unaccelerated:
        host.call()
        assert [unaccelerated(n) for n in (control, host.unet)] == [set(), set()]


def test_only_changed_layers_of_a_control_model_are_unaccelerated(host: Host) -> None:
    control = _control(host)
    units = [Unit(control)]
    drive(host.unet, units)
    host.call()
    layer: Any = control.middle_block[0]
    hook = layer.register_forward_hook(lambda *given: given[-1] * 2)
    with host.watched() as unaccelerated:
        out = host.call()
        assert unaccelerated(control) == {"middle_block.0"}
        assert unaccelerated(host.unet) == set()
    hook.remove()
    other = _control(host)
    other.middle_block[0].register_forward_hook(lambda *given: given[-1] * 2)
    assert torch.allclose(out, _expected(host, [Unit(other)]), atol=1e-5)


def test_a_lora_changes_the_unet_and_not_the_control_model(host: Host) -> None:
    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    factors = {"lora_up.weight": torch.randn(64, 4), "lora_down.weight": torch.randn(4, 64)}
    lora = host.network("lora", {name: factors})
    control = _control(host)
    drive(host.unet, [Unit(control)])
    plain = host.call()
    base = {k: v.clone() for k, v in control.state_dict().items()}
    host.want(lora)
    with counted(host, accelerated_calls=1, host_calls=0, lora_merges=1):
        out = host.call()
    assert not torch.allclose(out, plain, atol=1e-3)
    host.opts.set("accel_enable", False)
    assert torch.allclose(host.call(), out, atol=1e-4)
    host.opts.set("accel_enable", True)
    host.want()
    host.call()
    assert torch.allclose(host.call(), plain, atol=1e-5)
    assert all(torch.equal(v, base[k]) for k, v in control.state_dict().items())


def test_after_an_interrupted_pass_the_next_one_begins_anew(host: Host) -> None:
    plain = host.call()
    leave = drive(host.unet)
    hook = host.unet.middle_block.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        host.call()
    hook.remove()
    with counted(host, accelerated_calls=1):
        assert torch.allclose(host.call(), plain, atol=1e-5)
    leave()
    assert torch.equal(host.call(), plain)


def test_the_status_gives_both_reasons(start: Start, tmp_path: Path) -> None:
    """Why this image is not accelerated, and why no better backend serves."""
    host = start("--accel-store", str(tmp_path / "empty"), "--accel-no-compile")
    host.load()
    host.module("modules.shared").loaded_hypernetworks.append(object())
    host.call()
    reason = host.status()["reason"]
    assert reason.startswith("a hypernetwork is active"), reason
    assert "; aoti: " in reason


def test_a_reason_while_driven_ends_with_its_cause(host: Host) -> None:
    drive(host.unet)
    host.module("modules.shared").loaded_hypernetworks.append(object())
    with counted(host, accelerated_calls=0, host_calls=1):
        assert torch.equal(host.call(), host.plain())
    assert "hypernetwork" in host.status()["reason"]
    host.module("modules.shared").loaded_hypernetworks.clear()
    with counted(host, accelerated_calls=1, host_calls=0):
        host.call()
    assert host.status()["reason"] == DRIVEN

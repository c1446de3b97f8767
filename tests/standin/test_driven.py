"""Somebody else's forward drives the UNet: accelerated layer by layer, the networks behind it too, and everything given back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.runtime.accelerated import accelerated

from ..tiny import inputs
from .conftest import Start
from .driver import ControlNet, Unit, drive
from .host import Host, counted, left_behind, own_attributes

UNIT_LAYERS = 13  # of the UNet: residual blocks, transformers, the output layer
CONTROL_LAYERS = 6  # of its encoder
DRIVEN = "another extension drives the UNet: compiled layer by layer"


def _control(host: Host, seed: int = 7) -> ControlNet:
    return ControlNet(host.new_unet(seed)).eval()


def _expected(host: Host, units: list[Unit], **size: int) -> Tensor:
    """From an equal UNet under the same driver, without us. Its control models must be free of us."""
    unet = host.new_unet()
    drive(unet, units)
    return host.call(inputs(**size), unet)


def _compiled(host: Host) -> Counter[int]:
    """Count, from now on, compiled layers by the network that owns their weights."""
    engine, seen = accelerated(host.unet).engine, Counter[int]()
    original = engine.compute_layer

    def compute_layer(layer: Any, *given: Any) -> Tensor:
        seen[id(next(layer.module.parameters()))] += 1
        return original(layer, *given)

    engine.compute_layer = compute_layer
    return seen


def _of(seen: Counter[int], network: nn.Module) -> int:
    return sum(seen[id(p)] for p in network.parameters())


@pytest.mark.parametrize("size", [{}, {"batch": 1, "height": 9, "width": 13}, {"length": 154}])
def test_driven(host: Host, size: dict[str, int]) -> None:
    seen = _compiled(host)
    drive(host.unet)
    with counted(host, accelerated_calls=1, host_calls=0):
        out = host.call(inputs(**size))
    assert torch.allclose(out, host.plain(inputs(**size)), atol=1e-5)
    assert _of(seen, host.unet) == UNIT_LAYERS == sum(seen.values())
    assert host.status()["reason"] == DRIVEN


def test_driven_without_compiled_code(start: Start) -> None:
    host = start("--accel-backend", "eager")
    host.load()
    drive(host.unet)
    with counted(host, accelerated_calls=0, host_calls=1):
        assert torch.equal(host.call(), host.plain())
    reason = host.status()["reason"]
    assert reason.startswith(
        "another extension drives the UNet: without compiled code its layers run unaccelerated"
    ), reason


def test_compiled_code_that_fails_while_driven(host: Host) -> None:
    """Every layer of that pass goes on by itself, and the reason is of the first that failed."""
    engine, failed = accelerated(host.unet).engine, []

    def fail(inputs: list[Tensor]) -> Tensor:
        failed.append(1)
        raise RuntimeError(f"layer {len(failed)} broke")

    for layer in engine.compiled_layers().values():
        layer.unit = fail
    drive(host.unet)
    assert torch.allclose(host.call(), host.plain(), atol=1e-5)
    assert len(failed) == UNIT_LAYERS
    assert "aoti: it failed while computing: layer 1 broke" in host.status()["reason"]
    with counted(host, accelerated_calls=0, host_calls=1):
        assert torch.equal(host.call(), host.plain())


def test_comes_and_goes(host: Host) -> None:
    """Our own forward stands behind his and comes back with his leaving; so it does where he came first."""
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
    leave()  # which leaves the bound method of the class behind
    host.image()
    assert torch.equal(host.call(), plain)
    assert host.status()["reason"] is None, "ours again, not layer by layer"


def test_off_while_driven(host: Host) -> None:
    """He holds our forward for later, and puts it back when we have gone: nothing of ours may compute then."""
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


def test_control_models(host: Host) -> None:
    """Behind a closure over a list of what a user has set; each with its own weights."""
    a, b = _control(host), _control(host, 8)
    units = [Unit(a), Unit(b, 0.5)]
    expected, plain = _expected(host, units), host.call()
    before = [own_attributes(a), own_attributes(b)]
    seen = _compiled(host)
    leave = drive(host.unet, units)
    with counted(host, accelerated_calls=1, host_calls=0):
        host.call()  # the first pass finds them, when theirs has begun
    assert _of(seen, host.unet) == UNIT_LAYERS
    seen.clear()
    with counted(host, accelerated_calls=1, host_calls=0):
        out = host.call()
    assert torch.allclose(out, expected, atol=1e-5)
    assert not torch.allclose(out, plain, atol=1e-3)
    assert (_of(seen, a), _of(seen, b), _of(seen, host.unet)) == (
        CONTROL_LAYERS,
        CONTROL_LAYERS,
        UNIT_LAYERS,
    )
    assert host.status()["control_models"] == 2
    leave()
    assert torch.equal(host.call(), plain)
    host.opts.set("accel_enable", False)
    assert [left_behind(x, n) for x, n in zip(before, (a, b), strict=True)] == [[], []]


def test_a_control_model_with_other_weights(host: Host) -> None:
    """Loaded in place, moved, or another one in the same place: followed."""
    units = [Unit(_control(host))]
    drive(host.unet, units)
    host.call()
    units[0].control_model.load_state_dict(_control(host, 9).state_dict())
    assert torch.allclose(host.call(), _expected(host, [Unit(_control(host, 9))]), atol=1e-5)
    units[0].control_model.double().float()
    assert torch.allclose(host.call(), _expected(host, [Unit(_control(host, 9))]), atol=1e-5)
    units[0] = Unit(_control(host, 10))
    assert torch.allclose(host.call(), _expected(host, [Unit(_control(host, 10))]), atol=1e-5)


def test_another_image_with_another_control_model(host: Host) -> None:
    """He comes anew for each image: what he brings is found each time."""
    for seed in (7, 8):
        control = _control(host, seed)
        leave = drive(host.unet, [Unit(control)])
        host.image(steps=1)
        seen = _compiled(host)
        host.image(steps=1)
        assert _of(seen, control) == CONTROL_LAYERS
        leave()


def test_control_models_under_a_hypernetwork(host: Host) -> None:
    """It changes their attention too, and they run the WebUI's way as the UNet does."""
    drive(host.unet, [Unit(_control(host))])
    host.image(steps=1)
    seen, active = _compiled(host), host.module("modules.shared").loaded_hypernetworks
    active.append(object())
    host.call()
    assert sum(seen.values()) == 0
    active.clear()
    host.call()
    assert sum(seen.values()) == UNIT_LAYERS + CONTROL_LAYERS


def test_a_changed_control_model(host: Host) -> None:
    """Its changed layers run its own way, the others compiled."""
    control = _control(host)
    units = [Unit(control)]
    drive(host.unet, units)
    host.call()
    seen = _compiled(host)
    layer: Any = control.middle_block[0]
    hook = layer.register_forward_hook(lambda *given: given[-1] * 2)
    out = host.call()
    assert (_of(seen, control), _of(seen, host.unet)) == (CONTROL_LAYERS - 1, UNIT_LAYERS)
    hook.remove()
    other = _control(host)
    other.middle_block[0].register_forward_hook(lambda *given: given[-1] * 2)
    assert torch.allclose(out, _expected(host, [Unit(other)]), atol=1e-5)


def test_control_model_and_lora(host: Host) -> None:
    """The LoRA is the UNet's alone."""
    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    lora = host.network(
        "lora",
        {name: {"lora_up.weight": torch.randn(64, 4), "lora_down.weight": torch.randn(4, 64)}},
    )
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


def test_a_pass_cut_short(host: Host) -> None:
    """Interrupted in the middle of a pass; the next one begins anew, with what is wanted then."""
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
    """Why this image is made without acceleration, and why no better backend serves."""
    host = start("--accel-store", str(tmp_path / "empty"), "--accel-no-compile")
    host.load()
    host.module("modules.shared").loaded_hypernetworks.append(object())
    host.call()
    reason = host.status()["reason"]
    assert "hypernetwork" in reason
    assert "; aoti: no artifact is at hand" in reason


def test_a_reason_while_driven(host: Host) -> None:
    drive(host.unet)
    host.module("modules.shared").loaded_hypernetworks.append(object())
    with counted(host, accelerated_calls=0, host_calls=1):
        assert torch.equal(host.call(), host.plain())
    assert "hypernetwork" in host.status()["reason"]
    host.module("modules.shared").loaded_hypernetworks.clear()
    with counted(host, accelerated_calls=1, host_calls=0):
        host.call()
    assert host.status()["reason"] == DRIVEN

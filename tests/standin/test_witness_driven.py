"""Where another extension drives the UNet, each layer is computed both ways; control models too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..tiny import inputs
from .backends import Uncompiled, serve
from .driver import ControlNet, Unit, drive
from .host import MIDDLE_QUERY, Host, counted, factors
from .test_witness import change, change_on, seen, witnessed, witnessing

__all__ = ["seen"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: set[str]) -> Iterator[Host]:
    """A stand-in whose layers serve one by one, and whose inspector is blind."""
    serve(monkeypatch, Uncompiled)
    with witnessing(tmp_path, "uncompiled", monkeypatch, seen) as host:
        yield host


def test_a_driven_step_is_witnessed_and_changes_no_bit(host: Host) -> None:
    drive(host.unet)
    first, second = host.call(), host.call()
    assert witnessed(host) == 1
    assert torch.equal(first, second)
    assert host.status()["difference"] is None
    assert 0 < host.status()["worst_error"] < 1e-5


def test_only_layers_that_differ_are_unaccelerated(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    drive(host.unet)
    host.service.before_images()
    for name in (MIDDLE_QUERY, "input_blocks.1.1.transformer_blocks.0.attn1"):
        change(host, name)
    first = host.call()
    module: Any = host.unet.get_submodule(MIDDLE_QUERY)
    assert module.calls == 1, "nothing foreign runs a second time"
    with counted(host, accelerated_calls=0, host_calls=1):  # this image goes on the WebUI's way
        second = host.call()
    host.service.before_images()
    with host.watched() as unaccelerated, counted(host, accelerated_calls=2, host_calls=0):
        host.call()
        host.networks.computed.clear()
        host.call()
        assert unaccelerated(host.unet) == {"middle_block.1", "input_blocks.1.1"}
    assert torch.allclose(first, second, atol=1e-5)
    assert len([x for x in capsys.readouterr().out.splitlines() if "please report" in x]) == 1
    assert "differ in 2 layers, most in input_blocks.1.1" in host.status()["difference"]


def test_a_layer_of_a_control_model_that_differs_is_found(host: Host) -> None:
    control, other = (ControlNet(host.new_unet(7)).eval() for _ in range(2))
    drive(host.unet, [Unit(control)])
    host.service.before_images()
    host.call()
    host.call()
    assert witnessed(host) == 2, "the UNet's step, and then its own"
    change_on(control)
    host.service.current().inspector.version += 1
    vars(control)["_accelerated"]._inspector.version += 1
    out = [host.call() for _ in range(2)]
    host.service.before_images()
    out += [host.call() for _ in range(2)]
    assert "input_blocks.1.1" in host.status()["difference"]
    change_on(other)
    unet = host.new_unet()
    drive(unet, [Unit(other)])
    expected = host.call(inputs(), unet)
    assert all(torch.allclose(o, expected, atol=1e-5) for o in out)


def test_a_lora_that_we_merge_otherwise_is_merged_by_the_extension(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways read the weights that we have merged: only the extension's own code can tell."""
    merging = host.module("lib_accel.host.unet.lora.layers")
    right = merging.merge
    monkeypatch.setattr(merging, "merge", lambda w, base, terms, *d: right(w, base, terms[:0], *d))
    lora = host.network("lora", {MIDDLE_QUERY: factors()})
    host.want(lora)
    assert torch.allclose(host.call(), host.plain(), atol=1e-4)
    said = host.status()["difference"]
    assert said.startswith("the Lora extension merges differently: NetworkModuleLora in a Linear")
    lora.unet_multiplier = 0.5
    assert torch.allclose(host.call(), host.plain(), atol=1e-4)
    host.want()
    assert torch.equal(host.call(), host.call())
    assert torch.allclose(host.call(), host.plain(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_right_merges_are_taken_for_right(host: Host, dtype: torch.dtype) -> None:
    """In the dtype of the weights, several networks on one layer, a bias, and one that is unfit."""
    layer: Any = host.unet.get_submodule(MIDDLE_QUERY)
    norm: Any = host.unet.get_submodule("middle_block.1.norm")
    norm_parts = {"diff": torch.randn(64) * 0.3, "diff_b": torch.randn(64) * 0.3}
    nets = [host.network(f"l{i}", {MIDDLE_QUERY: factors()}) for i in range(3)]
    nets.append(host.network("full", {"middle_block.1.norm": norm_parts}))
    nets.append(host.network("unfit", {MIDDLE_QUERY: {"diff": torch.randn(3, 5)}}))
    for each in (layer, norm):
        each.to(dtype)
    for net, strength in zip(nets, (1.0, -0.7, 0.2, 1.0, 1.0), strict=True):
        net.unet_multiplier = strength
    host.want(*nets[:4])
    with torch.no_grad():
        loras = host.service.current().loras
        loras.bring_up_to_date()
        assert loras.check() is None
        host.want(*nets)
        loras.bring_up_to_date()
        counted_before = dict(host.networks.extra_network_lora.errors)
        assert loras.check() is None
    assert host.networks.extra_network_lora.errors == counted_before


def test_loras_that_are_wanted_between_two_layers(host: Host) -> None:
    """A driver may want others for the decoder than for the encoder."""
    lora = host.network("lora", {MIDDLE_QUERY: factors()})
    drive(host.unet)
    plain = host.call()
    first: Any = host.unet.middle_block[0]
    before = first.forward
    first.forward = lambda *given: (host.want(lora), before(*given))[1]
    out = [(host.want(), host.call())[1] for _ in range(2)]
    first.forward = before
    assert all(torch.allclose(o, host.plain(), atol=1e-4) for o in out)
    assert not torch.allclose(out[0], plain, atol=1e-3)

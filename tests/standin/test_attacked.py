"""What an attack on a live UNet found: it is in the picture, and fails no image."""

from __future__ import annotations

import builtins
import functools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..tiny import inputs
from .backends import Uncompiled, serve
from .driver import ControlNet, Unit, drive
from .host import MIDDLE_QUERY, Host, counted, factors, in_place

SMALL = inputs(batch=1, height=8, width=8, length=7)
ATTENTION = "middle_block.1.transformer_blocks.0.attn1"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A stand-in with a loaded model whose layers serve one by one."""
    serve(monkeypatch, Uncompiled)
    with in_place():
        host = Host("--accel-store", str(tmp_path), "--accel-backend", "uncompiled")
        host.load()
        yield host
        host.close()


def expected(host: Host) -> Tensor:
    """Return what the WebUI alone computes now."""
    data = host.opts.data
    data["accel_enable"] = False  # without a callback: nothing is taken down
    try:
        return host.call(SMALL)
    finally:
        data["accel_enable"] = True


def check(host: Host) -> None:
    """Check that this call is as the WebUI's, and that nothing foreign lasts."""
    right = expected(host)
    assert torch.allclose(host.call(SMALL), right, atol=1e-4), host.status()["reason"]


# -- weights


def _tie(network: Any) -> None:
    attention = network.get_submodule(ATTENTION)
    attention.to_k.weight = attention.to_q.weight


def test_a_weight_in_two_places_is_computed_by_compiled_code(host: Host) -> None:
    _tie(host.unet)
    with counted(host, accelerated_calls=1, host_calls=1):
        check(host)
    assert host.status()["reason"] is None


def test_a_weight_in_two_places_of_a_control_model(host: Host) -> None:
    control = ControlNet(host.new_unet(7)).eval()
    drive(host.unet, [Unit(control)])
    check(host)
    _tie(control)
    check(host)
    control.middle_block[1].transformer_blocks[0].attn1.to_k.weight = nn.Parameter(
        torch.randn(64, 64), requires_grad=False
    )
    check(host)


# -- what is there cannot be looked at, compared or called as expected


class Evil:
    """A forward that answers to nothing but a call."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, forward: Any):
        object.__setattr__(self, "_forward", forward)

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        return object.__getattribute__(self, "_forward")(*given, **named) * 1.5

    def __get__(self, owner: Any, cls: object = None) -> Evil:
        return Evil(functools.partial(object.__getattribute__(self, "_forward"), owner))

    def __eq__(self, other: object) -> bool:
        raise KeyError("nothing is equal")

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


def _evil_forward(host: Host) -> None:
    layer = host.unet.middle_block[0]
    layer.forward = Evil(functools.partial(type(layer).forward, layer))


def _evil_class(host: Host) -> None:
    cls: Any = host.module("ldm.unet").CrossAttention
    cls.forward = Evil(cls.forward)


def _evil_setting(host: Host) -> None:
    class Number(float):
        __hash__ = float.__hash__

        def __eq__(self, other: object) -> bool:
            raise KeyError("nothing is equal")

    host.unet.middle_block[0].in_layers[0].eps = Number(0.5)


def _evil_property(host: Host) -> None:
    def setting(_: object) -> bool:
        raise KeyError("updown")

    host.module("ldm.unet").ResBlock.updown = property(setting)


def _tuples(host: Host) -> None:
    """Two layers pass more than a tensor."""
    first, second = host.unet.middle_block[0], host.unet.middle_block[1]
    own, other = type(first).forward, type(second).forward
    first.forward = lambda h, emb: (own(first, h, emb), 1.5)
    second.forward = lambda given, context: other(second, given[0] * given[1], context)


def _another_class(host: Host) -> None:
    """It takes no time embedding."""

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.out_layers(x) * 0.5  # type: ignore[operator]

    host.unet.middle_block[0].__class__ = Other


def _another_table(host: Host) -> None:
    """One that is no dict."""
    block = host.unet.middle_block
    block._modules = types.MappingProxyType(dict(block._modules))


CHANGES = [
    *(_evil_forward, _evil_class, _evil_setting, _evil_property),
    *(_tuples, _another_class, _another_table),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_no_image_fails_that_the_webui_makes(host: Host, change: Any) -> None:
    host.witness()
    host.opts.set("accel_witness_steps", 0)  # the first step is witnessed, the others are not
    change(host)
    for _ in range(3):
        host.service.before_images()
        check(host)


def test_what_could_not_be_looked_at_is_accelerated_again(host: Host) -> None:
    plain = host.call(SMALL)
    _evil_property(host)
    host.call(SMALL)
    assert "it cannot be looked at (KeyError)" in host.status()["reason"]
    del host.module("ldm.unet").ResBlock.updown
    with counted(host, accelerated_calls=1, host_calls=0):
        assert torch.equal(host.call(SMALL), plain)
    assert host.status()["reason"] is None


def test_a_layer_of_somebody_else_is_given_contiguous_inputs(host: Host) -> None:
    """And it runs once in a step, also where it needs them."""
    layer, calls = host.unet.input_blocks[1][0], []
    forward = type(layer).forward

    def counting(h: Tensor, emb: Tensor) -> Tensor:
        calls.append(h.view(h.shape[0], -1).shape)
        return forward(layer, h, emb)

    layer.forward = counting
    with counted(host, accelerated_calls=1, host_calls=0):
        host.call(SMALL)
    assert len(calls) == 1


def test_calls_of_two_threads_leave_layers_accelerated(host: Host) -> None:
    layers = host.service.current()._layers
    first, second = layers.paused(), layers.paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    drive(host.unet)
    with host.watched() as unaccelerated:
        host.call(SMALL)
        assert unaccelerated(host.unet) == set()


def test_an_attribute_that_takes_the_place_of_another_is_seen(host: Host) -> None:
    """A module has as many attributes as before."""
    conv = host.unet.middle_block[0].in_layers[2]
    conv.mark = True
    host.call(SMALL)
    del conv.mark
    conv._call_impl = lambda x: type(conv)._call_impl(conv, x) * 1.5
    check(host)


# -- who computes


def test_a_builtin_that_was_replaced_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = isinstance
    monkeypatch.setattr(builtins, "isinstance", lambda *given: before(*given))
    host.call(SMALL)
    monkeypatch.undo()
    assert "the function isinstance was replaced" in host.status()["reason"]


def test_other_defaults_of_a_function_are_a_change(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say what they were at first: the next step is witnessed."""
    host.call(SMALL)
    inspector = host.service.current().inspector
    before, cls = inspector.version, host.module("ldm.unet").CrossAttention
    monkeypatch.setattr(cls.forward, "__defaults__", (torch.zeros(1, 7, 64),))
    inspector.look()
    assert inspector.version > before


def test_a_parameter_of_somebody_elses_hook_learns(host: Host) -> None:
    host.unet.requires_grad_(False)
    gain = nn.Parameter(torch.ones(1))
    host.unet.middle_block[0].register_forward_hook(lambda *given: given[-1] * gain)
    x, timesteps, context, _ = SMALL
    for i in range(2):
        host.unet(x, timesteps, context).pow(2).sum().backward()
        assert gain.grad is not None, i


class Louder(Tensor):
    """A tensor that computes in its own way."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            plain = [a.as_subclass(Tensor) if isinstance(a, Tensor) else a for a in args]
            out = func(*plain, **(kwargs or {}))
        return out * 1.5 if func is torch.nn.functional.linear else out


@pytest.mark.parametrize("driven", [False, True])
def test_a_tensor_of_another_class_is_the_webuis(host: Host, driven: bool) -> None:
    if driven:
        drive(host.unet)
    x, timesteps, context, _ = SMALL
    with torch.no_grad():
        out = host.unet(x, timesteps, context.as_subclass(Louder))
        host.opts.data["accel_enable"] = False
        right = host.unet(x, timesteps, context.as_subclass(Louder))
    assert torch.allclose(out, right, atol=1e-4)
    assert not torch.allclose(right, expected(host), atol=1e-3)


def test_a_driver_that_holds_the_unets_own_blocks(host: Host) -> None:
    """They are no control model: LoRAs are merged into them."""
    plain = host.call(SMALL)
    drive(host.unet, [Unit(ControlNet(host.unet))])
    host.call(SMALL)
    assert host.status()["control_models"] == 0
    query = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    host.want(host.network("lora", {query: factors(), MIDDLE_QUERY: factors()}))
    out = host.call(SMALL)
    assert torch.allclose(out, expected(host), atol=1e-4)
    assert not torch.allclose(out, plain, atol=1e-2)


def test_a_chosen_script_that_its_runner_lacks(host: Host) -> None:
    """Extensions that make images within an image keep the arguments and take the scripts away."""
    p = types.SimpleNamespace(
        scripts=types.SimpleNamespace(alwayson_scripts=[], selectable_scripts=[]),
        script_args=[3],
        override_settings={},
    )
    host.service.before_images(p)
    with counted(host, accelerated_calls=1, host_calls=0):
        host.call(SMALL)

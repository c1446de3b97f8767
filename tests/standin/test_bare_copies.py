"""What others do with an accelerated UNet, its blocks and layers beside calling them.

They copy, save and trace them, ask what stands as `forward`, call layers in every way that the
model's code allows, and drop the model.
"""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..tiny import inputs
from .driver import ControlNet, Unit, drive
from .host import MIDDLE_QUERY, Host, counted, factors, own_attributes

RESBLOCK, TRANSFORMER = "middle_block.0", "middle_block.1"
PARTS = ("", "input_blocks.1", RESBLOCK, TRANSFORMER, "out")


def _saved(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    assert b"lib_accel" not in file.getvalue()
    file.seek(0)
    return torch.load(file, weights_only=False)


def _pickled(module: nn.Module) -> Any:
    data = pickle.dumps(module)
    assert b"lib_accel" not in data
    return pickle.loads(data)


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, _pickled, _saved]


def _names(network: nn.Module) -> dict[str, set[str]]:
    return {name: set(own) for name, own in own_attributes(network).items()}


@pytest.mark.parametrize("part", PARTS, ids=lambda name: name or "unet")
@pytest.mark.parametrize("make", COPIES, ids=lambda f: f.__name__.strip("_"))
def test_a_copy_is_bare(host: Host, make: Callable[[Any], Any], part: str) -> None:
    plain = host.call()
    before = own_attributes(host.unet)
    twin = make(host.unet.get_submodule(part))
    bare = host.new_unet().get_submodule(part)
    named = {name: own | {"network_layer_name"} for name, own in _names(bare).items()}
    assert _names(twin) == named
    if not part:
        assert torch.equal(host.call(unet=twin), host.plain())
        with counted(host, accelerated_calls=0, host_calls=0):
            host.call(unet=twin)
    assert own_attributes(host.unet).keys() == before.keys()
    with counted(host, accelerated_calls=1):
        assert torch.equal(host.call(), plain)


def test_a_copy_of_a_driven_unet_is_driven_and_bare(host: Host) -> None:
    """The driver has kept our forward on the UNet."""
    drive(host.unet)
    host.call()
    twin = copy.deepcopy(host.unet)
    with counted(host, accelerated_calls=0, host_calls=0):
        assert torch.equal(host.call(unet=twin), host.plain())
        twin.forward = twin._original_forward
        assert torch.equal(host.call(unet=twin), host.plain())
    assert not any("accel" in repr(value) for value in vars(twin).values())


def test_a_copy_of_an_unaccelerated_unet_is_as_ever(host: Host) -> None:
    host.opts.set("accel_enable", False)
    assert "__reduce_ex__" not in vars(host.unet)
    assert torch.equal(host.call(unet=copy.deepcopy(host.unet)), host.plain())


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore::DeprecationWarning",
    "ignore:`torch.jit:FutureWarning",  # from torch 2.14 on
)
@pytest.mark.parametrize("part", ["", RESBLOCK, TRANSFORMER, "out"], ids=lambda n: n or "unet")
def test_a_trace_is_bare(host: Host, part: str) -> None:
    given = _given(host, part)
    with torch.no_grad():
        traced = torch.jit.trace(host.unet.get_submodule(part), given, check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        other = (given[0] + 0.5, *given[1:])
        expected = host.new_unet().get_submodule(part)(*other)
        assert torch.allclose(torch.jit.load(file)(*other), expected, atol=1e-5)


def _given(host: Host, part: str) -> tuple[Tensor, ...]:
    x, timesteps, context, _ = inputs()
    if not part:
        return x, timesteps, context
    h = torch.randn(2, 64, 8, 8)
    side = {RESBLOCK: torch.randn(2, 256), TRANSFORMER: context}
    return (h, side[part]) if part in side else (h,)


# -- asking what stands there


@pytest.mark.parametrize("part", ["", RESBLOCK, TRANSFORMER], ids=lambda name: name or "unet")
def test_our_forwards_answer_as_the_original(host: Host, part: str) -> None:
    module = host.unet.get_submodule(part)
    forward, original = module.forward, type(module).forward
    assert (forward.__func__, forward.__self__) == (original, module)
    assert forward.__name__ == original.__name__
    assert forward.__wrapped__ == original.__get__(module)
    assert inspect.signature(forward) == inspect.signature(original.__get__(module))


def test_rebound_functions_of_our_forwards_work(host: Host) -> None:
    """Some extensions wrap `__func__` and bind it again."""
    plain = host.call()
    for part in ("", RESBLOCK):
        module = host.unet.get_submodule(part)
        module.forward = module.forward.__func__.__get__(module, type(module))
        assert torch.allclose(host.call(), plain, atol=1e-5)
    host.image()
    with counted(host, accelerated_calls=1, host_calls=0):
        assert torch.equal(host.call(), plain)


# -- calling layers


def _calls(h: Tensor, emb: Tensor, context: Tensor) -> dict[str, Callable[[Any], Tensor]]:
    return {
        "keywords": lambda u: u.get_submodule(RESBLOCK)(x=h, emb=emb),
        "keywords in another order": lambda u: u.get_submodule(RESBLOCK)(emb=emb, x=h),
        "one keyword": lambda u: u.get_submodule(TRANSFORMER)(h, context=context),
        "only keywords": lambda u: u.get_submodule(TRANSFORMER)(x=h, context=context),
        "no context": lambda u: u.get_submodule(TRANSFORMER)(h),
        "None as context": lambda u: u.get_submodule(TRANSFORMER)(h, None),
        "a sequential by keyword": lambda u: u.out(input=h),
        "one too many": lambda u: u.out(h, emb),
        "a block by keyword": lambda u: u.middle_block(x=h, emb=emb, context=context),
    }


CALLS = list(_calls(*[torch.zeros(1)] * 3))


@torch.no_grad()
@pytest.mark.parametrize("which", CALLS)
def test_a_layer_is_called_as_the_original(host: Host, which: str) -> None:
    h, emb = torch.randn(2, 64, 8, 8), torch.randn(2, 256)
    context = inputs()[2]
    call = _calls(h, emb, context)[which]
    try:
        expected = call(host.new_unet())
    except (RuntimeError, TypeError) as error:
        with pytest.raises(type(error)):
            call(host.unet)
    else:
        assert torch.allclose(call(host.unet), expected, atol=1e-5)


def _fill(transformer: Any) -> None:
    """Let a transformer take a list of contexts, one for each block, as ldm's does."""
    cls: Any = type(transformer)
    original = cls.forward

    def forward(self: Any, x: Tensor, context: Any = None) -> Tensor:
        return original(self, x, context[0] if isinstance(context, list) else context)

    forward.__module__ = original.__module__
    cls.forward = forward


@torch.no_grad()
def test_a_list_of_contexts_is_left_to_the_layer(host: Host) -> None:
    h, context = torch.randn(2, 64, 8, 8), inputs()[2]
    _fill(host.unet.get_submodule(TRANSFORMER))
    expected = host.new_unet().get_submodule(TRANSFORMER)(h, [context])
    assert torch.equal(host.unet.get_submodule(TRANSFORMER)(h, [context]), expected)


def test_keywords_run_compiled_code(host: Host) -> None:
    h, emb = torch.randn(2, 64, 8, 8), torch.randn(2, 256)
    with host.watched() as unaccelerated, torch.no_grad():
        host.unet.get_submodule(RESBLOCK)(x=h, emb=emb)
        assert unaccelerated(host.unet) == set()


def test_a_layer_is_differentiated_as_the_original(host: Host) -> None:
    h = torch.randn(2, 64, 8, 8, requires_grad=True)
    host.unet.requires_grad_(False)
    emb = torch.randn(2, 256)
    host.unet.get_submodule(RESBLOCK)(h, emb).sum().backward()
    assert h.grad is not None


# -- dropping the model


def _drop(host: Host) -> None:
    host.module("modules.sd_models").model_data.__init__()  # as supermerger does


def _use(host: Host) -> None:
    host.image(host.network("lora", {MIDDLE_QUERY: factors()}))
    host.image()  # a loaded network holds the layer that it is for


def _drive(host: Host) -> None:
    leave = drive(host.unet, [Unit(ControlNet(host.new_unet()).eval())])
    host.call()
    leave()
    del host.unet.forward
    host.image()


def _switch(host: Host) -> None:
    host.opts.set("accel_enable", False)
    host.opts.set("accel_enable", True)
    host.call()


def _fail(host: Host) -> None:
    with pytest.raises(RuntimeError):
        host.unet(*(torch.zeros(1),) * 3)
    host.call()


@pytest.mark.parametrize("use", [_use, _drive, _switch, _fail], ids=lambda f: f.__name__[1:])
def test_a_dropped_model_is_freed_at_once(host: Host, use: Callable[[Host], None]) -> None:
    """Another extension drops it without the WebUI's help, and loads the next at once."""
    use(host)
    unet = host.unet
    there = [weakref.ref(x) for x in (unet, *unet.modules(), *unet.parameters())]
    del unet
    gc.collect()
    gc.disable()
    try:
        _drop(host)
        assert sum(ref() is not None for ref in there) == 0
    finally:
        gc.enable()
    host.load(seed=2)
    with counted(host, accelerated_calls=1):
        assert torch.allclose(host.call(), host.plain(seed=2), atol=1e-5)


def test_a_dropped_control_model_is_freed_at_once(host: Host) -> None:
    units = [Unit(ControlNet(host.new_unet()).eval())]
    leave = drive(host.unet, units)
    host.call()
    leave()
    there = [weakref.ref(m) for m in units[0].control_model.modules()]
    gc.collect()
    gc.disable()
    try:
        units.clear()
        assert sum(ref() is not None for ref in there) == 0
    finally:
        gc.enable()

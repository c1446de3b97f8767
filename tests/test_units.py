"""The compiled unit as a function of activations and weights, and the memory of weights that have moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lib_accel.compile.units import (
    UnitFn,
    UnitModule,
    input_widths,
    side_input,
    unit_key,
    units_of,
    widest,
)
from lib_accel.compile.verify import CHECK_SIZES, check_unit, example_inputs
from lib_accel.errors import BadWeights
from lib_accel.model.architecture import Layer, ResBlock
from lib_accel.model.presets import sd1, sdxl
from lib_accel.runtime.weights import Weights

from . import tiny
from .threads import one_thread  # noqa: F401  (a fixture)

UNITS = units_of(tiny.TINY)
CPU = torch.device("cpu")


def test_the_tiny_unet_has_four_units_and_its_relatives_share_them():
    assert len(UNITS) == 4
    assert units_of(tiny.INPAINTING) == units_of(tiny.WITH_Y) == UNITS
    assert len(set(units_of(tiny.RELATIVE)) & set(UNITS)) == 3


def test_keys_are_these():
    """A changed key makes everybody compile again: say so in the changelog."""
    assert [unit_key(u) for u in UNITS] == [
        "ResBlock-7cf070cd9f1b",
        "SpatialTransformer-92cb2dac2b49",
        "ResBlock-ed3a043222b8",
        "Output-19caffd62de8",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=unit_key)
def test_every_input_shows(unit: Layer):
    """Else code that ignores one would pass everything here. (One channel in each group, and normalising hides the time embedding.)"""
    module = UnitModule(unit)
    inputs, weights = example_inputs(unit, (2, 6, 5, 3), torch.float32, CPU)
    before = module(inputs, weights)
    for i in range(len(inputs)):
        other = [t + torch.randn_like(t) if i == k else t for k, t in enumerate(inputs)]
        assert tiny.error(module(other, weights), before.double()) > 0.01, i


def test_keys_are_distinct():
    every = {*units_of(sd1()), *units_of(sdxl()), *UNITS}
    assert len({unit_key(u) for u in every}) == len(every)


@pytest.mark.parametrize("unit", UNITS, ids=unit_key)
def test_a_unit_is_the_layer(unit: Layer):
    """With the layer's own parameters in their order, for every layer of that spec."""
    donor = tiny.donor()
    layers = [donor.get_submodule(name) for name, spec in tiny.TINY.layers() if spec == unit]
    module = UnitModule(unit)
    activations, _ = example_inputs(unit, (2, 6, 5, 3), torch.float32, CPU)
    for layer in layers:
        assert module.names == [name for name, _ in layer.named_parameters()]
        side = activations[-1]
        assert torch.equal(
            module(activations, list(layer.parameters())), layer(activations[0], side, side)
        )
    assert layers


@pytest.mark.parametrize("unit", UNITS, ids=unit_key)
def test_example_inputs_are_laid_out_as_compiled_code_wants_them(unit: Layer):
    activations, weights = example_inputs(unit, (2, 6, 5, 3), torch.bfloat16, CPU)
    assert len(activations) == (2 if side_input(unit) else 1)
    assert activations[0].shape == (2, input_widths(unit)[0], 6, 5)
    assert activations[0].is_contiguous(memory_format=torch.channels_last)
    assert [w.shape for w in weights] == UnitModule(unit).shapes()
    assert all(w.is_contiguous() and w.dtype == torch.bfloat16 for w in weights)


# -- checking compiled code


def plain(unit: Layer) -> UnitFn:
    """What right code would answer."""
    module = UnitModule(unit)
    count = 2 if module.side else 1
    return lambda inputs: module(inputs[:count], inputs[count:])


def verdict(unit: Layer, fn: UnitFn):
    return check_unit(unit, fn, torch.float32, CPU, alone=True)


@pytest.mark.parametrize("unit", [*UNITS, ResBlock(32, 32, 32)], ids=unit_key)
def test_right_code_passes(unit: Layer):
    found = verdict(unit, plain(unit))
    assert found.passed
    narrow = unit not in UNITS  # 32 channels, one in each group, cannot be normalised at one pixel
    assert len(found.compiled) == len(found.eager) == len(CHECK_SIZES) - narrow


def test_another_epsilon_is_refused():
    module = UnitModule(UNITS[0])
    module._layer[0].get_submodule("in_layers.0").eps = 1e-3  # type: ignore[assignment]
    found = verdict(UNITS[0], lambda inputs: module(inputs[:2], inputs[2:]))
    assert not found.passed
    assert max(found.compiled) > 1e-5


@pytest.mark.parametrize("at", range(3))
def test_code_that_is_wrong_at_one_size_is_refused_with_that_size(at: int):
    right, calls = plain(UNITS[0]), iter(range(9))
    found = verdict(UNITS[0], lambda inputs: right(inputs) * (1 if next(calls) != at else 1.001))
    assert not found.passed
    assert str(CHECK_SIZES[at]) in str(found)
    assert "relative error 1.00e-03" in str(found)


def test_nan_is_refused():
    found = verdict(
        UNITS[3],
        lambda inputs: plain(UNITS[3])(inputs) * (1 if inputs[0].shape[0] != 3 else float("nan")),
    )
    assert not found.passed
    assert str(CHECK_SIZES[2]) in str(found)


def test_another_shape_is_refused():
    found = verdict(UNITS[3], lambda inputs: plain(UNITS[3])(inputs)[..., :-1])
    assert not found.passed
    assert "nan" in str(found)


@pytest.mark.parametrize("layer", UNITS, ids=unit_key)
def test_no_activation_is_wider_than_said(layer: Layer):
    size = (
        16,
        8,
        6,
        7,
    )  # more values than any weight has, and than the scores of attention, which torch keeps there
    most = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            most[0] = max(
                most[0], *(t.numel() for t in tree_flatten(out)[0] if isinstance(t, Tensor)), 0
            )
            return out

    inputs = [
        [t.to("meta") for t in given] for given in example_inputs(layer, size, torch.float32, CPU)
    ]  # not the CPU's own way
    with torch.no_grad(), Watch():
        UnitModule(layer)(*inputs)
    assert most[0] == widest(layer) * 16 * 8 * 6


# -- weights


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4, bias=False))


@torch.no_grad()
def in_place(m: nn.Module) -> None:
    for p in m.parameters():
        p.mul_(2).add_(1)
    m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()})


def test_an_in_place_change_is_no_move():
    m = small()
    w = Weights(m)
    assert w.moved(), "nothing was accepted yet"
    assert list(w.accept()) == ["0.weight", "0.bias", "1.weight"]
    assert not w.moved()
    in_place(m)
    assert not w.moved()


def linear(m: nn.Module) -> nn.Linear:
    return m[1]  # type: ignore[index]


MOVES = {
    "another Parameter": lambda m: setattr(
        linear(m), "weight", nn.Parameter(linear(m).weight.data)
    ),
    "another address": lambda m: setattr(linear(m).weight, "data", linear(m).weight.data.clone()),
    "another dtype": lambda m: m.bfloat16(),
    "another dtype at the same address": lambda m: setattr(
        linear(m).weight, "data", linear(m).weight.data.view(torch.int32)
    ),
    "another dtype of a vector": lambda m: setattr(m[0].bias, "data", m[0].bias.data.half()),
    "a part of it": lambda m: setattr(linear(m).weight, "data", linear(m).weight.data[:2]),
    "another length": lambda m: setattr(m[0].bias, "data", m[0].bias.data[:3]),
    "a new bias": lambda m: setattr(linear(m), "bias", nn.Parameter(torch.zeros(4))),
    "a bias gone": lambda m: setattr(m[0], "bias", None),
    "unloaded": lambda m: m.to("meta"),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_move_is_noticed(move):
    m = small().requires_grad_(False)
    w = Weights(m)
    w.accept()
    move(m)
    assert w.moved()


def test_accepting_again_ends_a_move():
    m = small()
    w = Weights(m)
    w.accept()
    m.double()
    assert w.moved()
    w.accept()
    assert not w.moved()


def test_unloaded_weights_are_refused():
    with pytest.raises(BadWeights, match=r"0\.weight is on the meta device.*load it again"):
        Weights(small().to("meta")).accept()


def test_mixed_dtypes_are_refused():
    m = small()
    m[1].half()  # type: ignore[index]
    with pytest.raises(
        BadWeights,
        match=r"1\.weight is torch\.float16 on cpu but 0\.weight is torch\.float32 on cpu",
    ):
        Weights(m).accept()


def test_weights_nothing_computes_in_are_refused():
    m = small()
    m[1].to(torch.float8_e4m3fn)  # type: ignore[index]  some layers, as the WebUI does
    with pytest.raises(
        BadWeights, match=r"1\.weight is stored as float8_e4m3fn, which nothing computes in; keep"
    ):
        Weights(m).accept()


def test_refused_weights_stay_moved():
    m = small()
    w = Weights(m)
    w.accept()
    m[1].half()  # type: ignore[index]
    with pytest.raises(BadWeights):
        w.accept()
    assert w.moved()
    m[1].float()  # type: ignore[index]
    w.accept()
    assert not w.moved()


def test_the_layout_they_came_in_comes_back():
    """`--opt-channelslast` is the user's."""
    m = small().requires_grad_(False)
    m.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strides = {k: p.stride() for k, p in m.named_parameters()}
    w = Weights(m)
    w.set_layout(compiled=True)
    assert {k: p.stride() for k, p in m.named_parameters()} != strides, "else this shows nothing"
    w.set_layout(compiled=False)
    assert {k: p.stride() for k, p in m.named_parameters()} == strides


def test_layout_is_made_plain_where_it_is_not():
    m = small().requires_grad_(False)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    m.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    linear(m).weight.data = linear(m).weight.data.t().contiguous().t()
    Weights(m).set_layout(compiled=True)
    assert all(p.is_contiguous() and torch.equal(p, before[k]) for k, p in m.named_parameters())
    addresses = [p.data_ptr() for p in m.parameters()]
    Weights(m).set_layout(compiled=True)
    Weights(m).set_layout(compiled=False)
    assert addresses == [p.data_ptr() for p in m.parameters()], (
        "what is right already is not copied"
    )

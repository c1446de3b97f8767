"""Noticing weights that have moved, refusing those that cannot be used, and their memory layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_accel.errors import BadWeights
from lib_accel.runtime.bound.weights import Weights


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


class Other(nn.Parameter):
    """A parameter that may compute in its own way."""


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
    "another class": lambda m: setattr(linear(m).weight, "__class__", Other),
    "other strides": lambda m: setattr(linear(m).weight, "data", linear(m).weight.data.t()),
    "a part of it": lambda m: setattr(linear(m).weight, "data", linear(m).weight.data[:2]),
    "another length": lambda m: setattr(m[0].bias, "data", m[0].bias.data[:3]),
    "a new bias": lambda m: setattr(linear(m), "bias", nn.Parameter(torch.zeros(4))),
    "a bias gone": lambda m: setattr(m[0], "bias", None),
    "another table": lambda m: setattr(
        linear(m), "_parameters", {"weight": nn.Parameter(torch.zeros(4, 4))}
    ),
    "another table of attributes": lambda m: setattr(
        linear(m), "__dict__", {**vars(linear(m)), "_parameters": {"weight": nn.Parameter()}}
    ),
    "one more": lambda m: setattr(linear(m), "weight_g", nn.Parameter(torch.zeros(4))),
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


def test_weights_that_compute_in_their_own_way_are_refused():
    class Quantised(nn.Parameter):
        pass

    m = small()
    linear(m).weight = Quantised(linear(m).weight.data)
    with pytest.raises(BadWeights, match=r"1\.weight is a Quantised, not a plain parameter"):
        Weights(m).accept()


def test_modules_put_between_them_later_have_no_part_in_it():
    """The names stay those of the beginning."""
    m = small()
    w, first, second = Weights(m), m[0].weight, m[1].weight  # type: ignore[index]
    m.insert(0, nn.Linear(2, 2))  # type: ignore[operator]
    named = w.accept()
    assert list(named) == ["0.weight", "0.bias", "1.weight"]
    assert named["0.weight"] is first
    assert named["1.weight"] is second


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

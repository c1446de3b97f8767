"""The clean VAE against the stand-in's `ldm` classes, and how its structure is read."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lib_accel.compile.units import describe, units_among
from lib_accel.errors import BadWeights, UnsupportedArchitecture
from lib_accel.model import specs
from lib_accel.model.vae.network import DECODER, ENCODER, Half, Network

from ..standin.host import TREE, load_file

VAE = load_file("standin_vae", TREE / "ldm" / "vae.py")


def original(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return (VAE.Decoder if kind == DECODER else VAE.Encoder)(32).double().eval()


def given(kind: str, *size: int) -> Tensor:
    return torch.randn(2, 4 if kind == DECODER else 3, *size, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "size"), [(DECODER, (16, 17)), (DECODER, (2, 5)), (ENCODER, (67, 40))]
)
@torch.no_grad()
def test_half_a_vae_computes_what_the_original_does(kind: str, size: tuple[int, int]):
    theirs, x = original(kind), given(kind, *size)
    ours = Network(Half.from_module(theirs)).adopt(dict(theirs.named_parameters()))
    torch.testing.assert_close(ours.run(x), theirs(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [DECODER, ENCODER])
def test_the_preset_is_what_is_read_from_a_live_module(kind: str):
    assert Half.preset(kind, 32) == Half.from_module(original(kind))


def test_both_halves_of_the_real_vae_are_made_of_ten_units():
    halves = [Half.preset(kind) for kind in (DECODER, ENCODER)]
    units = [units_among(spec for _, spec in half.layers) for half in halves]
    assert [len(each) for each in units] == [7, 7]
    assert len({*units[0], *units[1]}) == 10
    assert describe(units[0][1]) == "VaeAttention 512"
    assert specs.VaeOutput(128, 3) in units[0]


def test_another_decoder_is_refused_with_the_parameter_that_differs():
    theirs = original(DECODER)
    theirs.up[1].attn.append(VAE.AttnBlock(64))
    with pytest.raises(UnsupportedArchitecture, match=r"up\.1\.attn\.0\.k\.bias"):
        Half.from_module(theirs)
    with pytest.raises(UnsupportedArchitecture, match=r"conv_in\.weight is missing"):
        Half.from_module(nn.Sequential(nn.Conv2d(4, 64, 3)))


def test_the_donors_parameters_are_borrowed_and_given_back():
    theirs = original(DECODER)
    before = copy.deepcopy(theirs.state_dict())
    network = Network(Half.from_module(theirs))
    network.adopt(dict(theirs.named_parameters()))
    assert all(p is theirs.get_parameter(name) for name, p in network.named_parameters())
    network.release()
    assert all(p.is_meta for _, p in network.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    with pytest.raises(BadWeights, match=r"conv_out\.bias: got the shape None"):
        network.adopt({n: p for n, p in theirs.named_parameters() if n != "conv_out.bias"})

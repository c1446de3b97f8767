"""The clean UNet shares its donor's weights, lets them go, and runs layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lib_accel.errors import BadWeights
from lib_accel.model.layers import LayerFn
from lib_accel.model.presets import sd1, sdxl
from lib_accel.model.random_weights import random_weights
from lib_accel.model.unet import UNet, join, timestep_embedding

from ..threads import one_thread  # noqa: F401  (a fixture)

SMALL = sd1(32, context_dim=16)
WITHOUT_BIAS = "middle_block.1.transformer_blocks.0.attn2.to_q"


@pytest.fixture
def donor() -> nn.Module:
    """A module with the parameters of a small SD1 UNet, to change at will."""
    return UNet(SMALL).adopt(random_weights(SMALL, torch.float32, 0))


@pytest.fixture
def unet(donor: nn.Module) -> UNet:
    return UNet(SMALL).adopt(dict(donor.named_parameters()))


@torch.no_grad()
def run(unet: UNet, layers: dict[str, LayerFn] | None = None, size: tuple[int, int] = (16, 16)):
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, *size, generator=g), torch.randn(2, 7, 16, generator=g)
    return unet(x, torch.tensor([3.0, 801.5]), context, layers=layers)


def difference(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def test_a_new_unet_has_no_storage() -> None:
    assert all(p.is_meta for p in UNet(SMALL).parameters())
    assert not list(UNet(SMALL).buffers())


def test_adopt_shares_the_parameter_objects(donor: nn.Module) -> None:
    theirs = dict(donor.named_parameters())
    unet = UNet(SMALL)
    assert unet.adopt(theirs) is unet
    adopted = dict(unet.named_parameters())
    assert adopted.keys() == theirs.keys()
    assert all(adopted[name] is p for name, p in theirs.items())
    assert not list(unet.buffers())


def test_a_change_in_place_is_seen(donor: nn.Module, unet: UNet) -> None:
    before = run(unet)
    weight = donor.get_parameter("middle_block.1.transformer_blocks.0.attn2.to_v.weight")
    kept = weight.clone()
    weight += 0.1 * torch.randn_like(weight)
    assert difference(run(unet), before) > 1e-4
    weight.copy_(kept)
    assert torch.equal(run(unet), before)


def test_a_change_of_dtype_is_seen(donor: nn.Module, unet: UNet) -> None:
    before = run(unet)
    donor.to(torch.bfloat16)
    assert unet.dtype == torch.bfloat16
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    after = run(unet)
    assert after.dtype == torch.float32  # x's
    assert 1e-4 < difference(after, before) < 0.1


def test_adopt_takes_a_bias_that_a_linear_layer_was_given(donor: nn.Module, unet: UNet) -> None:
    before, given = run(unet), dict(donor.named_parameters())
    given[f"{WITHOUT_BIAS}.bias"] = nn.Parameter(torch.randn(128), requires_grad=False)
    unet.adopt(given)
    assert unet.extra_biases == {f"{WITHOUT_BIAS}.bias"}
    assert difference(run(unet), before) > 1e-5
    unet.adopt(dict(donor.named_parameters()))
    assert unet.extra_biases == set()
    assert torch.equal(run(unet), before)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{WITHOUT_BIAS}.bias", [64]),
        (f"{WITHOUT_BIAS}.scale", [128]),
        ("middle_block.3.bias", [128]),
    ],
)
def test_adopt_refuses_other_extra_parameters(
    donor: nn.Module, name: str, shape: list[int]
) -> None:
    parameters = dict(donor.named_parameters()) | {name: nn.Parameter(torch.zeros(shape))}
    with pytest.raises(BadWeights, match=f"{name}: this UNet has no such parameter"):
        UNet(SMALL).adopt(parameters)


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("out.2.weight", [4, 32, 1, 1], [4, 32, 3, 3]),
        ("middle_block.0.in_layers.0.bias", [64], [128]),
    ],
)
def test_adopt_refuses_another_shape(
    donor: nn.Module, key: str, shape: list[int], expected: list[int]
) -> None:
    parameters = dict(donor.named_parameters())
    parameters[key] = nn.Parameter(torch.zeros(shape))
    with pytest.raises(BadWeights) as e:
        UNet(SMALL).adopt(parameters)
    assert key in str(e.value)
    assert str(shape) in str(e.value)
    assert str(expected) in str(e.value)


def test_adopt_refuses_a_missing_weight(donor: nn.Module) -> None:
    parameters = dict(donor.named_parameters())
    del parameters["time_embed.2.bias"]
    with pytest.raises(
        BadWeights, match=r"time_embed\.2\.bias: got nothing, expected the shape \[128\]"
    ):
        UNet(SMALL).adopt(parameters)


@pytest.fixture(params=[False, True], ids=["torch as it is", "swapping"])
def swapping(request: pytest.FixtureRequest) -> Iterator[None]:
    """With torch's mode in which `Module.to` changes Parameter objects in place (torch >= 2.3)."""
    if request.param and not hasattr(torch.__future__, "set_swap_module_params_on_conversion"):
        pytest.skip(f"NOT RUN: torch {torch.__version__} has no mode that swaps parameters")
    if request.param:
        torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    if request.param:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapping")
def test_release_lets_the_parameters_go_and_leaves_the_donor_alone(donor: nn.Module) -> None:
    donor.to(torch.bfloat16)
    theirs = dict(donor.named_parameters())
    values = {name: p.clone() for name, p in theirs.items()}
    given = theirs | {f"{WITHOUT_BIAS}.bias": nn.Parameter(torch.zeros(128, dtype=torch.bfloat16))}
    unet = UNet(SMALL).adopt(given)
    unet.release()
    assert not {id(p) for p in unet.parameters()} & {id(p) for p in given.values()}
    assert all(p.is_meta for p in unet.parameters())
    assert unet.dtype == torch.bfloat16  # the dtype is still known
    assert dict(unet.named_parameters()).keys() == theirs.keys()
    assert unet.extra_biases == set()
    assert all(p is theirs[name] for name, p in donor.named_parameters())
    assert all(torch.equal(p, values[name]) for name, p in theirs.items())


def test_a_released_unet_can_adopt_again(donor: nn.Module, unet: UNet) -> None:
    before = run(unet)
    unet.release()
    assert torch.equal(run(unet.adopt(dict(donor.named_parameters()))), before)


def test_layers_can_be_replaced_by_name(unet: UNet) -> None:
    seen: list[str] = []

    def watched(name: str, layer: LayerFn) -> LayerFn:
        def call(h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
            seen.append(name)
            return layer(h, emb, context)

        return call

    out = run(unet, {name: watched(name, layer) for name, layer in unet.layers.items()})
    assert seen == [name for name, _ in SMALL.layers()]
    assert torch.equal(out, run(unet))


def test_activations_are_channels_last_between_layers_on_a_cpu(unet: UNet) -> None:
    layouts: dict[str, bool] = {}

    def watched(name: str, layer: LayerFn) -> LayerFn:
        def call(h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
            layouts[name] = h.is_contiguous(memory_format=torch.channels_last)
            return layer(h, emb, context)

        return call

    run(unet, {name: watched(name, f) for name, f in unet.layers.items()}, size=(17, 16))
    assert [name for name, channels_last in layouts.items() if not channels_last] == []


def test_a_missing_y_is_named() -> None:
    architecture = sdxl(32, context_dim=16, adm_channels=40)
    unet = UNet(architecture).adopt(random_weights(architecture, torch.float32, 0))
    with pytest.raises(ValueError, match=r"this UNet needs y: \[B, 40\]; got none"):
        unet(torch.randn(1, 4, 8, 8), torch.zeros(1), torch.randn(1, 7, 16))


def test_join_resizes_what_came_back_too_large() -> None:
    h, skip = torch.arange(4.0).view(1, 1, 2, 2), torch.zeros(1, 1, 1, 2)
    assert join(h, skip).tolist() == [[[[0.0, 1.0]], [[0.0, 0.0]]]]


def test_timestep_embedding_has_cosines_then_sines_from_frequency_1_to_a_10000th() -> None:
    got = timestep_embedding(torch.tensor([0.5], dtype=torch.float64), 4)
    angles = torch.tensor([0.5, 0.5 / 100])
    assert got.dtype == torch.float32
    assert torch.allclose(got, torch.cat([angles.cos(), angles.sin()])[None])

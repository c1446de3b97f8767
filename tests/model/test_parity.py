"""Our UNet against diffusers and against the original code: relative L2 error in float32.

One bound holds for every family and size. There are two kinds of sizes:

- Both sides of the latent are multiples of the UNet's deepest step. The reference is diffusers.
- They are not. Then diffusers upsamples to the skip's size and convolves, while the WebUI upsamples
  x2, convolves and resizes to the skip's size. The reference is `webui_forward`: diffusers' layers
  in the WebUI's wiring. Two tests show that both references agree on the first kind of sizes and
  differ on the second.
"""

from __future__ import annotations

import copy
import functools
import os

import pytest
import torch
from torch import Tensor, nn

from lib_accel.model.architecture import Architecture
from lib_accel.model.unet import UNet

from ..threads import one_thread  # noqa: F401  (a fixture)
from . import original
from .families import (
    FAMILIES,
    ldm_parameters,
    random_weights,
    shapes,
    small_unet,
)
from .references import Inputs, diffusers_forward, inputs, webui_forward

BOUND = 1e-5
# batch, height and width in latents, context length
FITTING = {"square": (1, 16, 16, 77), "wide": (3, 8, 32, 154), "tall": (2, 24, 8, 1)}
ODD = {"square": (1, 15, 15, 77), "wide": (3, 9, 22, 154), "tall": (2, 20, 11, 1)}
BASES = [name for name in FAMILIES if not name.endswith(("-inpainting", "-edit"))]
# Of these only the first convolution differs, so one size will do.
VARIANTS = [name for name in FAMILIES if name not in BASES]
FITTING_CASES = [(f, s) for f in BASES for s in FITTING] + [(f, "wide") for f in VARIANTS]
ODD_CASES = [(f, s) for f in BASES for s in ODD] + [(f, "wide") for f in VARIANTS]


@functools.cache
def ours(family: str) -> UNet:
    parameters = ldm_parameters(small_unet(family))
    return UNet(Architecture.from_shapes(shapes(parameters))).adopt(parameters)


def make_inputs(family: str, shape: tuple[int, int, int, int]) -> Inputs:
    return inputs(FAMILIES[family].config(**FAMILIES[family].small), *shape)


@torch.no_grad()
def run(unet: nn.Module, i: Inputs) -> Tensor:
    return unet(i.x, i.t, i.context, i.y)


def error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("family", "shape"), FITTING_CASES)
def test_equals_diffusers(family: str, shape: str) -> None:
    i = make_inputs(family, FITTING[shape])
    e = error(run(ours(family), i), diffusers_forward(small_unet(family), i))
    print(f"relative error {e:.1e}")
    assert e <= BOUND


@pytest.mark.parametrize(("family", "shape"), ODD_CASES)
def test_odd_sizes_equal_the_webui_wiring(family: str, shape: str) -> None:
    i = make_inputs(family, ODD[shape])
    e = error(run(ours(family), i), webui_forward(small_unet(family), i))
    print(f"relative error {e:.1e}")
    assert e <= BOUND


@pytest.mark.parametrize("shapes_of", [FITTING, ODD], ids=["fitting", "odd"])
@pytest.mark.parametrize("shape", ODD)
def test_resizing_first_equals_diffusers_also_with_other_code_for_layers(
    shapes_of: dict[str, tuple[int, int, int, int]], shape: str
) -> None:
    """Forge does it as diffusers does. Compiled layers cannot be told by their class."""
    i, unet = make_inputs("sd1", shapes_of[shape]), copy.copy(ours("sd1"))
    unet.resizes_first = True
    layers = {name: functools.partial(layer) for name, layer in unet.layers.items()}
    with torch.no_grad():
        got = unet(i.x, i.t, i.context, i.y, layers)
    assert error(got, diffusers_forward(small_unet("sd1"), i)) <= BOUND


@pytest.mark.parametrize("family", BASES)
def test_the_two_references_agree_on_sizes_that_fit(family: str) -> None:
    i = make_inputs(family, FITTING["square"])
    assert (
        error(webui_forward(small_unet(family), i), diffusers_forward(small_unet(family), i))
        <= BOUND
    )


def test_the_two_references_differ_on_odd_sizes() -> None:
    i = make_inputs("sd1", ODD["square"])
    assert (
        error(webui_forward(small_unet("sd1"), i), diffusers_forward(small_unet("sd1"), i)) > 1e-2
    )


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_parameter_has_an_effect_on_the_output(family: str) -> None:
    """Otherwise a wrong layer could go unnoticed."""
    i = make_inputs(family, FITTING["square"])
    parameters = {n: nn.Parameter(p.clone()) for n, p in ldm_parameters(small_unet(family)).items()}
    unet = UNet(Architecture.from_shapes(shapes(parameters))).adopt(parameters)
    unet(i.x, i.t, i.context, i.y).square().sum().backward()
    assert not [n for n, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.fixture(params=original.ORIGINALS)
def original_family(request: pytest.FixtureRequest) -> str:
    package = original.package(request.param)
    if original.folder(package) is None:
        value = os.environ.get("LDM_PATH") or "not set"
        pytest.skip(
            f"NOT CHECKED against the original code: LDM_PATH ({value}) names no folder with "
            f"{package}/. See tests/model/original.py"
        )
    return request.param


@pytest.mark.filterwarnings(
    "ignore:.*sdp_kernel.* is deprecated:FutureWarning"
)  # sgm's attention calls it
@pytest.mark.parametrize("shape", [*FITTING.values(), *ODD.values()], ids=str)
def test_equals_the_original(original_family: str, shape: tuple[int, int, int, int]) -> None:
    theirs = original_unet(original_family)
    unet = UNet(Architecture.from_module(theirs)).adopt(dict(theirs.named_parameters()))
    i = make_inputs(original_family, shape)
    with torch.no_grad():
        expected = theirs(i.x, i.t, i.context, y=i.y)
    e = error(run(unet, i), expected)
    print(f"relative error {e:.1e}")
    assert e <= BOUND


def test_the_original_has_the_parameter_names_of_our_unet(original_family: str) -> None:
    theirs = original_unet(original_family)
    architecture = Architecture.from_module(theirs)
    assert architecture == ours(original_family).architecture
    assert {n for n, _ in theirs.named_parameters()} == {
        n for n, _ in UNet(architecture).named_parameters()
    }


@functools.cache
def original_unet(family: str) -> nn.Module:
    return random_weights(original.original_unet(family), seed=2)

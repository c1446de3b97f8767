"""The presets equal the architectures that are read off diffusers' UNets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lib_accel.errors import UnsupportedArchitecture
from lib_accel.model.architecture import Architecture
from lib_accel.model.presets import PRESETS, Structure, sd1, sd2, sdxl, sdxl_refiner
from lib_accel.model.unet import UNet

from ..threads import one_thread  # noqa: F401  (a fixture)
from .families import real_shapes

REAL: dict[str, Callable[[], Architecture]] = {
    "sd1": sd1,
    "sd1-inpainting": lambda: sd1(in_channels=9),
    "sd1-edit": lambda: sd1(in_channels=8),
    "sd2": sd2,
    "sd2-inpainting": lambda: sd2(in_channels=9),
    "sdxl": sdxl,
    "sdxl-inpainting": lambda: sdxl(in_channels=9),
    "sdxl-edit": lambda: sdxl(in_channels=8),
    "sdxl-refiner": sdxl_refiner,
}


@pytest.mark.parametrize("family", REAL)
def test_presets_are_the_real_unets(family: str) -> None:
    assert REAL[family]() == Architecture.from_shapes(real_shapes(family))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("width", [64, 128, 192])
def test_a_preset_of_any_width_is_read_back_from_its_unet(name: str, width: int) -> None:
    architecture = PRESETS[name](width)
    assert Architecture.from_module(UNet(architecture)) == architecture
    assert (
        Architecture.from_shapes({n: p.shape for n, p in UNet(architecture).named_parameters()})
        == architecture
    )


@pytest.mark.parametrize("make", [sd1, sdxl, sdxl_refiner])
def test_32_channels_suffice_where_the_first_level_has_no_heads_of_64(
    make: Callable[..., Architecture],
) -> None:
    architecture = make(32, context_dim=16)
    assert (
        Architecture.from_shapes({n: p.shape for n, p in UNet(architecture).named_parameters()})
        == architecture
    )


def test_presets_take_other_channels() -> None:
    architecture = sdxl(64, in_channels=9, context_dim=48, adm_channels=40)
    assert (architecture.in_channels, architecture.context_dim, architecture.adm_channels) == (
        9,
        48,
        40,
    )


@pytest.mark.parametrize(
    ("make", "width", "multiple"),
    [(sd2, 32, 64), (sd1, 48, 32), (sd1, 0, 32), (sdxl, 16, 32), (sd2, -64, 64)],
)
def test_refuses_a_width_that_does_not_fit(
    make: Callable[..., Architecture], width: int, multiple: int
) -> None:
    with pytest.raises(
        UnsupportedArchitecture,
        match=rf"{width} model channels .* expected a multiple of {multiple}\. "
        "Use a multiple of 64",
    ):
        make(width)


def test_refuses_depths_and_levels_of_different_numbers() -> None:
    with pytest.raises(UnsupportedArchitecture, match="2 depths for 3 levels"):
        Structure(64, (1, 2, 4), (0, 1), 1, 48, linear=True)

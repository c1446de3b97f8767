"""The accuracy check: right code passes, and every kind of wrong code is refused."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from lib_accel.compile.accuracy import CHECK_SIZES, Verdict, check_sizes, check_unit
from lib_accel.compile.units import UnitFn, UnitModule, unit_key, units_of
from lib_accel.model.presets import sd1
from lib_accel.model.specs import ResBlock, SpatialTransformer, Spec, VaeAttention

from .. import tiny
from ..threads import one_thread  # noqa: F401  (a fixture)

UNITS = units_of(tiny.TINY)
RES, OUTPUT = UNITS[1], UNITS[-1]
CPU = torch.device("cpu")


def right(unit: Spec) -> UnitFn:
    """Return code that computes the unit as torch itself does."""
    module = UnitModule(unit)
    count = len(module.names)
    return lambda inputs: module(inputs[:-count], inputs[-count:])


def check(unit: Spec, fn: UnitFn) -> Verdict:
    return check_unit(unit, fn, torch.float32, CPU, alone=True)


@pytest.mark.parametrize("unit", [*UNITS, ResBlock(32, 32, 32)], ids=unit_key)
def test_right_code_passes(unit: Spec):
    found = check(unit, right(unit))
    assert found.passed
    narrow = unit not in UNITS  # 32 channels, one in each group, cannot be normalised at one pixel
    assert len(found.compiled) == len(found.eager) == len(CHECK_SIZES) - narrow


def test_code_with_another_epsilon_is_refused():
    module = UnitModule(RES)
    layer, names = module._layer[0], [f"layer.{name}" for name in module.names]
    layer.get_submodule("layer.in_layers.0").eps = 1e-3  # type: ignore[assignment]

    def code(inputs: list[torch.Tensor]) -> torch.Tensor:
        count = len(names)
        parameters = dict(zip(names, inputs[-count:], strict=True))
        return functional_call(layer, parameters, tuple(inputs[:-count]))

    found = check(RES, code)
    assert not found.passed
    assert max(found.compiled) > 1e-5


@pytest.mark.parametrize("at", range(3))
def test_code_that_is_wrong_at_one_size_is_refused_with_that_size(at: int):
    code, calls = right(RES), iter(range(9))
    found = check(RES, lambda inputs: code(inputs) * (1 if next(calls) != at else 1.001))
    assert not found.passed
    assert str(CHECK_SIZES[at]) in str(found)
    assert "relative error 1.00e-03" in str(found)


def test_code_that_gives_nan_is_refused():
    code = right(OUTPUT)
    found = check(
        OUTPUT,
        lambda inputs: code(inputs) * (1 if inputs[0].shape[0] != 3 else float("nan")),
    )
    assert not found.passed
    assert str(CHECK_SIZES[2]) in str(found)


def test_code_that_gives_another_shape_is_refused():
    code = right(OUTPUT)
    found = check(OUTPUT, lambda inputs: code(inputs)[..., :-1])
    assert not found.passed
    assert "nan" in str(found)


def test_a_verdict_survives_being_written_as_json():
    found = Verdict((1e-6, 2e-6), (3e-6, 4e-6), ((2, 3, 4, 5), (1, 1, 1, 1)))
    assert Verdict.from_dict(found.to_dict()) == found


def test_a_verdict_says_the_reason_where_torch_made_no_error_at_all():
    """As under the pretend driver, whose kernels write nothing."""
    found = Verdict((0.0, 2e-3), (0.0, 0.0), (CHECK_SIZES[0], CHECK_SIZES[1]))
    assert not found.passed
    assert "2.00e-03 at (B, H, W, L) = (1, 8, 24, 154), allowed 0.00e+00" in str(found)


def test_an_error_does_not_hide_behind_torchs_own_at_another_size():
    assert not Verdict((4e-7,) * 4, (1e-7, 1e-7, 1e-7, 9e-7)).passed
    assert Verdict((1e-7, 1e-7, 1e-7, 9e-7), (1e-7, 1e-7, 1e-7, 9e-7)).passed


def test_code_may_have_torchs_usual_error_where_torch_is_exact_by_chance():
    """As at one pixel: the numbers are those of an output layer."""
    torchs = (4.3e-7, 2.3e-7, 4.1e-7, 1.9e-7)
    assert Verdict((4.4e-7, 2.4e-7, 4.2e-7, 3.7e-7), torchs).passed
    assert not Verdict((4.4e-7, 2.4e-7, 4.2e-7, 4.4e-7), torchs).passed


def test_one_pixel_has_too_few_numbers_for_the_usual_margin():
    """The numbers are those of a narrow VAE's attention on an Intel Xeon."""
    torchs = (8.1e-8, 8.7e-8, 1.2e-7, 1.0e-7)
    assert Verdict((8.2e-8, 8.7e-8, 1.2e-7, 1.42e-7), torchs, CHECK_SIZES).passed
    assert not Verdict((1.42e-7, 8.7e-8, 1.2e-7, 1.0e-7), torchs, CHECK_SIZES).passed
    assert not Verdict((8.2e-8, 8.7e-8, 1.2e-7, 1e-6), torchs, CHECK_SIZES).passed


def test_one_of_the_sizes_is_that_of_the_units_level():
    """On a GPU, kernels for thousands of pixels are not those for a few."""
    sizes = {unit: check_sizes(unit, torch.device("cuda"))[-1] for unit in units_of(sd1())}
    assert sizes[ResBlock(320, 320, 1280)] == (2, 64, 64, 77)
    assert sizes[SpatialTransformer(640, 768, 8, 1, linear=False)] == (2, 32, 32, 77)
    assert (2, 16, 16, 77) in check_sizes(ResBlock(1280, 1280, 1280), CPU)
    assert check_sizes(ResBlock(320, 320, 1280), CPU)[-1] == (1, 64, 64, 77)
    assert check_sizes(RES, CPU) == list(CHECK_SIZES)
    assert check_sizes(VaeAttention(512), CPU)[-1] == (1, 64, 64, 77)
    assert check_sizes(VaeAttention(128), CPU) == list(CHECK_SIZES), "else it takes minutes"

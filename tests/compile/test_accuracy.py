"""The accuracy check: right code passes, and every kind of wrong code is refused."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from lib_accel.compile.accuracy import CHECK_SIZES, Verdict, check_unit
from lib_accel.compile.units import UnitFn, UnitModule, unit_key, units_of
from lib_accel.model.specs import ResBlock, Spec

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
    found = Verdict((1e-6, 2e-6), (3e-6, 4e-6))
    assert Verdict.from_dict(found.to_dict()) == found

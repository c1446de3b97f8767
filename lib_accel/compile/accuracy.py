"""The accuracy check that a compiled unit must pass before it serves, and the inputs for it.

The error of the compiled unit against a reference of higher precision must not exceed the error of
torch's own kernels at the same dtype by more than a stated margin.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import specs
from ..model.parts.embedding import timestep_frequencies
from ..model.precision import exact_products, relative_error, wider
from ..model.random_weights import random_weight
from .units import (
    SMALLEST_SIDE,
    Size,
    UnitFn,
    UnitModule,
    activation_shapes,
    image_widths,
    level_side,
    to_unit_layout,
)

CHECK_SIZES: tuple[Size, ...] = ((2, 16, 16, 77), (1, 8, 24, 154), (3, 9, 7, 1), (1, 1, 1, 77))
"""Square, wide, odd, and the smallest possible. H and W are of the activation."""

MARGIN = 1.25
"""The error of compiled code at a size may be this many times torch's own error at that size.

Or torch's median over the sizes, where that is larger: at one pixel torch is very exact by chance.
"""

MARGIN_AT_ONE_PIXEL = 8.0
"""The same where there is one pixel alone, and so few numbers that chance decides.

Right code had up to 5 times torch's error there, in 30 draws, where a norm's groups have two
numbers, and up to 1.4 times where they have four (a CPU, float32).
"""


@dataclass(frozen=True)
class Verdict:
    """The relative L2 errors of compiled code and of torch's own kernels, one for each size."""

    compiled: tuple[float, ...]
    eager: tuple[float, ...]
    sizes: tuple[Size, ...] = ()

    @property
    def allowed(self) -> list[float]:
        """The largest error at each size with which the code may serve."""
        usual = statistics.median(self.eager) if self.eager else 0.0
        sizes = self.sizes or (None,) * len(self.eager)
        margins = [MARGIN_AT_ONE_PIXEL if s and s[:3] == (1, 1, 1) else MARGIN for s in sizes]
        return [m * max(error, usual) for m, error in zip(margins, self.eager, strict=True)]

    @property
    def passed(self) -> bool:
        """Whether the code may serve. NaN never passes."""
        pairs = zip(self.compiled, self.allowed, strict=True)
        return bool(self.compiled) and all(error <= allowed for error, allowed in pairs)

    def __str__(self) -> str:
        worst = max(range(len(self.compiled)), key=self._excess)
        where = f" at (B, H, W, L) = {self.sizes[worst]}" if self.sizes else ""
        error, allowed = self.compiled[worst], self.allowed[worst]
        return f"relative error {error:.2e}{where}, allowed {allowed:.2e}"

    def _excess(self, i: int) -> tuple[bool, bool, float]:
        """Return what orders the sizes: NaN is worst, then any error where none is allowed."""
        error, allowed = self.compiled[i], self.allowed[i]
        return error != error, error > allowed == 0, error / (allowed or 1)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return lists of numbers for JSON; the four of each size follow one another."""
        sizes = [number for size in self.sizes for number in size]
        return {"compiled": list(self.compiled), "eager": list(self.eager), "sizes": sizes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """Read what `to_dict` has made. Raises KeyError, TypeError or ValueError for all else."""
        numbers = iter(data.get("sizes", ()))
        sizes = tuple(zip(numbers, numbers, numbers, numbers, strict=True))
        return cls(tuple(data["compiled"]), tuple(data["eager"]), sizes)


def check_sizes(unit: specs.Spec, device: torch.device) -> list[Size]:
    """Return the sizes at which a unit is checked: some small ones, and that of its level.

    A CPU computes this one for one image: it takes seconds there.
    """
    small = [s for s in CHECK_SIZES if s[:3] != (1, 1, 1) or not _has_groups_of_one(unit)]
    side = level_side(unit)
    real = (1 if device.type == "cpu" else 2, side, side, 77)
    return small if side <= SMALLEST_SIDE else [*small, real]


def check_unit(
    unit: specs.Spec,
    fn: UnitFn,
    dtype: torch.dtype,
    device: torch.device,
    alone: bool,
    seed: int = 1,
) -> Verdict:
    """Compare `fn` with the layer itself at each of `check_sizes`.

    The reference is the layer in float64, or in float32 where `dtype` is narrower. `alone`: nothing
    else computes in this process, so TF32 may be switched off for the reference.
    """
    module = UnitModule(unit)
    precise = wider(dtype, device)
    compiled, eager, sizes = [], [], check_sizes(unit, device)
    with torch.no_grad():
        for i, size in enumerate(sizes):
            activations, weights = example_inputs(unit, size, dtype, device, seed + i)
            with exact_products(device) if alone else contextlib.nullcontext():
                reference = _reference(module, activations, weights, precise)
            eager.append(relative_error(module(activations, weights), reference))
            compiled.append(relative_error(fn([*activations, *weights]), reference))
    return Verdict(tuple(compiled), tuple(eager), tuple(sizes))


def _reference(
    module: UnitModule, activations: list[Tensor], weights: list[Tensor], dtype: torch.dtype
) -> Tensor:
    """Compute the unit in a wide dtype."""
    # a layer widens each weight where it uses it: there is no wide copy of all
    embeds = activations[0].ndim == 1  # in the dtype of its weights, which are few
    wide = [w.to(dtype) for w in weights] if embeds else weights
    return module([a.to(dtype) for a in activations], wide)


def _has_groups_of_one(unit: specs.Spec) -> bool:
    """Whether the unit normalises single channels: at one pixel, torch refuses that."""
    if isinstance(unit, specs.Embedding):
        return False
    if isinstance(unit, (specs.SpatialTransformer, specs.VaeAttention)):
        return unit.channels == specs.NORM_GROUPS
    return specs.NORM_GROUPS in (unit.in_channels, unit.out_channels)


def example_inputs(
    unit: specs.Spec,
    size: Size,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return random activations and weights as a `UnitFn` takes them, for `size = (B, H, W, L)`.

    They depend on `seed` alone. Weights are scaled so that activations stay near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = activation_shapes(unit, size, device)
    activations = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    module = UnitModule(unit)
    weights = [
        to_unit_layout(random_weight(name, shape, generator).to(device, dtype))
        for name, shape in zip(module.names, module.shapes(), strict=True)
    ]
    if isinstance(unit, specs.Embedding):
        activations[0] = (torch.rand(size[0], generator=generator) * 1000).to(device)
        weights[0] = timestep_frequencies(unit.model_channels, device)
    else:
        images = len(image_widths(unit, device))
        activations[:images] = [
            a.contiguous(memory_format=torch.channels_last) for a in activations[:images]
        ]
    return activations, weights

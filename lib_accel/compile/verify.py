"""Trust, but verify once: compiled code answers random inputs before it may serve.

Its error against a reference of higher precision must not exceed the error of the same layer run by torch itself at the
same dtype by more than a stated margin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..model import specs
from ..model.precision import exact_products, relative_error, wider
from .units import UnitFn, UnitModule, example_inputs

CHECK_SIZES = ((2, 16, 16, 77), (1, 8, 24, 154), (3, 9, 7, 1), (1, 1, 1, 77))
"""(B, H, W, L): square, wide, odd and the smallest there is."""

MARGIN = 1.25
"""The worst error of compiled code over all sizes may be this multiple of the worst error of torch's own kernels."""


@dataclass(frozen=True)
class Verdict:
    """Relative L2 errors, one for each of CHECK_SIZES, of the compiled code and of torch's own kernels."""

    compiled: tuple[float, ...]
    eager: tuple[float, ...]

    @property
    def passed(self) -> bool:
        return all(error <= MARGIN * max(self.eager) for error in self.compiled)  # false for NaN

    def __str__(self) -> str:
        worst = max(self.compiled, key=lambda e: (e != e, e))
        size = CHECK_SIZES[self.compiled.index(worst)]
        return f"relative error {worst:.2e} at (B, H, W, L) = {size}, allowed {MARGIN * max(self.eager):.2e}"

    def to_dict(self) -> dict[str, list[float]]:
        return {"compiled": list(self.compiled), "eager": list(self.eager)}

    @classmethod
    def from_dict(cls, data: Mapping[str, list[float]]) -> Verdict:
        return cls(tuple(data["compiled"]), tuple(data["eager"]))


def check_unit(
    layer: specs.Spec,
    fn: UnitFn,
    dtype: torch.dtype,
    device: torch.device,
    alone: bool,
    seed: int = 1,
) -> Verdict:
    """Run `fn` at every size of CHECK_SIZES that torch can run against a float64 reference (float32 where the dtype is narrower).

    `alone`: nothing else computes in this process, so that TF32 may be off while the reference is computed.
    """
    module = UnitModule(layer)
    precise = wider(dtype, device)
    compiled, eager = [], []
    with torch.no_grad():
        for i, size in enumerate(CHECK_SIZES):
            if size[:3] == (1, 1, 1) and _single_values(layer):
                continue
            activations, weights = example_inputs(layer, size, dtype, device, seed + i)
            with exact_products(device) if alone else contextlib.nullcontext():
                reference = module(
                    [a.to(precise) for a in activations], weights
                )  # each widened where it is used: no copy of all
            eager.append(relative_error(module(activations, weights), reference))
            compiled.append(relative_error(fn([*activations, *weights]), reference))
    return Verdict(tuple(compiled), tuple(eager))


def _single_values(layer: specs.Spec) -> bool:
    """One channel a group: at one pixel there is nothing to normalise, and torch refuses."""
    widths = (
        (layer.channels,)
        if isinstance(layer, specs.SpatialTransformer)
        else (layer.in_channels, layer.out_channels)
    )
    return specs.NORM_GROUPS in widths

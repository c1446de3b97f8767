"""Calls of every operation, at sizes that take different ways, and what their results must be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Draw = Callable[..., Tensor]
"""Returns random numbers of a shape, in the dtype of the case."""


@dataclass(frozen=True)
class Case:
    """A call of `operation`; `inputs` makes its arguments."""

    operation: str
    inputs: Callable[[Draw], dict[str, Any]]
    name: str

    def call(self, kernels: Any, inputs: dict[str, Any]) -> list[Tensor]:
        """Return all tensors that the operation of `kernels` returns."""
        return list(_flat(getattr(kernels, self.operation)(**inputs)))


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for each in value:
            yield from _flat(each)


def convert(value: Any, dtype: torch.dtype) -> Any:
    """Return tensors of floating point in another dtype, also in lists; all else as it is."""
    if isinstance(value, dict):
        return {key: convert(each, dtype) for key, each in value.items()}
    if isinstance(value, list):
        return [convert(each, dtype) for each in value]
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floats else value


def error(got: Tensor, expected: Tensor) -> float:
    """Return the relative error, by norms, against a result in float64."""
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def image(draw: Draw, *shape: int) -> Tensor:
    return draw(*shape).contiguous(memory_format=torch.channels_last)


def group_norm(
    shape: tuple[int, ...], skip: int = 0, groups: int = 32, silu: bool = True, offset: str = "each"
) -> Case:
    batch, channels, *size = shape

    def inputs(draw: Draw) -> dict[str, Any]:
        return {
            "x": image(draw, *shape) * 2 + 1,
            "skip": image(draw, batch, skip, *size) if skip else None,
            "weight": draw(channels + skip),
            "bias": draw(channels + skip),
            "offset": {"each": draw(batch, channels), "one": draw(channels), "": None}[offset],
            "shared": draw(channels) if offset == "each" else None,
            "groups": groups,
            "eps": 1e-5,
            "silu": silu,
        }

    return Case("group_norm", inputs, f"group_norm-{shape}-{skip}-{groups}-{silu}-{offset}")


def layer_norm(*shape: int, residual: bool = True, offset: bool = True) -> Case:
    def inputs(draw: Draw) -> dict[str, Any]:
        return {
            "x": draw(*shape) + 1,
            "residual": draw(*shape) if residual else None,
            "offset": draw(shape[-1]) if offset else None,
            "weight": draw(shape[-1]),
            "bias": draw(shape[-1]),
            "eps": 1e-5,
        }

    return Case("layer_norm", inputs, f"layer_norm-{shape}-{residual}-{offset}")


def geglu(*shape: int, offset: bool = True) -> Case:
    def inputs(draw: Draw) -> dict[str, Any]:
        return {"x": draw(*shape) * 2, "offset": draw(shape[-1]) if offset else None}

    return Case("geglu", inputs, f"geglu-{shape}-{offset}")


def add(*shape: int, residual: bool = True, offset: str = "each", to: Any = None) -> Case:
    def inputs(draw: Draw) -> dict[str, Any]:
        channels = shape[1] if len(shape) == 4 else shape[2]
        make = image if len(shape) == 4 else (lambda draw, *shape: draw(*shape))
        return {
            "x": make(draw, *shape),
            "residual": make(draw, *shape) if residual else None,
            "offset": {"each": draw(shape[0], channels), "one": draw(channels), "": None}[offset],
            **({"height": to[0], "width": to[1]} if to else {"shared": draw(channels)}),
        }

    operation = "upsample" if to else "add"
    return Case(operation, inputs, f"{operation}-{shape}-{residual}-{offset}-{to}")


def embedding(batch: int, inputs: int, width: int, adm: int, widths: tuple[int, ...]) -> Case:
    def layers(draw: Draw, *sizes: tuple[int, int]) -> Iterator[Tensor]:
        for outputs, from_ in sizes:
            yield draw(outputs, from_) / from_**0.5
            yield draw(outputs)

    def make(draw: Draw) -> dict[str, Any]:
        sizes = [(width, inputs), (width, width)]
        sizes += [(width, adm), (width, width)] if adm else []
        sizes += [(each, width) for each in widths]
        return {
            # torch's exponential is rounded otherwise than g++'s, and turns a large angle
            "timesteps": torch.arange(batch),
            "y": draw(batch, adm) if adm else None,
            "weights": list(layers(draw, *sizes)),
        }

    return Case("embedding", make, f"embedding-{batch}-{inputs}-{width}-{adm}-{widths}")


CASES = [
    group_norm((2, 320, 9, 7)),
    group_norm((1, 64, 5, 3), skip=32, offset="one"),
    group_norm((1, 320, 4, 5), skip=640, silu=False),  # a group has channels of both
    group_norm((3, 64, 1, 1), offset=""),
    group_norm((16, 32, 2, 3), groups=8),
    group_norm((2, 30, 4, 5), skip=15, groups=5),
    group_norm((1, 514, 3, 6), groups=1),  # wider than a block of threads
    group_norm((1, 128, 33, 31), offset=""),
    layer_norm(2, 7, 320),
    layer_norm(1, 3, 640, residual=False),
    layer_norm(2, 1, 1280, offset=False),
    layer_norm(1, 2, 1536),
    layer_norm(16, 1, 64, residual=False, offset=False),
    layer_norm(1, 3, 33),
    layer_norm(1, 2, 1544),  # wider than what a warp holds
    geglu(2, 7, 640),
    geglu(1, 1, 2 * 2560, offset=False),
    geglu(16, 2, 14),
    add(2, 64, 5, 3),
    add(1, 33, 4, 3, residual=False, offset="one"),
    add(2, 9, 320, offset="one"),
    add(16, 2, 24, residual=False),
    add(1, 5, 7, offset=""),
    add(1, 4, 2600, offset=""),
    add(2, 64, 3, 5, to=(6, 10)),
    add(1, 33, 7, 4, to=(5, 9), offset="one"),
    add(2, 8, 1, 1, to=(2, 3), residual=False, offset=""),
    add(1, 16, 9, 5, to=(8, 4), offset=""),
    embedding(2, 64, 256, 0, (64, 128, 40)),
    embedding(5, 32, 64, 48, (8, 320)),
    embedding(1, 10, 13, 7, (3,)),
    embedding(1, 8, 8, 0, (1,) * 49),  # more than a launch has room for
]

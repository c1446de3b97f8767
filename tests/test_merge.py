"""Merging against float64: as exact as the weight's dtype allows, always from the base."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_accel.errors import BadCheckpoint
from lib_accel.runtime.lora.batches import Merge, merge_together
from lib_accel.runtime.lora.files import Merger, random_deltas, read_lora, save_lora
from lib_accel.runtime.lora.merging import LowRank, merge

from . import tiny

SHAPES = {"linear": (48, 32), "convolution": (16, 8, 3, 3), "point": (16, 8, 1, 1)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def low_rank(
    shape: Sequence[int], rank: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    outputs, *rest = shape
    up = torch.randn(outputs, rank, *[1] * (len(rest) - 1), generator=g)
    down = torch.randn(rank, *rest, generator=g)
    return LowRank(up.to(dtype), down.to(dtype), 0.1 + 0.1 * seed)


def weight_of(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(99)).to(dtype)


def exactly(base: Tensor, terms: Sequence[LowRank]) -> Tensor:
    """In float64."""
    total = base.double()
    for t in terms:
        total = total + t.scale * (t.up.double().flatten(1) @ t.down.double().flatten(1)).view(
            base.shape
        )
    return total


def one_by_one(base: Tensor, terms: Sequence[LowRank]) -> Tensor:
    """As it is usually done: in the weight's own precision, rounded after each network."""
    total = base.clone()
    for t in terms:
        product = (
            t.up.flatten(1).float() @ t.down.flatten(1).float()
        )  # as CPUs sum; torch 2.1 has no narrower product there
        total += product.view(base.shape).to(base.dtype) * t.scale
    return total


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("count", [1, 3, 10])
def test_error_is_that_of_one_rounding(shape: tuple[int, ...], dtype: torch.dtype, count: int):
    base, terms = (
        weight_of(shape, dtype),
        [low_rank(shape, seed=i, dtype=dtype) for i in range(count)],
    )
    weight = base.clone()
    assert merge(weight, base, terms) is None
    expected = exactly(base, terms)
    assert (
        error(weight, expected) <= 0.6 * torch.finfo(dtype).eps
    )  # a rounding is at most eps / 2 of each element
    assert error(weight, expected) <= error(one_by_one(base, terms), expected) * 1.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layers_merged_together_are_as_exact(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
):
    """The way of a GPU, on a CPU."""
    bases = [weight_of(shape, dtype) * k for k in (1, 2, 3)]
    terms = [[low_rank(shape, 3, seed, dtype) for seed in range(k, k + 4)] for k in (1, 2, 3)]
    terms[1][2] = low_rank(shape, 3, 9)  # in float32
    weights = [torch.full_like(base, torch.nan) for base in bases]
    if len(shape) == 4:
        weights = [w.contiguous(memory_format=layout) for w in weights]
    merges = [Merge(*one) for one in zip(weights, bases, terms, strict=True)]
    strides = [w.stride() for w in weights]
    merge_together(merges[1:])
    merge_together(merges[:1])
    for weight, base, own in zip(weights, bases, terms, strict=True):
        assert error(weight, exactly(base, own)) <= 0.6 * torch.finfo(dtype).eps
    assert [w.stride() for w in weights] == strides


def test_no_terms_give_the_base_to_the_bit():
    base = weight_of((16, 8))
    weight = merged = torch.full_like(base, torch.nan)
    merge(weight, base, [])
    assert torch.equal(merged, base)


def test_what_reads_the_weight_sees_what_came_before_it():
    base = weight_of((16, 8))
    first, last = low_rank((16, 8), seed=1), low_rank((16, 8), seed=2)
    seen = []

    def double(weight: Tensor) -> tuple[Tensor, Tensor | None]:
        seen.append(weight.clone())
        return weight, torch.ones(16)

    weight = base.clone()
    bias = merge(weight, base, [first, double, double, last])
    expected = exactly(4 * exactly(base, [first]), [last])
    assert error(weight, expected) < 1e-6
    assert error(seen[0], exactly(base, [first])) < 1e-6
    assert error(seen[1], 2 * exactly(base, [first])) < 1e-6
    assert bias is not None
    assert bias.equal(torch.full((16,), 2.0))


def test_what_fails_leaves_the_weight_alone():
    def fails(_: Tensor) -> Any:
        raise RuntimeError("out of memory")

    base = weight_of((16, 8))
    weight = before = base + 1
    for terms in ([low_rank((16, 8)), fails], [fails, low_rank((16, 8))], [low_rank((16, 9))]):
        kept = before.clone()
        with pytest.raises(RuntimeError):
            merge(weight, base, terms)
        assert torch.equal(weight, kept)


def test_autocast_around_it_changes_nothing():
    """The WebUI samples under autocast, which makes float32 products float16 ones."""
    base, terms = weight_of((48, 32)), [low_rank((48, 32))]
    plain, under = base.clone(), base.clone()
    merge(plain, base, terms)
    with torch.autocast("cpu", torch.bfloat16):
        merge(under, base, terms)
    assert torch.equal(plain, under)


def test_a_lora_that_does_not_fit_half_way_is_taken_out_again():
    donor = tiny.donor()
    base = {name: p.detach().clone() for name, p in donor.named_parameters()}
    deltas = random_deltas(tiny.TINY, rank=2, seed=0)
    last = list(deltas)[-1]
    merger = Merger(dict(donor.named_parameters()))
    with pytest.raises(RuntimeError, match="do not fit"):
        merger.set([({**deltas, last: low_rank((3, 5))}, 1.0)])
    merger.set([])
    assert all(torch.equal(p, base[name]) for name, p in donor.named_parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"dora_scale": torch.ones(1)},
        {"lora_mid.weight": torch.ones(2, 2)},
        {"lora_up.weight": torch.ones(9, 2)},
    ],
)
def test_files_that_are_no_plain_lora_of_this_unet_are_refused(
    tmp_path: Path, change: dict[str, Tensor]
):
    path = tmp_path / "lora.safetensors"
    save_lora(path, tiny.TINY, random_deltas(tiny.TINY, rank=2, seed=0))
    assert read_lora(path, tiny.TINY)
    tensors = load_file(path)
    group = next(iter(tensors)).partition(".")[0]
    save_file({**tensors, **{f"{group}.{name}": t for name, t in change.items()}}, path)
    with pytest.raises(BadCheckpoint, match=group):
        read_lora(path, tiny.TINY)


def test_a_thousand_random_changes_do_not_drift():
    donor = tiny.donor()
    parameters = dict(donor.named_parameters())
    base = {name: p.detach().clone() for name, p in parameters.items()}
    loras = [random_deltas(tiny.TINY, rank=2, seed=seed) for seed in range(4)]
    merger, r = Merger(parameters), random.Random(5)
    seen: dict[Any, dict[str, Tensor]] = {}
    for _ in range(1000):
        chosen = tuple(
            (i, r.choice([-1e6, -0.5, 0.0, 0.7, 1.0]))
            for i in sorted(r.sample(range(4), r.randint(0, 2)))
        )
        merger.set([(loras[i], strength) for i, strength in chosen])
        now = {name: p.detach().clone() for name, p in parameters.items()}
        if chosen in seen:
            assert all(torch.equal(now[name], seen[chosen][name]) for name in now), chosen
        seen[chosen] = now
        if not chosen:
            assert all(torch.equal(now[name], base[name]) for name in now)
    merger.set([])
    assert all(torch.equal(p, base[name]) for name, p in parameters.items())
    assert len(seen) > 30

"""CUDA graphs: a replay equals the plain call, and no recording outlives the weights it reads.

Without a GPU only what comes before a recording can be shown; the rest is skipped, by name.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.config import Config
from lib_accel.model.unet import UNet
from lib_accel.runtime.graphs import GraphCache

from . import tiny
from .tiny import MIB, Engine

gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="NOT CHECKED: recording CUDA graphs needs a GPU, and there is none",
)


class Calls:
    """Counts the plain calls of a function."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.count += 1
        return x * 2 if y is None else x * 2 + y


# -- without a GPU too


def test_the_first_call_of_a_shape_runs_plainly():
    calls = Calls()
    cache = GraphCache(calls, MIB)
    for x in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float64)):
        assert torch.equal(cache(x), x * 2)
    assert torch.equal(cache(torch.ones(2, 3), torch.ones(2, 3)), torch.full((2, 3), 3.0))
    assert (calls.count, cache.captures, cache.bytes, cache.refused) == (4, 0, 0, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the recording succeeds")
def test_where_recording_fails_the_plain_call_goes_on():
    """Here recording fails because there is no GPU; on one it would fail without free memory."""
    calls = Calls()
    cache = GraphCache(calls, MIB)
    for _ in range(4):
        assert torch.equal(cache(torch.ones(2)), torch.full((2,), 2.0))
    assert (calls.count, cache.captures) == (4, 0)
    assert str(cache.refused).startswith("CUDA graphs are off: recording failed: ")
    assert len(str(cache.refused)) > 50
    refused = cache.refused
    cache(torch.ones(3))
    cache(torch.ones(3))
    assert cache.refused == refused, "it is not tried again"


def test_no_graphs_on_a_cpu(tiny_store: Path):
    engine = tiny.ready(tiny_store)
    for _ in range(3):
        tiny.served(engine, tiny.inputs())
    assert engine.graphs is None


# -- with one


def on_gpu(**options: object) -> Engine:
    """The clean UNet, without a compiler, through graphs."""
    engine = Engine(tiny.donor().cuda(), Config(backend="eager", **options))  # type: ignore[arg-type]
    engine.prepare()
    return engine


def given(**size: int) -> tuple[Tensor, Tensor, Tensor]:
    x, timesteps, context, _ = tiny.inputs(**size)
    return x.cuda(), timesteps.cuda(), context.cuda()


@torch.no_grad()
def plain(engine: Engine, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return UNet(engine.architecture).adopt(dict(engine.network.named_parameters()))(*inputs)


def same(a: Tensor, b: Tensor) -> bool:
    """But for the kernels a library picks while it is recorded."""
    return tiny.error(a, b.double()) < 1e-3


def captures(engine: Engine) -> int:
    return engine.graphs.captures if engine.graphs else 0


SIZES = (
    {},
    {"height": 27, "width": 33},
    {"batch": 1},
    {"length": 154},
    {"height": 8, "width": 8, "batch": 3},
)


@gpu
def test_replay_is_the_plain_call():
    engine = on_gpu()
    for size in SIZES:
        for seed in range(3):
            inputs = given(**size, seed=seed)
            assert same(engine.compute(*inputs), plain(engine, inputs))
    assert captures(engine) == len(SIZES)


@gpu
def test_interleaved_shapes_do_not_disturb_each_other():
    """They share one memory pool: each answer stays what it was while the others are computed."""
    engine = on_gpu()
    inputs = [given(**size, seed=i) for i, size in enumerate(SIZES)]
    expected = [plain(engine, each) for each in inputs]
    for _ in range(4):
        got = [engine.compute(*each) for each in inputs]
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    assert captures(engine) == len(SIZES)


@gpu
def test_weights_changed_in_place_are_seen_without_a_new_recording():
    engine, inputs = on_gpu(), given()
    before = [engine.compute(*inputs) for _ in range(3)][-1]
    with torch.no_grad():
        engine.network.get_parameter("out.2.weight").mul_(2)
    after = engine.compute(*inputs)
    assert same(after, plain(engine, inputs))
    assert not same(after, before)
    assert captures(engine) == 1


@gpu
def test_moved_weights_are_recorded_again():
    engine, inputs = on_gpu(), given()
    for _ in range(3):
        engine.compute(*inputs)
    engine.network.get_submodule("out.2").weight = nn.Parameter(
        engine.network.get_parameter("out.2.weight").data * 2
    )
    for _ in range(3):
        assert same(engine.compute(*inputs), plain(engine, inputs))
    assert captures(engine) == 2


@gpu
def test_above_the_cap_all_but_the_newest_go():
    x = [
        torch.randn(n, 1024, 1024, device="cuda") for n in (8, 9, 10)
    ]  # 32, 36 and 40 MiB; a recording counts twice that
    cache = GraphCache(lambda t: t * 2, 150 * MIB)
    for t in (x[0], x[0], x[1], x[1], x[0], x[2], x[2]):
        assert torch.equal(cache(t), t * 2)
    assert cache.captures == 3
    assert 0 < cache.bytes <= 150 * MIB
    cache(x[2])
    assert cache.captures == 3, "the newest stays"
    for _ in range(2):
        assert torch.equal(cache(x[0]), x[0] * 2)
    assert cache.captures == 4, "the others went"


@gpu
def test_a_replay_that_differs_never_serves():
    calls: list[int] = []
    cache = GraphCache(
        lambda t: (calls.append(1), t * len(calls))[1], MIB
    )  # the factor of the first call is recorded
    x = torch.ones(4, device="cuda")
    for _ in range(4):
        cache(x)
    assert "a replay differs from the plain call" in str(cache.refused)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT CHECKED: needs two GPUs")
def test_not_on_the_current_device():
    cache = GraphCache(lambda t: t * 2, MIB)
    for n in range(4):
        x = torch.full((4,), float(n + 1), device="cuda:1")
        assert torch.equal(cache(x), x * 2)
    assert (cache.captures, cache.refused) == (1, None)


@gpu
def test_a_shape_above_the_cap_runs_plainly():
    cache = GraphCache(lambda t: t * 2, MIB)
    x = torch.randn(8, 1024, 1024, device="cuda")
    for _ in range(3):
        assert torch.equal(cache(x), x * 2)
    assert cache.bytes == 0
    assert "no CUDA graph for this size: it needs" in str(cache.refused)
    for _ in range(3):
        assert torch.equal(cache(x[:1, :8]), x[:1, :8] * 2)
    assert cache.captures == 1, "smaller ones are recorded as before"


@gpu
def test_what_cannot_be_recorded_runs_plainly():
    cache = GraphCache(lambda t: t * t.sum().item(), 100 * MIB)
    x = torch.ones(4, device="cuda")
    for _ in range(3):
        assert torch.equal(cache(x), x * 4)
    assert "recording failed" in str(cache.refused)
    stream = torch.cuda.current_stream()
    assert stream == torch.cuda.default_stream(), "torch leaves the one it recorded on"
    torch.cuda.empty_cache()
    torch.randn(4, device="cuda")
    other = GraphCache(lambda t: t * 2, 100 * MIB)
    for _ in range(3):
        assert torch.equal(other(x), x * 2)
    assert other.captures == 1

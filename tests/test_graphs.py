"""CUDA graphs: a replay equals the plain call, and no recording outlives the weights it reads.

Without a GPU only what comes before a recording can be shown; the rest is skipped, by name.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.compile.machine import RESERVE
from lib_accel.config import Config
from lib_accel.model.unet import UNet
from lib_accel.runtime.graphs.cache import GraphCache
from lib_accel.runtime.graphs.policy import PAYS_AFTER, Policy

from . import tiny
from .tiny import MIB, Engine

gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="NOT CHECKED: recording CUDA graphs needs a GPU, and there is none",
)


# -- what is recorded: without a GPU too


def policy(max_bytes: int = 100 * MIB, launch_s: float = 1.0) -> Policy:
    """Return one that knows a shape "a", of 40 MiB, whose call takes 1 s on the GPU."""
    made = Policy(max_bytes)
    made.measured("a", launch_s, 1.0)
    made.took("a", 40 * MIB)
    return made


def live(made: Policy, calls: int) -> None:
    """Let recordings serve `calls` calls, and then be given up."""
    for _ in range(calls):
        made.count()
    made.given_up(any_recorded=True)


def test_only_calls_that_their_launches_bound_are_recorded():
    assert policy(launch_s=0.9).pays("a")
    assert not policy(launch_s=0.3).pays("a"), "the GPU would be as busy with a recording"
    assert not policy().pays("b"), "it was not measured"
    made = policy()
    made.forget_times()
    assert not made.is_measured("a"), "other code has other launches"


def test_recordings_that_never_live_long_are_made_no_more_until_weights_stay():
    """Under --medvram, weights move at every image."""
    made = policy()
    live(made, 20)
    assert made.pays("a"), "a model may move once"
    live(made, 20)
    assert not made.pays("a")
    for _ in range(PAYS_AFTER):
        made.count()
    assert made.pays("a"), "now they have stayed"
    live(made, PAYS_AFTER)
    live(made, 20)
    assert made.pays("a")


def test_a_recording_leaves_video_memory_free():
    made = policy()
    assert made.no_room("a", 0, 0, RESERVE + 41 * MIB) is None
    why = made.no_room("a", 0, 0, RESERVE + 39 * MIB)
    assert why == (
        "no CUDA graph for this size: it needs 40 MiB and would leave less than 1024 MiB of video "
        "memory free"
    )
    assert made.no_room("new", 50 * MIB, 0, RESERVE + 49 * MIB), "its size is estimated"


def test_a_recording_that_ran_out_of_memory_is_tried_again_with_twice_the_room():
    made = policy()
    made.ran_out("a", 0)
    assert made.no_room("a", 0, 0, RESERVE + 79 * MIB)
    assert made.no_room("a", 0, 0, RESERVE + 81 * MIB) is None
    made.ran_out("a", 0)
    assert made.no_room("a", 0, 0, RESERVE + 101 * MIB) is None, "never more than the cap"


def test_a_shape_displaces_others_only_where_they_are_not_in_use():
    made = policy()
    assert not made.exceeds("a", 60 * MIB)
    assert made.exceeds("a", 61 * MIB)
    why = made.no_room("a", 0, 61 * MIB, float("inf"))
    assert why == (
        "no CUDA graph for this size: it needs 40 MiB beside 61 MiB for sizes in use, "
        "the cap is 100 MiB"
    )
    assert made.no_room("a", 0, 0, float("inf")) is None


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
    for t in x * 4:
        assert torch.equal(cache(t), t * 2)
        torch.cuda.synchronize()
    assert cache.captures == 3
    assert cache.bytes == 0, "the third displaced the others once, and did not fit beside them"
    for t in (x[0], x[0], x[2], x[2]):
        assert torch.equal(cache(t), t * 2)
    assert 0 < cache.bytes <= 150 * MIB
    assert "for sizes in use" in str(cache.refused)
    for _ in range(PAYS_AFTER + 2):
        assert torch.equal(cache(x[2]), x[2] * 2)
    assert cache.refused is None, "the others are in use no more"


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

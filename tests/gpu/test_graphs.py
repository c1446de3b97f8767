"""Recording and replaying where memory is short or the driver breaks a recording off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.compile.machine import RESERVE, free_memory
from lib_accel.host.unet.comparison import both_ways
from lib_accel.model.presets import sd1, sdxl
from lib_accel.runtime.graphs.cache import GraphCache
from lib_accel.runtime.graphs.memory import KeptMemory, attention_bytes

from .. import tiny

CARD = torch.device("cuda:0")
GIB = 2**30
CALLS = 5
"""Enough for a shape to be met, measured and recorded."""


class Layer:
    """A function of one product, which can be given faults while it is recorded."""

    def __init__(self) -> None:
        self.weight = torch.zeros(64, 64, device=CARD)
        self.wanted_bytes = 0
        self.recordable = True

    def __call__(self, x: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.empty(self.wanted_bytes, dtype=torch.uint8, device=CARD)
            if not self.recordable:
                raise RuntimeError("operation not permitted when stream is capturing")
        return x @ self.weight


def call(cache: GraphCache, rows: int = 8) -> None:
    x = torch.zeros(rows, 64, device=CARD)
    for _ in range(CALLS):
        assert cache(x).shape == (rows, 64)


def usable() -> bool:
    """Return whether torch works as before: its cache, its generator, its current stream."""
    torch.cuda.empty_cache()
    torch.randn(3, device=CARD)
    return torch.cuda.current_stream() == torch.cuda.default_stream()


def test_a_shape_is_recorded_once():
    cache = GraphCache(Layer(), GIB)
    call(cache)
    call(cache)
    assert (cache.captures, cache.refused) == (1, None)
    assert usable()


def test_only_a_call_that_runs_as_the_next_ones_do_is_settled():
    """What a step takes is measured by none that makes or measures a recording."""
    cache, x = GraphCache(Layer(), GIB), torch.zeros(8, 64, device=CARD)
    settled = []
    while not cache.captures:
        cache(x)
        settled.append(cache.settled)
        torch.cuda.synchronize()
    assert not any(settled)
    cache(x)
    assert cache.settled
    cache.clear()
    cache(x)
    assert not cache.settled
    cache.refuse("a test")
    cache(x)
    cache(x)
    assert cache.settled


def test_both_ways_of_a_step_are_timed_by_events():
    x = torch.zeros(8, 64, device=CARD)
    outcome = both_ways(lambda: x @ x.T, lambda: x @ x.T, CARD)
    assert outcome.problem is None
    assert 0 <= outcome.theirs_s < 60
    assert 0 <= outcome.ours_s < 60
    out = torch.cuda.OutOfMemoryError("no room")

    def fails() -> Tensor:
        raise out

    assert both_ways(fails, lambda: x, CARD).problem == "no room"


def test_a_recording_that_runs_out_of_memory_is_made_when_there_is_room():
    layer = Layer()
    cache = GraphCache(layer, GIB)
    layer.wanted_bytes = 2**45
    call(cache)
    assert (cache.captures, cache.refused) == (0, None)
    assert usable()
    layer.wanted_bytes = 0
    call(cache)
    assert cache.captures == 1


def test_what_cannot_be_recorded_ends_recordings_and_nothing_else():
    layer = Layer()
    layer.recordable = False
    cache = GraphCache(layer, GIB)
    call(cache)
    assert cache.refused == (
        "CUDA graphs are off: recording failed: operation not permitted when stream is capturing"
    )
    assert usable()
    other = GraphCache(Layer(), GIB)
    call(other)
    assert other.captures == 1


def test_a_recording_that_the_driver_breaks_off_leaves_the_generator_usable(
    monkeypatch: pytest.MonkeyPatch,
):
    """Without a recording that succeeds after it, torch.randn raises."""
    cache = GraphCache(Layer(), GIB)
    monkeypatch.setenv("PRETEND_FAIL", "capture")
    call(cache)
    assert "recording was broken off" in str(cache.refused)
    assert usable()


def test_a_full_card_is_left_alone():
    """Where less than the reserve would stay free, nothing is recorded; it is later."""
    filled = torch.empty(int(free_memory(CARD)) - RESERVE, dtype=torch.uint8, device=CARD)
    cache = GraphCache(Layer(), GIB)
    call(cache)
    assert cache.captures == 0
    assert "would leave less than 1024 MiB of video memory free" in str(cache.refused)
    del filled
    torch.cuda.empty_cache()  # else what libraries keep would lie in it, for good
    call(cache)
    assert (cache.captures, cache.refused) == (1, None)


def test_graphs_are_given_up_first_and_what_else_is_kept_only_where_that_is_not_enough():
    cache = GraphCache(Layer(), GIB)
    call(cache)
    memory, kept = KeptMemory(CARD, tiny.TINY, cache), [True]
    memory.add(lambda: bool(kept) and kept.pop())
    memory.make_room(0)
    assert (cache.bytes > 0, kept) == (True, [True]), "there is room"
    free = free_memory(CARD) - RESERVE
    memory.make_room(free - cache.bytes // 2)
    assert (cache.bytes, kept) == (0, [True])
    memory.make_room(free + 2**20)
    assert kept == []


def test_what_the_models_own_attention_takes_is_known():
    """At most three times the weights of eight heads: SD1 at 512x512, two images, 16 bits."""
    x = torch.empty(2, 4, 64, 64, dtype=torch.float16)
    assert attention_bytes(sd1(), x) == 3 * 2 * 8 * 4096**2 * 2
    assert attention_bytes(sdxl(), x) == 3 * 2 * 10 * 1024**2 * 2, "it has none at full size"

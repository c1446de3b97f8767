"""Jobs: progress, cancelling, and what `result` raises."""

from __future__ import annotations

import threading
import time

import pytest

from lib_accel.compile import jobs
from lib_accel.compile.jobs import TRUSTED_S, CompiledUnits, Job, Parts, Turns
from lib_accel.compile.units import units_of
from lib_accel.errors import CompileFailed, NoRoom

from .. import tiny

PATIENCE_S = 60.0


class Held(Job):
    """Has `parts`, waits to be let go, and then ends with `error` or with no units."""

    def __init__(self, parts: Parts | None = None, error: Exception | None = None):
        super().__init__("test", tiny.target())
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.given, self.error = parts, error

    def work(self) -> CompiledUnits:
        self.parts = self.given
        self.report("working")
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        self.report("ending")
        if self.error is not None:
            raise self.error
        self.compiled += 3
        return {}


def begun(job: Held) -> Held:
    job.start()
    assert job.begun.wait(PATIENCE_S)
    return job


def ended(job: Held) -> Held:
    begun(job).go_on.set()
    assert job.wait(PATIENCE_S)
    return job


def test_progress_shows_the_stage_and_the_end():
    job = begun(Held())
    progress = job.progress()
    assert (job.done, progress.stage) == (False, "working")
    assert (progress.fraction, progress.part, progress.parts, progress.remaining_s) == (None,) * 4
    assert not job.wait(0.01)
    job.go_on.set()
    assert job.result() == {}
    progress = job.progress()
    assert (job.done, progress.stage, progress.fraction) == (True, "done", 1.0)
    time.sleep(0.01)
    assert job.progress().elapsed_s == progress.elapsed_s


class Clock:
    """Stands in the place of `time` in jobs.py."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(jobs, "time", clock)
    return clock


SLOW, OTHER, FAST = units_of(tiny.TINY)[:3]


def test_a_cancelled_job_promises_nothing_while_it_ends(clock: Clock):
    job = begun(Held(Parts({SLOW: 60.0})))
    assert job.progress().remaining_s
    job.cancel()
    progress = job.progress()
    assert (progress.stage, progress.parts, progress.remaining_s) == ("cancelling", None, None)
    job.go_on.set()
    assert job.wait(PATIENCE_S)
    assert job.progress().stage == "failed"


def test_the_longest_parts_come_first(clock: Clock):
    assert Parts({FAST: 1.0, SLOW: 9.0, OTHER: 3.0}).longest_first == [SLOW, OTHER, FAST]


def test_progress_moves_while_one_part_is_compiled(clock: Clock):
    """It names the part, and says how long the rest will take, from the first second."""
    parts = Parts({SLOW: 60.0, FAST: 20.0, OTHER: 20.0})
    parts.begin(SLOW)
    seen = []
    for clock.now in (0.0, 3.0, 30.0, 50.0, 100.0, 200.0):
        p = parts.progress("compiling", clock.now)
        assert (p.part, p.parts) == (1, 3)
        assert p.fraction is not None
        seen.append((p.remaining_s, round(p.fraction, 2)))
    assert seen[:4] == [(100.0, 0.0), (97.0, 0.03), (70.0, 0.3), (50.0, 0.5)]
    late = [pytest.approx(0.1 * s + 40 * (TRUSTED_S + s) / (TRUSTED_S + 60)) for s in (100, 200)]
    assert [remaining for remaining, _ in seen[4:]] == late, "the others will be late as well"
    assert [fraction for _, fraction in seen[4:]] == [0.6, 0.62]


def test_the_pace_of_finished_parts_corrects_the_estimate(clock: Clock):
    parts = Parts({SLOW: 60.0, FAST: 60.0, OTHER: 60.0})
    parts.begin(SLOW)
    clock.now = 120.0
    parts.finish(SLOW, 120.0)
    slower = (TRUSTED_S + 120) / (TRUSTED_S + 60)
    p = parts.progress("compiling", clock.now)
    assert (p.part, p.remaining_s) == (2, pytest.approx(2 * 60 * slower))


def test_workers_share_the_parts_and_the_longest_one_decides(clock: Clock):
    parts = Parts({SLOW: 60.0, FAST: 10.0, OTHER: 10.0}, workers=2)
    for unit in (SLOW, FAST):
        parts.begin(unit, more_s=5.0)
    assert parts.progress("compiling", 0.0).remaining_s == 65.0
    clock.now = 15.0
    parts.finish(FAST)  # another process has stored it: that says nothing about the pace
    p = parts.progress("compiling", clock.now)
    assert (p.part, p.remaining_s) == (2, 50.0)
    parts.finish(SLOW)
    parts.finish(OTHER)
    p = parts.progress("compiling", clock.now)
    assert (p.part, p.parts, p.fraction, p.remaining_s) == (3, 3, 1.0, 0.0)


def test_the_fraction_never_falls(clock: Clock):
    parts = Parts({SLOW: 10.0, FAST: 10.0})
    parts.begin(SLOW)
    clock.now = 9.0
    before = parts.progress("compiling", 9.0).fraction
    clock.now = 90.0
    parts.finish(SLOW, 90.0)
    assert parts.progress("compiling", 90.0).fraction >= before


def test_the_api_shows_parts_and_remaining_seconds(clock: Clock):
    job = begun(Held(Parts({SLOW: 61.26, FAST: 20.0})))
    clock.now = 3.0
    assert job.progress().to_dict() == {
        "stage": "working",
        "elapsed_s": 3.0,
        "fraction": 0.0356,
        "part": 1,
        "parts": 2,
        "remaining_s": 81.3,
    }
    job.go_on.set()


def test_a_cancelled_job_raises():
    job = begun(Held())
    job.cancel()
    job.go_on.set()
    with pytest.raises(CompileFailed, match=r"^cancelled$"):
        job.result()
    assert (job.cancelled, job.progress().stage) == (True, "failed")


def test_the_error_of_the_work_is_raised_as_it_is():
    error = NoRoom("the disk is full")
    with pytest.raises(NoRoom) as raised:
        ended(Held(error=error)).result()
    assert raised.value is error


def test_an_unexpected_error_is_named_and_kept_as_the_cause():
    error = KeyError("x")
    with pytest.raises(CompileFailed, match="unexpected KeyError: 'x'") as raised:
        ended(Held(error=error)).result()
    assert raised.value.__cause__ is error


def test_units_are_counted_once_by_those_who_share_a_job():
    job = ended(Held())
    assert [job.take_count(), job.take_count()] == [3, 0]


def test_turns_come_in_the_order_in_which_they_are_asked_for():
    turns, done = Turns(), []
    asked, may_end = threading.Event(), threading.Event()

    def work(name: str) -> None:
        with turns.turn(asked.set):
            done.append(name)
            may_end.wait(60)

    threads = []
    for name in "abc":
        asked.clear()
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        if name != "a":
            assert asked.wait(60), "it waits"
    assert done == ["a"]
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert done == ["a", "b", "c"]


def test_who_does_not_wait_any_longer_leaves_the_turn_to_the_next():
    turns = Turns()
    with turns.turn(int), pytest.raises(KeyError), turns.turn({}.popitem):
        pass
    with turns.turn(int):
        pass

"""Jobs: progress, cancelling, and what `result` raises."""

from __future__ import annotations

import threading
import time

import pytest

from lib_accel.compile import jobs
from lib_accel.compile.jobs import CompiledUnits, Job
from lib_accel.errors import CompileFailed, NoRoom

from .. import tiny

PATIENCE_S = 60.0


class Held(Job):
    """Reports `fraction`, waits to be let go, and then ends with `error` or with no units."""

    def __init__(self, fraction: float | None = None, error: Exception | None = None):
        super().__init__("test", tiny.target())
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.fraction, self.error = fraction, error

    def work(self) -> CompiledUnits:
        self.report("working", self.fraction)
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        self.report("ending", self.fraction)
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
    job = begun(Held(fraction=0.5))
    progress = job.progress()
    assert (job.done, progress.stage, progress.fraction) == (False, "working", 0.5)
    assert not job.wait(0.01)
    job.go_on.set()
    assert job.result() == {}
    progress = job.progress()
    assert (job.done, progress.stage, progress.fraction) == (True, "done", 1.0)
    time.sleep(0.01)
    assert job.progress().elapsed_s == progress.elapsed_s


def test_the_remaining_time_is_estimated_from_the_pace(monkeypatch: pytest.MonkeyPatch):
    job = begun(Held(fraction=0.25))
    assert job.progress().remaining_s is None, "too early to tell"
    monkeypatch.setattr(jobs, "ESTIMATE_AFTER_S", 0.0)
    progress = job.progress()
    assert progress.remaining_s == pytest.approx(3 * progress.elapsed_s)
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

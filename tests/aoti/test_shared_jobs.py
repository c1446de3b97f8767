"""Compile jobs that several models or processes want, and jobs that are stopped."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch

from lib_accel.compile.backends.aoti.backend import Aoti
from lib_accel.compile.jobs import Job
from lib_accel.compile.session import Session
from lib_accel.compile.units import units_of
from lib_accel.errors import CompileFailed
from lib_accel.store import ArtifactStore

from .. import tiny
from .kit import OUTPUT, assert_nothing_left, await_compiler, start_process, started
from .processes import PATIENCE_S, until, workers

pytestmark = pytest.mark.slow


def test_two_processes_that_want_the_same_compile_it_once(
    root: Path, temp: Path, store: ArtifactStore
):
    with start_process(root, store, temp) as one, start_process(root, store, temp) as other:
        lines = [
            process.communicate(timeout=2 * PATIENCE_S)[0].splitlines() for process in (one, other)
        ]
    results = [json.loads(each[-1]) for each in lines]
    assert sorted(each["compiled"] for each in results) == [0, 1]
    assert [each["units"] for each in results] == [1, 1]
    assert any("another process is compiling this" in each for each in lines)
    assert [entry.key for entry in store.list()] == [tiny.target([OUTPUT]).keys[OUTPUT]]


def test_models_share_the_job_of_their_architecture_and_others_wait(
    temp: Path, all_but_one: ArtifactStore
):
    """Units that one architecture has compiled are not compiled again for the next one."""
    backend, store = Aoti(), all_but_one
    first, other = (tiny.target(units_of(a)) for a in (tiny.TINY, tiny.RELATIVE))
    store.discard(first.keys[units_of(tiny.TINY)[0]], "a test wants two units compiled")
    job = backend.make(first, store)
    until("the first to compile", lambda: workers(temp))  # whoever comes first has the turn
    waiting = backend.make(other, store)
    assert isinstance(job, Job)
    assert isinstance(waiting, Job)
    assert backend.make(first, store) is job
    until(
        "the other to wait",
        lambda: waiting.progress().stage == "waiting until other code is compiled",
    )
    backend.cancel()
    for each in (job, waiting):
        with pytest.raises(CompileFailed, match="cancelled"):
            each.result()
    assert_nothing_left(temp)
    again = backend.make(first, store)
    assert again is not job
    backend.cancel()


def test_a_cancelled_job_leaves_nothing(temp: Path, store: ArtifactStore):
    job = started(store, units_of(tiny.TINY))
    until("the workers", lambda: len(workers(temp)) == job.workers)
    job.cancel()
    assert job.wait(20)
    with pytest.raises(CompileFailed, match="cancelled"):
        job.result()
    assert_nothing_left(temp)
    assert store.list() == []


def test_images_go_on_after_a_killed_worker_and_nothing_is_tried_again(
    temp: Path, all_but_one: ArtifactStore
):
    """The reason names the unit; it holds for the next model of the architecture too."""
    session, store = Session(), all_but_one
    engine, given = tiny.engine(store.root, backend="aoti", session=session), tiny.inputs()
    expected = tiny.clean(engine, *given)
    with contextlib.closing(engine):
        engine.prepare()
        assert engine.job is not None
        await_compiler(temp)
        assert torch.equal(engine.compute(*given), expected)
        workers(temp)[0].kill()
        assert engine.job.wait(PATIENCE_S)
        assert_nothing_left(temp)
        assert engine.take_up()
        status = engine.status
        assert (status.state, status.backend, status.counters.compiles) == ("fallback", "eager", 0)
        reason = r"the compiler process ended \(exit -9\) at Output 64 -> 4"
        assert re.search(reason, str(status.reason))
        assert torch.equal(engine.compute(*given), expected)
        engine.prepare()
        assert engine.job is None, "it does not try again and again"
    another = tiny.engine(store.root, unet=tiny.donor(seed=2), backend="aoti", session=session)
    another.prepare()
    assert another.job is None, "nor for the next model: base and refiner take turns"
    assert another.status.reason == status.reason
    session.forget_failures()
    with contextlib.closing(tiny.engine(store.root, backend="aoti", session=session)) as again:
        again.prepare()
        assert again.job is not None


def test_compiling_goes_on_for_a_model_that_was_thrown_away(all_but_one: ArtifactStore):
    """As when base and refiner take turns: the next model of the architecture finds it at work."""
    session, root = Session(), all_but_one.root
    first = tiny.engine(root, session=session)
    first.prepare()
    job = first.job
    assert job is not None
    first.close(keep_compiling=True)
    second = tiny.engine(root, unet=tiny.donor(seed=5), session=session)
    with contextlib.closing(second):
        second.prepare()
        assert second.job is job
        assert job.wait(PATIENCE_S)
        assert second.take_up()
        assert (second.status.state, second.counters.compiles) == ("ready", 1), second.status.reason


def test_a_job_that_another_model_cancelled_is_begun_again(all_but_one: ArtifactStore):
    session = Session()
    engines = [
        tiny.engine(all_but_one.root, unet=tiny.donor(seed=seed), session=session)
        for seed in (1, 2)
    ]
    for engine in engines:
        engine.prepare()
    jobs = [engine.job for engine in engines]
    assert jobs[0] is not None
    assert jobs[0] is jobs[1]
    engines[0].close()
    assert jobs[0].wait(60)
    assert engines[1].take_up()
    assert engines[1].status.state == "compiling"
    assert engines[1].job is not jobs[0]
    engines[1].close()


def test_an_engine_that_is_closed_ends_its_job(temp: Path, all_but_one: ArtifactStore):
    engine, given = tiny.engine(all_but_one.root, backend="aoti"), tiny.inputs()
    expected = tiny.clean(engine, *given)
    engine.prepare()
    job = engine.job
    assert job is not None
    until("the workers", lambda: workers(temp))
    engine.close()
    assert engine.job is None
    assert job.wait(20)
    assert not engine.take_up()
    assert_nothing_left(temp)
    assert torch.equal(engine.compute(*given), expected)


def test_weights_of_another_dtype_end_the_job_and_begin_another(
    temp: Path, all_but_one: ArtifactStore
):
    engine, given = tiny.engine(all_but_one.root, backend="aoti"), tiny.inputs()
    with contextlib.closing(engine):
        engine.prepare()
        first = engine.job
        assert first is not None
        engine.network.double()
        assert torch.equal(engine.compute(*given), tiny.clean(engine, *given))
        second = engine.job
        assert second is not None
        assert (first.target.dtype, second.target.dtype) == (torch.float32, torch.float64)
        assert first.wait(20)
        assert not engine.take_up()
        assert engine.status.state == "compiling"
    assert second.wait(20)
    assert_nothing_left(temp)

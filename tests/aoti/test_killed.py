"""Compile jobs whose processes are killed."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from psutil import Process

from lib_accel.compile.units import describe, units_of
from lib_accel.errors import CompileFailed
from lib_accel.store import ArtifactStore

from .. import tiny
from .kit import assert_nothing_left, await_compiler, posix, start_process, started
from .processes import PATIENCE_S, compilers, until, using, workers

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("ACCEL_TEST_KILLS", "1"))
UNITS = {describe(layer): layer for layer in units_of(tiny.TINY)}


def test_a_killed_worker_ends_the_job_with_a_reason(temp: Path, store: ArtifactStore):
    job = started(store)
    await_compiler(temp)
    workers(temp)[0].kill()
    with pytest.raises(CompileFailed, match=r"process ended \(exit -9\) at Output 64 -> 4"):
        job.result()
    assert_nothing_left(temp)
    assert store.list() == []


PLANT = """
import json, os, runpy, sys, tempfile
from pathlib import Path
import filelock, numpy, psutil, torch
from lib_accel.compile.backends.aoti import backend
from tests.aoti.kit import plant
from tests import tiny

shared = tempfile.gettempdir()
plant(Path(shared))
os.chdir(shared)
os.environ["PYTHONPATH"] = shared
sys.path[:0] = ["", shared]
"""
"""Let every way to modules lead first into the temporary folder, where others have put some."""


@posix
@pytest.mark.parametrize("moment", [workers, compilers], ids=["worker starts", "compiler works"])
def test_a_killed_parent_leaves_nothing(
    moment: Callable[[Path], list[Process]], root: Path, temp: Path, store: ArtifactStore
):
    """Modules that somebody planted in the shared temporary folder are never imported."""
    with start_process(root, store, temp, before=PLANT) as parent:
        until("the moment", lambda: moment(temp) or parent.poll() is not None)
        assert parent.poll() is None
        parent.kill()
    assert_nothing_left(temp)
    assert list(temp.iterdir()) != [], "nothing was planted"
    assert store.list() == []
    assert not (temp.parent / "planted-code-ran").exists()


SLOW_CLEANUP = """
import time
from lib_accel.compile.backends.aoti import pool as module

def remove(folder, patience_s=0):
    print("cleaning up", flush=True)
    time.sleep(1000)

module.remove = remove
"""


@posix
def test_a_parent_killed_while_it_cleans_up_leaves_nothing(
    root: Path, temp: Path, store: ArtifactStore
):
    with start_process(root, store, temp, before=PLANT + SLOW_CLEANUP) as parent:
        assert parent.stdout is not None
        assert any("cleaning up" in line for line in parent.stdout)
        assert using(temp) != []
        parent.kill()
    assert_nothing_left(temp)
    assert not (temp.parent / "planted-code-ran").exists()
    assert len(store.list()) == 1, "the unit was stored before"


def stored(store: ArtifactStore) -> set[str]:
    """Return the units in the store, after checking that each artifact is whole."""
    assert [problem for _, problem in store.verify() if problem] == []
    keys = {entry.key for entry in store.list()}
    names = {name for name, layer in UNITS.items() if tiny.target().keys[layer] in keys}
    assert len(names) == len(keys)
    return names


def in_work(stage: str) -> set[str]:
    """Return the units that a stage line names."""
    return {name for name in UNITS if name in stage}


def kill(parent: subprocess.Popen[str], store: ArtifactStore, moments: random.Random) -> list[str]:
    """Kill the process at a random moment; return the stages of its job until then.

    Every other time or so it is soon after a unit was stored, else within 25 s of the start:
    a whole job takes about as long.
    """
    if moments.random() < 0.5:
        count = len(stored(store))
        until("a unit", lambda: len(stored(store)) > count or parent.poll() is not None)
        time.sleep(moments.uniform(0, 5))
    else:
        time.sleep(moments.uniform(0, 25))
    parent.kill()
    return parent.communicate()[0].splitlines()


@posix
def test_kills_at_random_moments_cost_at_most_the_units_in_work(
    root: Path, temp: Path, store: ArtifactStore
):
    """ACCEL_TEST_KILLS: how often the process that compiles is killed."""
    moments, before = random.Random(13), set[str]()
    for _ in range(KILLS):
        if len(before) == len(UNITS):
            store.discard(tiny.target().keys[UNITS["Output 64 -> 4"]], "more to compile")
            before = stored(store)
        with start_process(root, store, temp, first=0) as parent:
            until("the compiling to begin", lambda: workers(temp))
            stages = kill(parent, store, moments)
        assert_nothing_left(temp)
        begun = set().union(*map(in_work, stages))
        assert not begun & before, "a stored unit was compiled again"
        lost = begun - stored(store)
        assert lost <= in_work("".join(stages[-1:])), f"lost {lost} at {stages}"
        assert before <= stored(store)
        before = stored(store)
    with start_process(root, store, temp, first=0) as parent:
        last = parent.communicate(timeout=2 * PATIENCE_S)[0].splitlines()[-1]
    assert f'"compiled": {len(UNITS) - len(before)}, "units": 5' in last
    assert_nothing_left(temp)
    names = {path.name for path in store.root.iterdir()}
    assert names == {".accel-store", ".locks", *tiny.target().keys.values()}
    tiny.check(tiny.ready(store.root), tiny.inputs())

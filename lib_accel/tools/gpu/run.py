"""Do the jobs one after the other within the minutes that there are, and keep what each finds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...compile.backends.kernels.backend import FusedKernels
from ...compile.backends.tensorrt.backend import TensorRT
from ...store import ArtifactStore
from ..terminal import say
from . import process
from .code import most_workers, unfit
from .jobs import UNIT_SECONDS, Job
from .record import Record
from .setting import Setting

PATIENCE = 3
"""A job may take so many times what it is expected to, and START_S, before it is ended."""

START_S = 60.0
TRIES = 2
"""A job that has failed so often is not tried again."""


def run(
    jobs: Iterable[Job], setting: Setting, record: Record, minutes: float, began: float
) -> None:
    """Do what is not done yet, in order; what has failed before comes last.

    A job is begun only where it is expected to end within `minutes` after `began`
    (`time.monotonic`), and is ended then. The record is written after every step.
    """
    give_up = began + 60 * minutes
    try:
        for job in _in_order(jobs, record):
            if why := cannot_run(job, setting):
                _leave_out(job, record, f"left out: {why}")
                continue
            left = give_up - time.monotonic()
            if (needs := expected(job, setting)) > left:
                why = f"left out: it takes about {needs:.0f} s, and {max(0.0, left):.0f} s are left"
                _leave_out(job, record, why)
                continue
            say(f"== {job.name} (about {needs:.0f} s; {left:.0f} s are left)")
            _do(job, setting, record, give_up, needs)
    finally:
        record.data["runs"][-1]["seconds"] = round(time.monotonic() - began, 1)
        record.save()


def expected(job: Job, setting: Setting) -> float:
    """Return the seconds that a job takes, about: more where it has to compile units."""
    if setting.dry_run:
        return 0.0
    if job.kind != "code":
        return job.seconds
    target, store, carried = setting.target(job), setting.store, setting.carried_store
    compiled = sum(
        not store.contains(key) and not (carried and carried.contains(key))
        for key in target.keys.values()
    )
    return job.seconds + UNIT_SECONDS * math.ceil(compiled / most_workers())


def cannot_run(job: Job, setting: Setting) -> str | None:
    """Return why a job cannot be done here: its backend does not serve. Others do the rest."""
    if "tensorrt" in job.variants:
        backend = TensorRT()
    elif job.kind == "kernels":
        backend = FusedKernels()
    else:
        return None
    config = replace(setting.config, compile=True)
    return backend.why_not(setting.target(job), setting.store, config)


def _in_order(jobs: Iterable[Job], record: Record) -> list[Job]:
    """Return what is not done: first what has never failed, a kill of the command aside."""
    waiting = [job for job in jobs if record.jobs.get(job.name, {}).get("state") != "done"]
    failures = {job: record.jobs.get(job.name, {}).get("failures", 0) for job in waiting}
    return sorted((job for job in waiting if failures[job] < TRIES), key=failures.__getitem__)


def _leave_out(job: Job, record: Record, why: str) -> None:
    say(f"{job.name}: {why}")
    if job.name not in record.jobs:
        record.jobs[job.name] = {"state": "left out", "why": why}
        record.save()


def _do(job: Job, setting: Setting, record: Record, give_up: float, needs: float) -> None:
    """Run a job; again without the part that ended its process, as often as one does."""
    entry = record.jobs.setdefault(job.name, {})
    entry |= {"state": "running", "why": "", "result": entry.get("result", {})}
    began, without = time.monotonic(), []

    def keep(result: dict[str, Any]) -> None:
        entry["result"], entry["seconds"] = result, round(time.monotonic() - began, 1)
        record.save()

    while True:
        left = give_up - time.monotonic()
        limit = left if setting.dry_run else min(left, PATIENCE * needs + START_S)
        given = replace(setting, seconds=limit, without=tuple(without))
        outcome = process.run(job, given, record.path.with_suffix(".log"), keep)
        entry["state"] = outcome.state
        entry["why"] = " ".join([*filter(None, [entry["why"], outcome.why])])
        if outcome.state == "failed" or (outcome.state == "ended" and limit < left):
            entry["failures"] = entry.get("failures", 0) + 1
        keep(entry["result"])
        if outcome.why:
            say(f"{job.name}: {outcome.state}: {outcome.why}")
        part = outcome.at
        if outcome.state != "failed" or not part or part in without or time.monotonic() > give_up:
            return
        without.append(part)


def carried_notes(jobs: Iterable[Job], setting: Setting) -> list[str]:
    """Return why carried code does not fit this machine, a sentence for each family."""
    carried = setting.carried_store
    of = {job.family: unfit(setting.target(job), carried) for job in jobs if job.kind == "code"}
    return [f"{why}. It is compiled here" for why in of.values() if why]


def import_carried(file: Path, beside: Path, key: bytes | None) -> str:
    """Unpack carried code into a store of its own beside another one; return where that is."""
    store = ArtifactStore(beside.with_name(f"{beside.name}-carried"))
    store.import_(file, key, allow_unsigned=key is None)
    return str(store.root)

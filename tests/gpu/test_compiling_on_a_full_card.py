"""Workers that compile take video memory: they start and stay only where there is room."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lib_accel.compile.backends.aoti import job as aoti_job
from lib_accel.compile.backends.aoti.job import CompileJob
from lib_accel.compile.backends.aoti.worker_process import worker_bytes
from lib_accel.compile.jobs import Turns
from lib_accel.compile.machine import RESERVE, free_memory, probe
from lib_accel.compile.target import Target
from lib_accel.compile.units import units_of
from lib_accel.config import Config
from lib_accel.runtime.engine import Engine
from lib_accel.store import ArtifactStore

from .. import tiny

CARD = torch.device("cuda:0")
PATIENCE_S = 120
TARGET = Target(units_of(tiny.TINY), torch.float16, CARD, probe(CARD))


def soon(condition: Callable[[], object]) -> bool:
    """Return whether this becomes true."""
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


def all_but(free: int) -> torch.Tensor:
    """Return a tensor that leaves so many bytes of the card free."""
    gc.collect()
    torch.cuda.empty_cache()
    size = torch.cuda.mem_get_info(CARD)[0] - free
    return torch.empty(size, dtype=torch.uint8, device=CARD)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileJob]:
    monkeypatch.setattr(aoti_job, "QUIET_S", 1.0)
    store = ArtifactStore(tmp_path / "store")
    made = CompileJob(TARGET, store, lambda *_: None, Turns(), workers=1)
    yield made
    made.cancel()
    assert made.wait(PATIENCE_S)


def test_a_worker_starts_when_there_is_room_and_ends_when_there_is_none(job: CompileJob):
    needed = worker_bytes(TARGET)
    filled = all_but(RESERVE + needed - 2**20)
    job.start()
    assert soon(lambda: job.waits_for_memory)
    stage = job.progress().stage
    assert stage.startswith("waiting for video memory: ")
    assert stage.endswith(f"the compiler needs {needed / 2**20:.0f} MiB")
    assert not job._pool
    del filled
    torch.cuda.empty_cache()
    assert soon(lambda: job.progress().stage.startswith("compiling "))
    (worker,) = job._pool
    filled = all_but(RESERVE - 2**20)
    assert soon(lambda: worker.exit_code() is not None)
    assert soon(lambda: job.waits_for_memory)
    assert not job.done
    del filled
    torch.cuda.empty_cache()
    assert soon(lambda: job.progress().stage.startswith("compiling "))


def test_what_an_image_needs_ends_a_worker_at_once(job: CompileJob, tmp_path: Path):
    network = tiny.donor(dtype=torch.float16).to(CARD)
    engine = Engine(network, Config(store=tmp_path / "other", backend="eager"))
    engine._provider.job = job.start()
    assert soon(lambda: job._pool)
    (worker,) = job._pool
    engine.memory.make_room(2**20)
    assert worker.exit_code() is None, "there is room"
    engine.memory.make_room(free_memory(CARD) - RESERVE + 2**20)
    assert worker.exit_code() is not None
    assert soon(lambda: job._pool and job._pool[0] is not worker), "it goes on"

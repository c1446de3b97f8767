"""The store used by several processes at once, some of which are killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib_accel.store import ArtifactStore, LockBusy, artifact
from tests.store.kit import REPO, child, finish, hidden, key_of, posix, recipe

ROUNDS = 25


def race(root: Path, number: int, folder: Path, barrier, results) -> None:
    store = ArtifactStore(root)
    source = folder / f"by{number}"
    source.write_bytes(str(number).encode() * 5000)
    won = []
    for turn in range(ROUNDS):
        barrier.wait(20)
        won.append(
            store.put(recipe(turn), {"a.pt2": source, "b/b.pt2": source}, {"by": number}).verdict[
                "by"
            ]
        )
    results.put(won)


def test_two_processes_put_the_same_unit(store, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=race, args=(store.root, number, tmp_path, barrier, results))
        for number in (1, 2)
    ]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert answers[0] == answers[1]  # both were given the same winner each time
    assert len(store.verify()) == ROUNDS
    assert all(problem is None for _, problem in store.verify())
    for turn in range(ROUNDS):
        artifact = store.get(key_of(turn))
        assert artifact.file("a.pt2").read_bytes() == str(artifact.verdict["by"]).encode() * 5000
    assert hidden(store.root) == []


def test_get_while_another_process_replaces(store, units):
    code = """
for turn in range(10**6):
    artifact = store.put(recipe("a"), {"a/b.pt2": pathlib.Path(sys.argv[2])}, {"turn": turn})
    print(turn, flush=True) if turn == 0 else None
    store.discard(artifact.key, "next")
"""
    process = child(code, store.root, units["mid.pt2"])
    process.stdout.readline()
    seen, end = set(), time.monotonic() + 1
    while time.monotonic() < end:
        seen.add(store.get(key_of("a")) is not None)  # never a rejection, never half of one
        assert [entry.problem for entry in store.list() if entry.problem] == []
        assert [problem for _, problem in store.verify() if problem] == []
    finish(process, kill=True)
    assert seen == {True, False}


@posix
def test_killed_in_the_middle_of_put(store, units, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = """
sources = {"a.pt2": pathlib.Path(sys.argv[2]), "b.pt2": pathlib.Path(sys.argv[3])}
store.put(recipe("a"), sources)
"""
    process = child(code, store.root, units["mid.pt2"], pipe)
    with pipe.open(
        "wb"
    ) as writer:  # returns when the child reads: its first file is written, the second is not
        writer.write(bytes(100_000))
        writer.flush()
        assert store.clear() == 0  # a live process keeps its folder
        assert len(hidden(store.root)) == 1
        os.kill(process.pid, signal.SIGKILL)
        assert finish(process) == -signal.SIGKILL
    assert store.get(key_of("a")) is None
    assert store.list() == []
    assert len(hidden(store.root)) == 1
    assert store.clear() >= 1001
    assert hidden(store.root) == []
    assert sorted(path.name for path in store.root.rglob("*")) == [".accel-store", ".locks"]


def test_killed_at_any_moment(store, units):
    code = """
files = {f"{n // 4}/{n}.pt2": pathlib.Path(sys.argv[2]) for n in range(8)}
print("ready", flush=True)
for turn in range(10**6):
    store.put(recipe(turn % 3), files, {"turn": turn})
    store.discard(key_of((turn + 1) % 3), "next")
"""
    for turn in range(6):
        process = child(code, store.root, units["mid.pt2"])
        process.stdout.readline()
        time.sleep(0.02 + 0.007 * turn)
        finish(process, kill=True)
        assert [problem for _, problem in store.verify() if problem] == []
        store.clear()
        assert hidden(store.root) == []


def test_a_lock_holds_across_processes_until_its_holder_dies(store):
    code = """
with store.lock(sys.argv[2], 5):
    print("held", flush=True)
    sys.stdin.read()
"""
    key = key_of("a")
    with child(code, store.root, key) as process:
        assert process.stdout.readline() == "held\n"
        started = time.monotonic()
        with (
            pytest.raises(LockBusy, match=r"is locked by another process, after waiting 0.2 s"),
            store.lock(key, 0.2),
        ):
            pass
        assert 0.2 <= time.monotonic() - started < 5
        with pytest.raises(LockBusy), store.lock(key, 0):
            pass
        with store.lock(key_of("b"), 0):  # another key is free
            pass
        process.kill()
        with pytest.raises(KeyError, match="mine"), store.lock(key, 10):
            raise KeyError("mine")  # errors of the body pass unchanged
    with pytest.raises(OSError, match="theirs") as caught, store.lock(key, 0):
        raise OSError(errno.EIO, "theirs")
    assert type(caught.value) is OSError


def test_importing_the_store_imports_no_torch():
    code = "import sys, lib_accel.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0


def test_put_answers_though_another_process_discards_at_once(store, units, monkeypatch):
    rename = artifact.rename

    def rename_and_lose(source: Path, target: Path) -> None:
        rename(source, target)
        shutil.rmtree(target)

    monkeypatch.setattr(artifact, "rename", rename_and_lose)
    assert store.put(recipe("a"), units, {"n": 1}).verdict == {"n": 1}
    assert store.get(key_of("a")) is None

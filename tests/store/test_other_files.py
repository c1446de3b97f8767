"""The store removes only what is its own, and only from a folder that is a store."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lib_accel.errors import StoreError
from lib_accel.store import ArtifactStore
from lib_accel.store.cleanup import MARK
from tests.store.kit import child, finish, hidden, key_of, posix, recipe

THINGS = {
    "a file": "notes.txt",
    "a hidden file": ".config",
    "a file with the name of an artifact": "c" * 64,
    "a folder with the name of an artifact": f"{'d' * 64}/f",
    "a folder like one being written": ".tmp-mywork/thesis.txt",
    "a file like one being written": ".tmp-0123456789abcdef",
    "a folder like one being removed": ".trash-1000/f",
    "a longer name": ".trash-0123456789abcdef0/f",
}


def write(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    return path


def actions(store: ArtifactStore, units, archive: Path):
    """Return everything that writes or removes."""
    return [
        lambda: store.put(recipe("a"), units),
        lambda: store.lock(key_of("a"), 0).__enter__(),
        lambda: store.import_(archive, None, allow_unsigned=True),
        store.clear,
        store.check,
    ]


@pytest.mark.parametrize("name", THINGS.values(), ids=THINGS)
def test_a_folder_with_other_contents_is_refused_as_a_store(tmp_path, units, name):
    thing = write(tmp_path / "folder" / name) if "/" not in name else None
    if thing is None:
        (tmp_path / "folder").mkdir()
        thing = write(tmp_path / "folder" / name)
    store, good = ArtifactStore(tmp_path / "folder"), ArtifactStore(tmp_path / "good")
    good.put(recipe("a"), units)
    good.export([key_of("a")], tmp_path / "x.zip", None)
    for action in actions(store, units, tmp_path / "x.zip"):
        with pytest.raises(StoreError, match=r"is no store of compiled code: it holds .*Choose a"):
            action()
    top = name.split("/")[0]
    if len(top) == 64:
        with pytest.raises(StoreError, match="is no store of compiled code"):
            store.discard(top, "asked")
    assert thing.read_bytes() == b"mine"
    assert [path.name for path in store.root.iterdir()] == [top]
    assert [entry.problem is None for entry in store.list()] in ([], [False])


def test_other_things_in_a_store_stay(store, units, tmp_path):
    store.put(recipe("old"), units)
    things = [write(store.root / name) for name in THINGS.values()]
    tiny = ArtifactStore(store.root, max_bytes=1)
    tiny.put(recipe("new"), units)
    assert all(thing.read_bytes() == b"mine" for thing in things)
    assert store.get(key_of("old")) is None, "what is its own makes room"
    for name in ("c" * 64, "d" * 64):
        with pytest.raises(StoreError, match="may be somebody's own"):
            store.discard(name, "asked")
    with pytest.raises(StoreError, match=r"2 artifacts could not be removed.*somebody's own"):
        store.clear()
    assert all(thing.read_bytes() == b"mine" for thing in things)
    assert store.get(key_of("new")) is None


def test_other_things_do_not_count_as_the_store_s(store, units):
    store.put(recipe("old"), units)
    write(store.root / ("c" * 64)).write_bytes(bytes(100_000))
    ArtifactStore(store.root, max_bytes=50_000).put(recipe("new"), units)
    assert {e.key for e in store.list() if e.artifact} == {key_of("old"), key_of("new")}


def test_a_folder_without_a_manifest_is_not_replaced(store, units):
    store.put(recipe("b"), units)
    thing = write(store.root / key_of("a") / "f")
    with pytest.raises(StoreError, match="may be somebody's own"):
        store.put(recipe("a"), units)
    assert thing.read_bytes() == b"mine"


def test_a_store_of_an_earlier_version_is_taken_over(store, units):
    artifact = store.put(recipe("a"), units)
    (store.root / MARK).unlink()
    for name in (".tmp-0123456789abcdef", ".trash-0123456789abcdef", "lost+found"):
        (store.root / name).mkdir()
    (store.root / ".DS_Store").write_bytes(b"")
    assert store.get(artifact.key) == artifact
    store.check()
    assert not (store.root / MARK).exists(), "a look changes nothing"
    store.put(recipe("b"), units)
    assert (store.root / MARK).is_file()
    assert hidden(store.root) == []
    assert (store.root / "lost+found").is_dir()
    assert len(store.list()) == 2


def test_threads_that_begin_a_store_at_once_agree(tmp_path):
    """A folder that another one is just marking is no strange folder."""
    start, errors = threading.Barrier(4), []

    def begin() -> None:
        for turn in range(300):
            start.wait(20)
            try:
                with ArtifactStore(tmp_path / str(turn)).lock(key_of(threading.get_ident()), 0):
                    pass
            except StoreError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_empty_folder_becomes_a_store(tmp_path, units):
    (tmp_path / "empty").mkdir(mode=0o700)
    store = ArtifactStore(tmp_path / "empty")
    store.put(recipe("a"), units)
    (store.root / "note").write_bytes(b"")  # it bears the mark by now
    store.put(recipe("b"), units)
    assert len(store.list()) == 2


@posix
def test_a_workspace_s_lock_is_removed_when_its_process_was_killed(store, units):
    """Killed between the lock and the folder: the lock goes an hour later, and not before."""
    code = """
from lib_accel.store import locks
def stop(folder, **_):
    if folder.name != locks.LOCKS:
        print("locked", flush=True)
        sys.stdin.read()
locks.Path.mkdir = stop
with locks.workspace(store.root):
    pass
"""
    store.put(recipe("a"), units)
    process = child(code, store.root)
    assert process.stdout.readline() == "locked\n"
    (lock,) = (store.root / ".locks").iterdir()
    os.utime(lock, (1, 1))
    store.clear()
    assert lock.exists(), "its process lives"
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    os.utime(lock, (time.time() - 60,) * 2)
    store.clear()
    assert lock.exists(), "another process may be about to take it"
    os.utime(lock, (1, 1))
    (store.root / ".locks" / f"{key_of('a')}.lock").touch()
    os.utime(store.root / ".locks" / f"{key_of('a')}.lock", (1, 1))
    store.clear()
    assert [path.stem for path in (store.root / ".locks").iterdir()] == [key_of("a")]

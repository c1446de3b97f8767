"""The store against a hostile world: other users, full and read-only disks, other processes, killed ones. All for real."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store.store import MANIFEST, ArtifactStore, LockBusy
from tests.store.kit import RECIPE, REPO, child, finish, hidden, key_of, posix, root_only

# Who may write there


@posix
def test_private_whatever_the_umask(store, units):
    before = os.umask(0)
    try:
        deep = ArtifactStore(store.root / "x" / "y")
        artifact = deep.put(key_of("a"), RECIPE, units)
    finally:
        os.umask(before)
    assert deep.get(key_of("a")) == artifact
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (deep.root, artifact.path, artifact.file("mid.pt2"), store.root)
    }
    assert list(modes.values()) == [0o700, 0o700, 0o600, 0o755]


@posix
@pytest.mark.parametrize("mode", [0o002, 0o020])
@pytest.mark.parametrize("which", ["root", "artifact", "manifest", "file"])
def test_writable_by_others(store, units, which, mode):
    artifact = store.put(key_of("a"), RECIPE, units)
    paths = {
        "root": store.root,
        "artifact": artifact.path,
        "manifest": artifact.path / MANIFEST,
        "file": artifact.file("mid.pt2"),
    }
    path = paths[which]
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(
        ArtifactRejected,
        match=rf"{path} is writable by others \(mode 0\d+\).*Run: chmod go-w '{path}'",
    ):
        store.get(key_of("a"))
    if which == "root":
        with pytest.raises(ArtifactRejected, match="is writable by others"):
            store.put(key_of("b"), RECIPE, units)


@posix
def test_parent_writable_by_everyone(store, units, tmp_path):
    store.put(key_of("a"), RECIPE, units)
    tmp_path.chmod(0o777)
    with pytest.raises(
        ArtifactRejected,
        match=rf"{tmp_path} is writable by everyone \(mode 0777\) and holds the store .*chmod \+t '{tmp_path}'",
    ):
        store.get(key_of("a"))
    assert "is writable by everyone" in (store.list()[0].problem or "")
    tmp_path.chmod(0o1777)  # sticky, like /tmp
    assert store.get(key_of("a")) is not None


@posix
def test_links_are_refused(store, units, tmp_path):
    artifact = store.put(key_of("a"), RECIPE, units)
    artifact.path.rename(tmp_path / "elsewhere")
    artifact.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactRejected, match="is not a real folder"):
        store.get(key_of("a"))
    store.discard(key_of("a"), "a link")
    assert (tmp_path / "elsewhere" / MANIFEST).exists()  # the link is gone, not what it pointed to
    other = store.put(key_of("a"), RECIPE, units).file("mid.pt2")
    other.unlink()
    other.symlink_to(tmp_path / "elsewhere" / "mid.pt2")
    with pytest.raises(ArtifactRejected, match="is not a real file"):
        store.get(key_of("a"))


@root_only
@pytest.mark.parametrize("which", ["root", "artifact", "manifest", "file"])
def test_foreign_owner(store, units, which):
    artifact = store.put(key_of("a"), RECIPE, units)
    paths = {
        "root": store.root,
        "artifact": artifact.path,
        "manifest": artifact.path / MANIFEST,
        "file": artifact.file("mid.pt2"),
    }
    os.chown(paths[which], 12345, -1)
    with pytest.raises(ArtifactRejected, match=r"belongs to another user \(id 12345, you are 0\)"):
        store.get(key_of("a"))


@root_only
def test_as_another_user(mounted, units):
    """Root's artifacts serve another user; what that user may not write or read is a StoreError."""
    store = ArtifactStore(mounted / "store")
    artifact = store.put(key_of("a"), RECIPE, units)
    parents = [
        path
        for path in mounted.parents
        if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001
    ]
    modes = {path: path.stat().st_mode for path in parents}
    for path in (*parents, mounted, store.root, artifact.path):
        path.chmod(0o755)
    for name in (MANIFEST, *artifact.files):
        (artifact.path / name).chmod(0o644)
    os.seteuid(12345)
    try:
        assert store.get(key_of("a")) == artifact
        with pytest.raises(StoreError, match=r"Permission denied.*You need permission"):
            store.put(key_of("b"), RECIPE, units)
        os.seteuid(0)
        artifact.file("mid.pt2").chmod(0o600)
        os.seteuid(12345)
        with pytest.raises(
            StoreError, match=r"Could not read artifact.*Permission denied.*mid.pt2"
        ):
            store.get(key_of("a"))
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


# Read-only and full


def test_readonly(store, units, tmp_path):
    artifact = store.put(key_of("a"), RECIPE, units)
    os.utime(artifact.path / MANIFEST, (7, 7))
    frozen = ArtifactStore(store.root, readonly=True)
    assert frozen.get(key_of("a")) == artifact
    assert frozen.list()[0].last_used == 7  # not marked
    assert ArtifactStore(tmp_path / "absent", readonly=True).get(key_of("a")) is None
    actions = [
        lambda: frozen.put(key_of("b"), RECIPE, units),
        lambda: frozen.discard(key_of("a"), "x"),
        frozen.clear,
        lambda: frozen.lock(key_of("a"), 0).__enter__(),
        lambda: frozen.import_(tmp_path / "x.zip", None, True),
    ]
    for action in actions:
        with pytest.raises(StoreError, match=r"is used read-only. Expected a writable store"):
            action()


@root_only
def test_readonly_file_system(mounted, units):
    store = ArtifactStore(mounted / "store")
    artifact = store.put(key_of("a"), RECIPE, units)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    assert store.get(key_of("a")) == artifact
    assert store.verify() == [(key_of("a"), None)]
    actions = [
        lambda: store.put(key_of("b"), RECIPE, units),
        lambda: store.discard(key_of("a"), "x"),
        store.clear,
    ]
    for action in [*actions, lambda: store.lock(key_of("b"), 0).__enter__()]:
        with pytest.raises(StoreError, match=r"Read-only file system.*use the store read-only"):
            action()


@root_only
def test_full_disk(mounted, units, tmp_path):
    store = ArtifactStore(mounted / "store")
    artifact = store.put(key_of("a"), RECIPE, units)
    big = tmp_path / "big"
    big.write_bytes(bytes(2 << 20))
    with pytest.raises(
        StoreError,
        match=r"Could not store artifact.*No space left.*The disk is full.*what was stored before is intact",
    ):
        store.put(key_of("b"), RECIPE, {**units, "big.pt2": big})
    assert store.verify() == [(key_of("a"), None)]
    assert hidden(store.root) == []
    roomy = ArtifactStore(tmp_path / "roomy")
    roomy.put(key_of("b"), RECIPE, {"big.pt2": big})
    roomy.export([key_of("b")], tmp_path / "x.zip", None)
    with pytest.raises(StoreError, match=r"Could not import.*The disk is full"):
        store.import_(tmp_path / "x.zip", None, allow_unsigned=True)
    (mounted / "out.zip").write_bytes(b"old")
    with pytest.raises(StoreError, match=r"Could not write the export.*The disk is full"):
        roomy.export([key_of("b")], mounted / "out.zip", None)
    assert (mounted / "out.zip").read_bytes() == b"old"
    assert sorted(path.name for path in mounted.iterdir()) == ["out.zip", "store"]
    with (
        (mounted / "filler").open("wb", buffering=0) as filler,
        pytest.raises(OSError, match="No space"),
    ):
        filler.writelines(bytes(4096) for _ in range(1000))
    assert store.get(key_of("a")) == artifact
    store.discard(key_of("a"), "to make room")  # removing needs no room
    assert store.list() == []


@posix
def test_file_size_limit(store, units):
    """The same without root: the kernel refuses the write."""
    code = """
import resource, signal
from lib_accel.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    store.put(sys.argv[2], {}, {"mid.pt2": pathlib.Path(sys.argv[3])})
except StoreError as error:
    assert "file size limit" in str(error), error
    sys.exit(7)
"""
    store.put(key_of("a"), RECIPE, units)
    assert finish(child(code, store.root, key_of("b"), units["mid.pt2"])) == 7
    assert store.verify() == [(key_of("a"), None)]
    assert hidden(store.root) == []


# Several processes

ROUNDS = 25


def race(root: Path, number: int, folder: Path, barrier, results) -> None:
    store = ArtifactStore(root)
    source = folder / f"by{number}"
    source.write_bytes(str(number).encode() * 5000)
    won = []
    for turn in range(ROUNDS):
        barrier.wait(20)
        won.append(
            store.put(key_of(turn), {"by": number}, {"a.pt2": source, "b.pt2": source}).manifest[
                "recipe"
            ]["by"]
        )
    results.put(won)


def test_two_processes_put_the_same_key(store, tmp_path):
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
        assert (
            artifact.file("a.pt2").read_bytes()
            == str(artifact.manifest["recipe"]["by"]).encode() * 5000
        )
    assert hidden(store.root) == []


def test_get_while_another_process_replaces(store, units):
    code = """
for turn in range(10**6):
    store.put(sys.argv[2], {"turn": turn}, {"a.pt2": pathlib.Path(sys.argv[3])})
    print(turn, flush=True) if turn == 0 else None
    store.discard(sys.argv[2], "next")
"""
    process = child(code, store.root, key_of("a"), units["mid.pt2"])
    process.stdout.readline()
    seen, end = set(), time.monotonic() + 1
    while time.monotonic() < end:
        seen.add(store.get(key_of("a")) is not None)  # never a rejection, never half of one
    finish(process, kill=True)
    assert seen == {True, False}


@posix
def test_killed_in_the_middle_of_put(store, units, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = 'store.put(sys.argv[2], {}, {"a.pt2": pathlib.Path(sys.argv[3]), "b.pt2": pathlib.Path(sys.argv[4])})'
    process = child(code, store.root, key_of("a"), units["mid.pt2"], pipe)
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
    assert [path.name for path in store.root.rglob("*")] == [".locks"]


def test_killed_at_any_moment(store, units):
    code = """
files = {f"{n}.pt2": pathlib.Path(sys.argv[2]) for n in range(8)}
print("ready", flush=True)
for turn in range(10**6):
    store.put(f"{turn % 3:064x}", {"turn": turn}, files)
    store.discard(f"{(turn + 1) % 3:064x}", "next")
"""
    for turn in range(6):
        process = child(code, store.root, units["mid.pt2"])
        process.stdout.readline()
        time.sleep(0.02 + 0.007 * turn)
        finish(process, kill=True)
        assert [problem for _, problem in store.verify() if problem] == []
        store.clear()
        assert hidden(store.root) == []


def test_lock(store):
    code = "with store.lock(sys.argv[2], 5):\n    print('held', flush=True)\n    sys.stdin.read() if sys.argv[3:] else input()"
    key = key_of("a")
    head = "import sys, pathlib\nfrom lib_accel.store.store import ArtifactStore\nstore = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", head + code, str(store.root), key]
    with subprocess.Popen(
        command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
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
            raise KeyError("mine")  # what happens inside is not ours to change
    with pytest.raises(OSError, match="theirs") as caught, store.lock(key, 0):
        raise OSError(errno.EIO, "theirs")
    assert type(caught.value) is OSError


def test_nothing_at_import():
    code = "import sys, lib_accel.store.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0

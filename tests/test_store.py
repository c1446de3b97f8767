"""The artifact store and its exports: real files, processes, mounts and signals."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from lib_accel import seal
from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import MANIFEST, ArtifactStore, LockBusy, inside

REPO = Path(__file__).resolve().parents[1]
RECIPE = {"units": ["down", "mid"], "dtype": "float16", "device": "CPU"}
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, pipes and signals")
root_only = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root: chown, seteuid or mount")


def key_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith((".tmp", ".trash"))]


def flip(path: Path, position: int) -> None:
    """Damage one byte in place; done twice, it is as it was."""
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 0x10]))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def units(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "units").mkdir()
    files = {"down.pt2": tmp_path / "units" / "0", "mid.pt2": tmp_path / "units" / "1"}
    for number, path in enumerate(files.values()):
        path.write_bytes(random.Random(number).randbytes(1000 + number))
    return files


@pytest.fixture
def mounted(tmp_path: Path):
    """A real file system of 1 MiB."""
    folder = tmp_path / "mount"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(folder)]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    head = "import sys, pathlib\nfrom lib_accel.store import ArtifactStore\nstore = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], kill: bool = False) -> int:
    if kill:
        process.kill()
    code = process.wait(20)
    assert process.stdout is not None
    process.stdout.close()
    return code


# Storing and finding again


def test_round_trip(store, units):
    key = key_of("a")
    assert store.get(key) is None
    assert not store.root.exists()  # looking creates nothing
    put = store.put(key, RECIPE, units, verdict={"rel_error": 1e-3, "psnr": float("inf")})
    got = store.get(key)
    assert got == put
    assert got.files == ("down.pt2", "mid.pt2")
    assert got.bytes == 2001
    assert [got.file(name).read_bytes() for name in units] == [path.read_bytes() for path in units.values()]
    assert got.manifest["recipe"] == RECIPE
    assert got.manifest["origin"] == "built here"
    assert got.manifest["verdict"] == {"rel_error": 1e-3, "psnr": float("inf")}
    assert [entry.key for entry in store.list()] == [key]
    assert sorted(path.name for path in store.root.iterdir()) == [".locks", key]
    assert list((store.root / ".locks").iterdir()) == []
    with pytest.raises(StoreError, match=r"has no file 'up.pt2'. It holds: down.pt2, mid.pt2"):
        got.file("up.pt2")


def test_what_is_there_wins_unless_it_is_damaged(store, units):
    key = key_of("a")
    first = store.put(key, {"n": 1}, units)
    assert store.put(key, {"n": 2}, units).manifest["recipe"] == {"n": 1}
    flip(first.file("mid.pt2"), 5)
    assert store.put(key, {"n": 3}, units).manifest["recipe"] == {"n": 3}
    assert store.get(key).manifest["recipe"] == {"n": 3}


@pytest.mark.parametrize("key", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_bad_keys(store, key):
    with pytest.raises(StoreError, match=r"is not an artifact key. Expected 64 lowercase hex"):
        store.get(key)


@pytest.mark.parametrize("name", ["../x.pt2", "a/b.pt2", "a\\b.pt2", MANIFEST, "Manifest.JSON", ".hidden", "nul.pt2", "CON", "x.", ""])
def test_bad_file_names(store, units, name):
    with pytest.raises(StoreError, match="cannot be a file of an artifact"):
        store.put(key_of("a"), RECIPE, {name: units["mid.pt2"]})


def test_bad_puts(store, units):
    with pytest.raises(StoreError, match="has no files"):
        store.put(key_of("a"), RECIPE, {})
    with pytest.raises(StoreError, match="differ only in case"):
        store.put(key_of("a"), RECIPE, {"A.pt2": units["mid.pt2"], "a.pt2": units["mid.pt2"]})
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        store.put(key_of("a"), {"dtype": object()}, units)
    with pytest.raises(StoreError, match=r"Could not store artifact.*No such file.*absent"):
        store.put(key_of("a"), RECIPE, {"a.pt2": units["mid.pt2"].with_name("absent")})
    assert store.list() == []
    assert hidden(store.root) == []
    with pytest.raises(StoreError, match="Expected more than 0"):
        ArtifactStore(store.root, max_bytes=0)


def test_discard_and_clear(store, units, caplog):
    for number in range(3):
        store.put(key_of(number), RECIPE, units)
    store.discard(key_of(0), "inaccurate")
    assert "Discarded artifact" in caplog.text
    assert "inaccurate" in caplog.text
    store.discard(key_of(0), "again")  # absent: nothing to do
    assert store.get(key_of(0)) is None
    taken = sum(entry.bytes for entry in store.list())
    (store.root / ".trash-0").mkdir()  # what a process leaves that is killed while it discards
    (store.root / ".trash-0" / "mid.pt2").write_bytes(bytes(77))
    assert store.clear() == taken + 77 > 2 * 2001
    assert store.list() == []
    assert hidden(store.root) == []


# Room


def test_the_least_recently_used_goes_first(store, units):
    for number in range(4):
        store.put(key_of(number), RECIPE, units)
        os.utime(store.root / key_of(number) / MANIFEST, (number, number))
    assert store.get(key_of(0)) is not None  # now 1 is the oldest
    assert [entry.key for entry in store.list()] == [key_of(number) for number in (1, 2, 3, 0)]
    small = ArtifactStore(store.root, max_bytes=3 * store.list()[0].bytes + 100)
    small.put(key_of(9), RECIPE, units)
    assert {entry.key for entry in small.list()} == {key_of(3), key_of(0), key_of(9)}
    assert sum(entry.bytes for entry in small.list()) <= small.max_bytes


def test_eviction_spares_the_new_one_and_the_locked(store, units):
    store.put(key_of("locked"), RECIPE, units)
    store.put(key_of("free"), RECIPE, units)
    tiny = ArtifactStore(store.root, max_bytes=1)
    with store.lock(key_of("locked"), 0):
        tiny.put(key_of("new"), RECIPE, units)
        assert {entry.key for entry in tiny.list()} == {key_of("locked"), key_of("new")}
    os.utime(store.root / key_of("new") / MANIFEST, (1, 1))  # the oldest by its clock, and yet just put
    tiny.put(key_of("new"), RECIPE, units)
    assert {entry.key for entry in tiny.list()} == {key_of("new")}


# Damage


def test_every_byte_of_the_manifest_counts(store, units):
    manifest = store.put(key_of("a"), RECIPE, units).path / MANIFEST
    good = manifest.read_bytes()
    for position in range(len(good)):
        flip(manifest, position)
        with pytest.raises(ArtifactRejected, match=r"manifest.json is damaged.*Discard this artifact"):
            store.get(key_of("a"))
        flip(manifest, position)
    assert store.get(key_of("a")) is not None
    for bad in (b"", good[:-1], good + b" ", b"[]", b"[" * 100_000, b"x" * (2 << 20)):
        manifest.write_bytes(bad)
        with pytest.raises(ArtifactRejected, match="its own checksum does not match"):
            store.get(key_of("a"))


@pytest.mark.parametrize("position", [0, 500, 999])
def test_every_byte_of_a_file_counts(store, units, position):
    artifact = store.put(key_of("a"), RECIPE, units)
    flip(artifact.file("down.pt2"), position)
    with pytest.raises(ArtifactRejected, match=r"down.pt2 is damaged: its checksum does not match"):
        store.get(key_of("a"))
    assert store.list()[0].problem is None  # cheap: sizes only
    assert "checksum" in (dict(store.verify())[key_of("a")] or "")


def test_other_damage(store, units):
    artifact = store.put(key_of("a"), RECIPE, units)
    artifact.file("mid.pt2").write_bytes(b"short")
    with pytest.raises(ArtifactRejected, match="it has 5 bytes, expected 1001"):
        store.get(key_of("a"))
    assert "it has 5 bytes" in (store.list()[0].problem or "")
    artifact.file("mid.pt2").unlink()
    with pytest.raises(ArtifactRejected, match=r"mid.pt2 is missing"):
        store.get(key_of("a"))
    (artifact.path / MANIFEST).unlink()
    with pytest.raises(ArtifactRejected, match=r"manifest.json is missing"):
        store.get(key_of("a"))
    store.put(key_of("b"), RECIPE, units).path.rename(store.root / key_of("c"))
    with pytest.raises(ArtifactRejected, match=rf"belongs to another artifact .{key_of('b')[:12]}, expected {key_of('c')[:12]}"):
        store.get(key_of("c"))


def write_manifest(path: Path, **changes: object) -> None:
    """A well-formed manifest with other content: its own checksum is right."""
    body = {**json.loads(path.read_bytes()), **changes}
    del body["sha256"]
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_bytes(json.dumps(body, sort_keys=True, indent=1).encode() + b"\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "it has format 2, this version reads 1"),
        ({"recipe": None}, "these fields are missing or wrong: recipe"),
        ({"files": {"../../x": {"sha256": "0" * 64, "bytes": 1}}}, "its entry for '../../x' is wrong"),
        ({"files": {"x.pt2": {"sha256": "0", "bytes": 1}}}, "its entry for 'x.pt2' is wrong"),
        ({"files": {"x.pt2": {"sha256": "0" * 64, "bytes": "1"}}}, "its entry for 'x.pt2' is wrong"),
    ],
)
def test_strange_manifests(store, units, changes, message):
    artifact = store.put(key_of("a"), RECIPE, units)
    write_manifest(artifact.path / MANIFEST)
    assert store.get(key_of("a")) == artifact  # the helper itself makes a good one
    write_manifest(artifact.path / MANIFEST, **changes)
    with pytest.raises(ArtifactRejected, match=message):
        store.get(key_of("a"))


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
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (deep.root, artifact.path, artifact.file("mid.pt2"), store.root)}
    assert list(modes.values()) == [0o700, 0o700, 0o600, 0o755]


@posix
@pytest.mark.parametrize("mode", [0o002, 0o020])
@pytest.mark.parametrize("which", ["root", "artifact", "manifest", "file"])
def test_writable_by_others(store, units, which, mode):
    artifact = store.put(key_of("a"), RECIPE, units)
    paths = {"root": store.root, "artifact": artifact.path, "manifest": artifact.path / MANIFEST, "file": artifact.file("mid.pt2")}
    path = paths[which]
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(ArtifactRejected, match=rf"{path} is writable by others \(mode 0\d+\).*Run: chmod go-w '{path}'"):
        store.get(key_of("a"))
    if which == "root":
        with pytest.raises(ArtifactRejected, match="is writable by others"):
            store.put(key_of("b"), RECIPE, units)


@posix
def test_parent_writable_by_everyone(store, units, tmp_path):
    store.put(key_of("a"), RECIPE, units)
    tmp_path.chmod(0o777)
    with pytest.raises(ArtifactRejected, match=rf"{tmp_path} is writable by everyone \(mode 0777\) and holds the store"):
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
    paths = {"root": store.root, "artifact": artifact.path, "manifest": artifact.path / MANIFEST, "file": artifact.file("mid.pt2")}
    os.chown(paths[which], 12345, -1)
    with pytest.raises(ArtifactRejected, match=r"belongs to another user \(id 12345, you are 0\)"):
        store.get(key_of("a"))


@root_only
def test_as_another_user(mounted, units):
    """Root's artifacts serve another user; what that user may not write or read is a StoreError."""
    store = ArtifactStore(mounted / "store")
    artifact = store.put(key_of("a"), RECIPE, units)
    parents = [path for path in mounted.parents if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001]
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
        with pytest.raises(StoreError, match=r"Could not read artifact.*Permission denied.*mid.pt2"):
            store.get(key_of("a"))
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def test_inside_the_windows_profile():
    profile = PureWindowsPath("C:/Users/Ann")
    assert inside(PureWindowsPath("c:/users/ann/webui/store"), profile)
    assert not inside(PureWindowsPath("C:/Users/Anna/store"), profile)
    assert not inside(PureWindowsPath("D:/Users/Ann/store"), profile)
    assert inside(PurePosixPath("/home/ann/x"), PurePosixPath("/home/ann"))


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
    actions = [lambda: store.put(key_of("b"), RECIPE, units), lambda: store.discard(key_of("a"), "x"), store.clear]
    for action in [*actions, lambda: store.lock(key_of("b"), 0).__enter__()]:
        with pytest.raises(StoreError, match=r"Read-only file system.*use the store read-only"):
            action()


@root_only
def test_full_disk(mounted, units, tmp_path):
    store = ArtifactStore(mounted / "store")
    artifact = store.put(key_of("a"), RECIPE, units)
    big = tmp_path / "big"
    big.write_bytes(bytes(2 << 20))
    with pytest.raises(StoreError, match=r"Could not store artifact.*No space left.*The disk is full.*what was stored before is intact"):
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
    with (mounted / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
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
        won.append(store.put(key_of(turn), {"by": number}, {"a.pt2": source, "b.pt2": source}).manifest["recipe"]["by"])
    results.put(won)


def test_two_processes_put_the_same_key(store, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=race, args=(store.root, number, tmp_path, barrier, results)) for number in (1, 2)]
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
        assert artifact.file("a.pt2").read_bytes() == str(artifact.manifest["recipe"]["by"]).encode() * 5000
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
    with pipe.open("wb") as writer:  # returns when the child reads: its first file is written, the second is not
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
    head = "import sys, pathlib\nfrom lib_accel.store import ArtifactStore\nstore = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", head + code, str(store.root), key]
    with subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(LockBusy, match=r"is locked by another process, after waiting 0.2 s"), store.lock(key, 0.2):
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
    code = "import sys, lib_accel.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0


# Exports

SECRET = bytes(range(32))


@pytest.fixture
def exported(store, units, tmp_path) -> Path:
    for name in "ab":
        store.put(key_of(name), {"name": name}, units, verdict={"ok": True})
    store.export([key_of("a"), key_of("b")], tmp_path / "signed.zip", SECRET)
    store.export([key_of("a"), key_of("b")], tmp_path / "unsigned.zip", None)
    return tmp_path


def rewrite(source: Path, target: Path, change) -> Path:
    """A zip with its members, a dict of name: bytes, changed."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target


def assert_untouched(store: ArtifactStore) -> None:
    assert store.list() == []
    assert hidden(store.root) == []


def test_export_and_import(exported, store):
    other = ArtifactStore(exported / "other")
    taken = other.import_(exported / "signed.zip", SECRET)
    assert [artifact.key for artifact in taken] == sorted([key_of("a"), key_of("b")])
    assert sorted(other.verify()) == sorted(store.verify()) == [(artifact.key, None) for artifact in taken]
    got, made = other.get(key_of("a")), store.get(key_of("a"))
    assert got.manifest["origin"] == "imported from signed.zip, signature checked"
    assert {name: got.manifest[name] for name in ("recipe", "files", "verdict", "created")} == {
        name: made.manifest[name] for name in ("recipe", "files", "verdict", "created")
    }
    assert other.import_(exported / "signed.zip", SECRET) == taken  # already there: kept
    store.export([key_of("b"), key_of("a")], exported / "again.zip", SECRET)
    assert (exported / "again.zip").read_bytes() == (exported / "signed.zip").read_bytes()


def test_signatures(exported):
    other = ArtifactStore(exported / "other")
    with pytest.raises(ArtifactRejected, match="its signature does not fit your key"):
        other.import_(exported / "signed.zip", bytes(32))
    with pytest.raises(ArtifactRejected, match="its signature does not fit your key"):
        other.import_(exported / "signed.zip", bytes(32), allow_unsigned=True)
    with pytest.raises(ArtifactRejected, match="it is not signed"):
        other.import_(exported / "unsigned.zip", SECRET)
    with pytest.raises(ArtifactRejected, match="there is no signing key to check it with"):
        other.import_(exported / "signed.zip", None)
    with pytest.raises(StoreError, match=r"The signing key has 0 bytes. Expected at least 32"):
        other.import_(exported / "signed.zip", b"")
    assert_untouched(other)
    artifact = other.import_(exported / "unsigned.zip", SECRET, allow_unsigned=True)[0]
    assert artifact.manifest["origin"] == "imported from unsigned.zip, no signature checked"
    other.clear()
    assert len(other.import_(exported / "signed.zip", None, allow_unsigned=True)) == 2


def forge(members: dict[str, bytes]) -> None:
    """Another file with a manifest to match: only the signature can tell."""
    a, manifest = key_of("a"), json.loads(members[f"{key_of('a')}/{MANIFEST}"])
    members[f"{a}/mid.pt2"] = b"evil"
    manifest["files"]["mid.pt2"] = {"sha256": hashlib.sha256(b"evil").hexdigest(), "bytes": 4}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    members[f"{a}/{MANIFEST}"] = json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n"


def drop_one(members: dict[str, bytes]) -> None:
    for name in [name for name in members if name.startswith(key_of("b"))]:
        del members[name]


@pytest.mark.parametrize("change", [forge, drop_one, lambda members: members.update({seal.SEAL: b"{}"})])
def test_a_changed_signed_archive(exported, change):
    bad = rewrite(exported / "signed.zip", exported / "bad.zip", change)
    other = ArtifactStore(exported / "other")
    with pytest.raises(ArtifactRejected, match=r"its signature does not fit|its seal cannot be read"):
        other.import_(bad, SECRET)
    assert_untouched(other)


def add(name: str, data: bytes = b"x"):
    return lambda members: members.update({name: data})


A = key_of("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("../evil.pt2"), "unexpected member '../evil.pt2'"),
        (add("/etc/evil"), "unexpected member '/etc/evil'"),
        (add(f"{A}/../../evil.pt2"), "unexpected member"),
        (add(f"{A}/..\\evil.pt2"), "unexpected member"),
        (add(f"{A}/sub/evil.pt2"), "unexpected member"),
        (add(f"{A}/"), "unexpected member"),
        (add("readme.txt"), "unexpected member 'readme.txt'"),
        (add(f"{A}/extra.pt2"), r"\['extra.pt2'\] is not in its manifest"),
        (add(f"{A}/MID.pt2"), "twice"),
        (add(f"{A}/mid.pt2", b"y" * 1001), "its checksum does not match the manifest"),
        (add(f"{A}/mid.pt2", b"short"), "it has 5 bytes, expected 1001"),
        (lambda members: members.pop(f"{A}/mid.pt2"), "mid.pt2 is missing"),
        (lambda members: members.pop(f"{A}/{MANIFEST}"), "manifest.json is missing"),
        (add(f"{A}/{MANIFEST}", b"{}"), "its own checksum does not match"),
        (lambda members: members.update({f"{A}/{MANIFEST}": members[f"{key_of('b')}/{MANIFEST}"]}), "belongs to another artifact"),
        (add(seal.SEAL, b"x" * 5000), "its seal has 5000 bytes"),
        (lambda members: members.clear(), "it holds no artifact"),
        (lambda members: members.update({f"{A}/{n}.pt2": b"" for n in range(5000)}), "at most 4096 files"),
        (add(f"{A}/huge.pt2", bytes(1_100_000)), "at most 4096 files of 1000000 bytes"),
    ],
)
def test_bad_archives(exported, change, message):
    """Without a signature to protect them: none becomes visible, not even the good artifact beside the bad one."""
    bad = rewrite(exported / "unsigned.zip", exported / "bad.zip", change)
    other = ArtifactStore(exported / "other", max_bytes=1_000_000)
    before = {path.name for path in exported.iterdir()}
    with pytest.raises(ArtifactRejected, match=message):
        other.import_(bad, None, allow_unsigned=True)
    assert_untouched(other)
    assert {path.name for path in exported.iterdir()} - {"other"} == before


def test_bombs_and_broken_zips(exported, units):
    other = ArtifactStore(exported / "other", max_bytes=1_000_000)
    with zipfile.ZipFile(exported / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{A}/mid.pt2", bytes(900_000))
    with pytest.raises(ArtifactRejected, match="is compressed or encrypted"):
        other.import_(exported / "bomb.zip", None, allow_unsigned=True)
    with (exported / "sparse.zip").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ArtifactRejected, match="it has 1099511627776 bytes, and the store holds 1000000"):
        other.import_(exported / "sparse.zip", None, allow_unsigned=True)
    whole = (exported / "signed.zip").read_bytes()
    for cut in [0, 1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        (exported / "cut.zip").write_bytes(whole[:cut])
        with pytest.raises(ArtifactRejected, match="it is not a whole zip"):
            other.import_(exported / "cut.zip", SECRET)
    (exported / "far.zip").write_bytes(whole[:-10] + b"\xff\xff\xff\x7f" + whole[-6:])  # a directory larger than the file
    with pytest.raises(ArtifactRejected, match="it is not a whole zip"):
        other.import_(exported / "far.zip", SECRET)
    with pytest.raises(StoreError, match=r"Could not import.*No such file"):
        other.import_(exported / "absent.zip", SECRET)
    assert_untouched(other)


def test_flipped_bytes_of_an_archive(exported, store):
    """Any one byte: rejected, or it was one that carries nothing and the artifacts are the same."""
    whole = (exported / "signed.zip").read_bytes()
    other = ArtifactStore(exported / "other")
    good = {key: store.get(key).manifest["files"] for key in (key_of("a"), key_of("b"))}
    rejected = 0
    positions = [*range(0, len(whole), 131), *range(len(whole) - 500, len(whole), 9)]
    bad = exported / "flip.zip"
    bad.write_bytes(whole)
    for position in positions:
        flip(bad, position)
        try:
            taken = other.import_(bad, SECRET)
        except ArtifactRejected:
            rejected += 1
            assert_untouched(other)
        else:
            assert {artifact.key: artifact.manifest["files"] for artifact in taken} == good
            other.clear()
        flip(bad, position)
    assert rejected > len(positions) // 2


def test_export_refuses(store, units, tmp_path):
    artifact = store.put(key_of("a"), RECIPE, units)
    with pytest.raises(StoreError, match=r"is not in .* Expected one of its 1 artifacts"):
        store.export([key_of("a"), key_of("b")], tmp_path / "x.zip", SECRET)
    with pytest.raises(StoreError, match="no artifact was named"):
        store.export([], tmp_path / "x.zip", SECRET)
    with pytest.raises(StoreError, match="The signing key has 3 bytes"):
        store.export([key_of("a")], tmp_path / "x.zip", b"abc")
    with pytest.raises(StoreError, match=r"Could not write the export.*No such file"):
        store.export([key_of("a")], tmp_path / "absent" / "x.zip", SECRET)
    flip(artifact.file("mid.pt2"), 3)
    with pytest.raises(ArtifactRejected, match="its checksum does not match"):
        store.export([key_of("a")], tmp_path / "x.zip", SECRET)
    assert not (tmp_path / "x.zip").exists()


def test_keys(tmp_path):
    key, path = seal.generate_key(), tmp_path / "key"
    assert key != seal.generate_key()
    seal.write_key(path, key)
    assert seal.read_key(path) == key
    with pytest.raises(StoreError, match=r"Could not write the signing key.*File exists"):
        seal.write_key(path, key)
    members = {"a/x": "1" * 64, "a/y": "2" * 64}
    signature = seal.sign(key, members)
    assert seal.check(key, dict(reversed(members.items())), signature)
    for other in ({"a/x": "2" * 64, "a/y": "1" * 64}, {"a/x": "1" * 64}, {**members, "a/z": "3" * 64}, {"a/x2": "1" * 64, "a/y": "2" * 64}):
        assert not seal.check(key, other, signature)
    assert not seal.check(bytes(32), members, signature)
    assert not seal.check(key, members, "\udcff\u00e9")
    path.write_bytes(b"not a key")
    with pytest.raises(StoreError, match=r"holds no signing key. Expected 64 hex digits"):
        seal.read_key(path)
    with pytest.raises(StoreError, match=r"Could not read the signing key.*No such file"):
        seal.read_key(tmp_path / "absent")


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_key_open_to_others(tmp_path, mode):
    path = tmp_path / "key"
    seal.write_key(path, SECRET)
    path.chmod(mode)
    with pytest.raises(StoreError, match=rf"is open to others \(owner \d+, mode {mode:04o}\).*chmod 600"):
        seal.read_key(path)


@root_only
def test_key_of_another_user(tmp_path):
    path = tmp_path / "key"
    seal.write_key(path, SECRET)
    os.chown(path, 12345, -1)
    with pytest.raises(StoreError, match=r"is open to others .owner 12345"):
        seal.read_key(path)

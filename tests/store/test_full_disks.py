"""The store on disks that are full or read-only."""

from __future__ import annotations

import os
import subprocess

import pytest

from lib_accel.errors import StoreError
from lib_accel.store import MANIFEST, ArtifactStore
from tests.store.kit import child, finish, hidden, key_of, posix, recipe, root_only


def test_a_store_that_is_used_read_only(store, units, tmp_path):
    artifact = store.put(recipe("a"), units)
    os.utime(artifact.path / MANIFEST, (7, 7))
    frozen = ArtifactStore(store.root, readonly=True)
    assert frozen.get(key_of("a")) == artifact
    assert frozen.list()[0].last_used == 7  # not marked
    assert ArtifactStore(tmp_path / "absent", readonly=True).get(key_of("a")) is None
    actions = [
        lambda: frozen.put(recipe("b"), units),
        lambda: frozen.discard(key_of("a"), "x"),
        frozen.clear,
        lambda: frozen.lock(key_of("a"), 0).__enter__(),
        lambda: frozen.import_(tmp_path / "x.zip", None, True),
    ]
    for action in actions:
        with pytest.raises(StoreError, match=r"is used read-only. Expected a writable store"):
            action()


@root_only
def test_a_read_only_file_system(mounted, units):
    store = ArtifactStore(mounted / "store")
    artifact = store.put(recipe("a"), units)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    assert store.get(key_of("a")) == artifact
    assert store.verify() == [(key_of("a"), None)]
    actions = [
        lambda: store.put(recipe("b"), units),
        lambda: store.discard(key_of("a"), "x"),
        store.clear,
    ]
    for action in [*actions, lambda: store.lock(key_of("b"), 0).__enter__()]:
        with pytest.raises(StoreError, match=r"Read-only file system.*use the store read-only"):
            action()


@root_only
def test_a_full_disk(mounted, units, tmp_path):
    store = ArtifactStore(mounted / "store")
    artifact = store.put(recipe("a"), units)
    big = tmp_path / "big"
    big.write_bytes(bytes(2 << 20))
    with pytest.raises(
        StoreError,
        match=r"Could not store artifact.*No space left.*The disk is full"
        r".*what was stored before is intact",
    ):
        store.put(recipe("b"), {**units, "big.pt2": big})
    assert store.verify() == [(key_of("a"), None)]
    assert hidden(store.root) == []
    roomy = ArtifactStore(tmp_path / "roomy")
    roomy.put(recipe("b"), {"big.pt2": big})
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
def test_a_file_size_limit(store, units):
    """The kernel refuses the write; needs no root."""
    code = """
import resource, signal
from lib_accel.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    store.put(recipe("b"), {"mid.pt2": pathlib.Path(sys.argv[2])})
except StoreError as error:
    assert "file size limit" in str(error), error
    sys.exit(7)
"""
    store.put(recipe("a"), units)
    assert finish(child(code, store.root, units["mid.pt2"])) == 7
    assert store.verify() == [(key_of("a"), None)]
    assert hidden(store.root) == []

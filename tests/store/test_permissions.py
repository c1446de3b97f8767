"""Who may have written an artifact: tried with real modes, owners and links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import MANIFEST, ArtifactStore, signing
from lib_accel.store.cleanup import clean
from lib_accel.store.locks import LOCKS, TEMP, LockBusy
from tests.store.kit import key_of, posix, recipe, root_only

PLACES = ["root", "artifact", "folder", "manifest", "file"]


def place(store: ArtifactStore, units: dict[str, Path], which: str) -> Path:
    """Store an artifact and return one part of it."""
    artifact = store.put(recipe("a"), units)
    return {
        "root": store.root,
        "artifact": artifact.path,
        "folder": artifact.path / "data" / "model",
        "manifest": artifact.path / MANIFEST,
        "file": artifact.file("data/model/down.so"),
    }[which]


@posix
def test_artifacts_are_private_whatever_the_umask(store, units):
    before = os.umask(0)
    try:
        deep = ArtifactStore(store.root / "x" / "y")
        artifact = deep.put(recipe("a"), units)
    finally:
        os.umask(before)
    assert deep.get(key_of("a")) == artifact
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (store.root, deep.root, artifact.path, *sorted(artifact.path.rglob("*")))
    }
    assert list(modes.values()) == [0o755, 0o700, 0o700, 0o700, 0o700, 0o600, 0o600, 0o600]


@posix
@pytest.mark.parametrize("mode", [0o002, 0o020])
@pytest.mark.parametrize("which", PLACES)
def test_what_others_can_write_is_refused(store, units, which, mode):
    path = place(store, units, which)
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(
        ArtifactRejected,
        match=rf"{path} is writable by others \(mode 0\d+\), so ",
    ) as caught:
        store.get(key_of("a"))
    assert caught.value.key == (None if which == "root" else key_of("a"))
    if which == "root":
        with pytest.raises(ArtifactRejected, match="is writable by others"):
            store.put(recipe("b"), units)


@posix
def test_a_parent_folder_that_everyone_can_write_is_refused(store, units, tmp_path):
    store.put(recipe("a"), units)
    tmp_path.chmod(0o777)
    with pytest.raises(
        ArtifactRejected,
        match=rf"in the place of {store.root}, because {tmp_path} is writable by everyone",
    ):
        store.get(key_of("a"))
    assert "is writable by everyone" in (store.list()[0].problem or "")
    tmp_path.chmod(0o1777)  # sticky, like /tmp
    assert store.get(key_of("a")) is not None


@posix
def test_links_are_refused(store, units, tmp_path):
    artifact = store.put(recipe("a"), units)
    artifact.path.rename(tmp_path / "elsewhere")
    artifact.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactRejected, match="is not a real folder"):
        store.get(key_of("a"))
    with pytest.raises(StoreError, match=r"was not removed: it is no folder with a manifest\.json"):
        store.discard(key_of("a"), "a link")
    artifact.path.unlink()
    other = store.put(recipe("a"), units).file("mid.pt2")
    other.unlink()
    other.symlink_to(tmp_path / "elsewhere" / "mid.pt2")
    with pytest.raises(ArtifactRejected, match="is not a real file"):
        store.get(key_of("a"))


@root_only
@pytest.mark.parametrize("which", PLACES)
def test_what_another_user_owns_is_refused(store, units, which):
    os.chown(place(store, units, which), 12345, -1)
    with pytest.raises(ArtifactRejected, match=r"belongs to another user \(id 12345, you are 0\)"):
        store.get(key_of("a"))


@root_only
def test_root_s_artifacts_serve_another_user(mounted, units, tmp_path):
    """With the same key. What that user may not read is a StoreError, for that artifact alone."""
    key, theirs = tmp_path / "key", mounted / "key"
    for file in (key, theirs):
        signing.write_key(file, bytes(32))
    os.chown(theirs, 12345, -1)
    store = ArtifactStore(mounted / "store", key_file=key)
    closed = store.put(recipe("closed"), units)
    artifact = store.put(recipe("a"), units)
    parents = [
        path
        for path in mounted.parents
        if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001
    ]
    modes = {path: path.stat().st_mode for path in parents}
    for path in (*parents, mounted, store.root, artifact.path):
        path.chmod(0o755)
    for path in artifact.path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.seteuid(12345)
    store = ArtifactStore(store.root, key_file=theirs)
    try:
        assert store.get(key_of("a")) == artifact
        problems = {entry.key: entry.problem for entry in store.list()}
        assert problems[artifact.key] is None
        assert "Permission denied" in str(problems[closed.key])
        with pytest.raises(StoreError, match=r"Permission denied.*You need permission"):
            store.put(recipe("b"), units)
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


@root_only
def test_locks_that_the_owner_of_a_parent_folder_has_exchanged_are_not_opened(units, tmp_path):
    """Some versions of filelock empty the file that a link in the place of a lock leads to."""
    theirs, own = tmp_path / "theirs", tmp_path / "thesis"
    theirs.mkdir()
    own.write_text("mine")
    os.chown(theirs, 12345, -1)
    store = ArtifactStore(theirs / "store")
    store.put(recipe("a"), units)
    with store.lock(key_of("b"), 0), pytest.raises(LockBusy), store.lock(key_of("b"), 0):
        pass
    store.root.rename(theirs / "away")
    for folder in (store.root, store.root / LOCKS, store.root / f"{TEMP}{'a' * 16}"):
        folder.mkdir()
        os.chown(folder, 12345, -1)
    (store.root / LOCKS / f"{TEMP}{'a' * 16}.lock").symlink_to(own)
    with pytest.raises(StoreError, match="Others can write in"):
        clean(store.root)
    assert own.read_text() == "mine"

"""Whose code it is: every artifact is signed with the store key, and no other code serves."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from pathlib import Path

import pytest

from lib_accel.config import own_key_file
from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import MANIFEST, ArtifactStore, groups, named, signing
from tests.store.kit import child, finish, key_of, posix, recipe, root_only
from tests.store.test_damage import write_manifest

PUT = 'store.put(recipe("a"), {"x.so": pathlib.Path(sys.argv[2])})\n'


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another user's profile, for this test: without a key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "profile"))
    if own_key_file().parent != tmp_path / "profile" / "sd-webui-accel":
        pytest.skip("the profile of this system has no variable of its own")
    return tmp_path / "profile"


@pytest.fixture
def no_profile(profile: Path):
    """No folder can be made where the key belongs."""
    profile.write_bytes(b"")
    signing._of_this_process.cache_clear()
    yield profile
    signing._of_this_process.cache_clear()


@pytest.fixture
def planted(store: ArtifactStore, units: dict[str, Path], tmp_path: Path) -> ArtifactStore:
    """A store that somebody else filled: the same key, all checksums right, their own signature."""
    theirs = tmp_path / "their.key"
    signing.write_key(theirs, bytes(range(1, 33)))
    ArtifactStore(store.root, key_file=theirs).put(recipe("a"), units)
    return store


@posix
@pytest.mark.parametrize("linked", [False, True])
def test_a_key_that_everyone_can_replace_is_refused(tmp_path: Path, linked: bool):
    """By a link, for example, to a file of the user's own whose text somebody else chose."""
    known, shared = tmp_path / "upload", tmp_path / "shared"
    signing.write_key(known, bytes(range(1, 33)))
    shared.mkdir()
    (shared / "store.key").symlink_to(known)
    named = shared / "store.key"
    if linked:
        named = tmp_path / "link" / "store.key"
        named.parent.symlink_to(shared)
    assert signing.store_key(named) == bytes(range(1, 33))
    shared.chmod(0o1777)
    assert signing.store_key(named) == bytes(range(1, 33))
    shared.chmod(0o777)
    with pytest.raises(StoreError, match="everyone can replace"):
        signing.store_key(named)


def test_code_of_another_key_is_refused_everywhere(planted, units, tmp_path):
    key = key_of("a")
    with pytest.raises(
        ArtifactRejected,
        match=r"is not signed with your store key: its signature "
        r"was made with another key.*import it, name its key",
    ) as caught:
        planted.get(key)
    assert caught.value.key == key
    entry = planted.entry(key)
    assert (entry.artifact, entry.foreign) == (None, True)
    assert [(e.foreign, e.artifact) for e in planted.list()] == [(True, None)]
    assert "not signed with your store key" in str(dict(planted.verify())[key])
    with pytest.raises(ArtifactRejected, match="not signed with your store key"):
        planted.export([key], tmp_path / "x.zip", bytes(32))
    frozen = ArtifactStore(planted.root, readonly=True)
    with pytest.raises(ArtifactRejected, match="not signed with your store key"):
        frozen.get(key)


def test_code_without_a_signature_is_refused(store, units):
    """As an earlier version left it; and one that says `null`, or nothing that a key makes."""
    artifact = store.put(recipe("a"), units)
    whole = json.loads((artifact.path / MANIFEST).read_bytes())
    for signature in (None, "", "0" * 64, "é", whole["signature"].upper(), whole["signature"][:-1]):
        write_manifest(artifact.path / MANIFEST, signature=signature)
        with pytest.raises(ArtifactRejected):
            store.get(artifact.key)
    bare = {name: value for name, value in whole.items() if name not in ("signature", "sha256")}
    (artifact.path / MANIFEST).unlink()
    from lib_accel.store.manifest import encode

    (artifact.path / MANIFEST).write_bytes(encode(bare))
    (artifact.path / MANIFEST).chmod(0o600)
    with pytest.raises(ArtifactRejected, match="it has no signature"):
        store.get(artifact.key)
    assert store.put(recipe("a"), units) == store.get(artifact.key), "it is replaced"


@pytest.mark.parametrize("change", ["recipe", "files", "verdict", "created", "origin"])
def test_the_signature_covers_every_field(store, units, change):
    artifact = store.put(recipe("a"), units, {"compiled": [1.0]})
    old = artifact.manifest
    new = {"recipe": recipe("b"), "files": {}, "verdict": {"compiled": [0.1]}}
    write_manifest(artifact.path / MANIFEST, **{change: new.get(change, f"{old[change]}x")})
    with pytest.raises(ArtifactRejected):
        store.get(artifact.key)


def test_foreign_code_is_replaced_and_one_line_says_nothing_of_each(planted, units, caplog):
    mine = planted.put(recipe("a"), units)
    assert planted.get(key_of("a")) == mine
    assert caplog.text == "", "who asked for the new code says it once for all units"


def test_foreign_code_is_one_group_that_can_be_deleted(planted, units):
    planted.put(recipe("mine"), units)
    theirs = ArtifactStore(planted.root, key_file=planted.root.parent / "their.key")
    theirs.put(recipe("b"), units)
    strange, own = sorted(groups(planted.list()), key=lambda group: group.problem is None)
    assert ({e.key for e in strange.entries}, own.problem) == ({key_of("a"), key_of("b")}, None)
    assert "not signed with your store key" in strange.made_for
    assert named(planted.list(), strange.key) == [strange]
    for entry in strange.entries:
        planted.discard(entry.key, "deleted by the user")
    assert [entry.key for entry in planted.list()] == [key_of("mine")]


def test_import_signs_with_the_key_of_this_user(planted, units, tmp_path):
    theirs = ArtifactStore(planted.root, key_file=tmp_path / "their.key")
    theirs.export([key_of("a")], tmp_path / "x.zip", bytes(32))
    with pytest.raises(ArtifactRejected, match="does not fit your key"):
        planted.import_(tmp_path / "x.zip", bytes(range(32)))
    assert planted.list()[0].foreign
    (taken,) = planted.import_(tmp_path / "x.zip", bytes(32))
    assert planted.get(key_of("a")) == taken, "the foreign one was replaced"


def test_a_shared_store_serves_who_has_its_key(store, units, tmp_path):
    for name in ("builder.key", "server.key"):
        signing.write_key(tmp_path / name, bytes(range(32)))
    made = ArtifactStore(store.root, key_file=tmp_path / "builder.key").put(recipe("a"), units)
    server = ArtifactStore(store.root, readonly=True, key_file=tmp_path / "server.key")
    assert server.get(made.key) == made
    (tmp_path / "server.key").unlink()
    for look in (server.get, server.contains):
        if look == server.get:
            with pytest.raises(
                StoreError, match=r"Could not read the key file.* does not exist. Check the name"
            ):
                look(made.key)
    with pytest.raises(StoreError, match="Could not read the key file"):
        server.check()
    assert "Could not read the key file" in str(server.list()[0].problem)
    assert not (tmp_path / "server.key").exists(), "a key that the host names is never made"


@posix
def test_the_own_key_is_made_at_the_first_put_and_private(profile, store, units):
    store.list()
    store.check()
    assert store.get(key_of("a")) is None
    assert not profile.exists()
    before = os.umask(0)
    try:
        store.put(recipe("a"), units)
    finally:
        os.umask(before)
    file = profile / "sd-webui-accel" / "store.key"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (profile, file.parent, file)]
    assert modes == [0o755, 0o700, 0o600]
    assert [path.name for path in file.parent.iterdir()] == ["store.key"]
    assert store.root not in file.parents
    key = file.read_bytes()
    store.put(recipe("b"), units)
    assert file.read_bytes() == key


@posix
def test_a_key_file_that_others_could_have_made_or_read_is_refused(profile, store, units, tmp_path):
    store.put(recipe("a"), units)
    file = profile / "sd-webui-accel" / "store.key"
    for mode in (0o640, 0o604, 0o666):
        file.chmod(mode)
        with pytest.raises(StoreError, match=r"is open to others .*chmod 600"):
            store.get(key_of("a"))
        assert "is open to others" in str(store.list()[0].problem)
        with pytest.raises(StoreError, match="is open to others"):
            store.check()
    file.chmod(0o600)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is not a real file"):
        store.get(key_of("a"))
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(StoreError, match="is not a real file"):
        store.get(key_of("a"))
    file.unlink()
    file.write_bytes(b"short")
    file.chmod(0o600)
    with pytest.raises(StoreError, match=r"holds no key\. Expected 64 hex digits"):
        store.get(key_of("a"))


@root_only
def test_a_key_file_of_another_user_is_refused(profile, store, units):
    store.put(recipe("a"), units)
    os.chown(profile / "sd-webui-accel" / "store.key", 12345, -1)
    with pytest.raises(StoreError, match=r"is open to others .owner 12345"):
        store.get(key_of("a"))


def test_processes_that_make_the_key_at_once_agree(profile, store, units):
    code = (
        "print('ready', flush=True); sys.stdin.read(1)\n"
        "store.put(recipe(sys.argv[3]), {'x.so': pathlib.Path(sys.argv[2])})\n"
    )
    children = [child(code, store.root, units["mid.pt2"], number) for number in range(4)]
    for each in children:
        each.stdout.readline()
    for each in children:
        each.stdin.write("x")
        each.stdin.flush()
    assert [finish(each) for each in children] == [0] * 4
    assert [problem for _, problem in store.verify()] == [None] * 4
    assert [path.name for path in (profile / "sd-webui-accel").iterdir()] == ["store.key"]


def test_without_a_profile_code_serves_in_this_process_alone(no_profile, store, units, caplog):
    caplog.set_level(logging.WARNING)
    artifact = store.put(recipe("a"), units)
    store.put(recipe("b"), units)
    assert store.get(key_of("a")) == artifact
    assert ArtifactStore(store.root).get(key_of("a")) == artifact
    (line,) = [r.message for r in caplog.records]
    assert "No key can be kept in your profile" in line
    assert "--accel-store-key" in line
    code = (
        "from lib_accel.errors import ArtifactRejected\n"
        "try:\n    store.get(key_of('a'))\n"
        "except ArtifactRejected as error:\n    assert 'another key' in str(error)\n"
        "else:\n    sys.exit(7)\n" + PUT + "assert store.get(key_of('a'))\n"
    )
    assert finish(child(code, store.root, units["mid.pt2"])) == 0
    with pytest.raises(ArtifactRejected, match="another key"):
        store.get(key_of("a"))  # it is the other process's now


def test_without_a_profile_nothing_is_imported(no_profile, store, units, tmp_path):
    store.put(recipe("a"), units)
    store.export([key_of("a")], tmp_path / "x.zip", None)
    with pytest.raises(StoreError, match=r"Could not make the key file"):
        store.import_(tmp_path / "x.zip", None, allow_unsigned=True)


@posix
def test_nobody_s_home_is_named(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match=r"'~nobody-here/x' names no place.*Expected a path"):
        ArtifactStore(Path("~nobody-here/x"))
    with pytest.raises(StoreError, match="names no place"):
        ArtifactStore(Path("a\0b"))


def test_a_copied_store_serves_the_same_user(store, units, tmp_path):
    artifact = store.put(recipe("a"), units)
    shutil.copytree(store.root, tmp_path / "moved")
    assert ArtifactStore(tmp_path / "moved").get(key_of("a")).manifest == artifact.manifest

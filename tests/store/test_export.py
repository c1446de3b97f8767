"""Exports and their signatures: what is accepted, and everything that is not."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import MANIFEST, ArtifactStore, signing
from lib_accel.store.exchange import archive as export
from tests.store.kit import flip, hidden, key_of, posix, recipe, root_only

SECRET = bytes(range(32))


@pytest.fixture
def exported(store, units, tmp_path) -> Path:
    for name in "ab":
        store.put(recipe(name), units, verdict={"seconds": 1})
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
    assert (
        sorted(other.verify())
        == sorted(store.verify())
        == [(artifact.key, None) for artifact in taken]
    )
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


@pytest.mark.parametrize(
    "change", [forge, drop_one, lambda members: members.update({export.SEAL: b"{}"})]
)
def test_a_changed_signed_archive(exported, change):
    bad = rewrite(exported / "signed.zip", exported / "bad.zip", change)
    other = ArtifactStore(exported / "other")
    with pytest.raises(
        ArtifactRejected, match=r"its signature does not fit|its seal cannot be read"
    ):
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
        (add(f"{A}/.sub/evil.pt2"), "unexpected member"),
        (add(f"{A}/data//evil.pt2"), "unexpected member"),
        (add(f"{A}/data/./evil.pt2"), "unexpected member"),
        (add(f"{A}/data/../../evil.pt2"), "unexpected member"),
        (add(f"{A}/{'a/' * 8}evil.pt2"), "unexpected member"),
        (add(f"{A}/data/model/evil.so"), r"\['data/model/evil.so'\] is not in its manifest"),
        (add(f"{A}/mid.pt2/evil.so"), "a file and a folder of the same name"),
        (add(f"{A}/DATA/evil.so"), "a file and a folder of the same name"),
        (add(f"{A}/"), "unexpected member"),
        (add("readme.txt"), "unexpected member 'readme.txt'"),
        (add(f"{A}/extra.pt2"), r"\['extra.pt2'\] is not in its manifest"),
        (add(f"{A}/MID.pt2"), "twice"),
        (add(f"{A}/mid.pt2", b"y" * 1001), "its checksum does not match the manifest"),
        (add(f"{A}/mid.pt2", b"short"), "it has 5 bytes, expected 1001"),
        (lambda members: members.pop(f"{A}/mid.pt2"), "mid.pt2 is missing"),
        (lambda members: members.pop(f"{A}/{MANIFEST}"), "manifest.json is missing"),
        (add(f"{A}/{MANIFEST}", b"{}"), "its own checksum does not match"),
        (
            lambda members: members.update(
                {f"{A}/{MANIFEST}": members[f"{key_of('b')}/{MANIFEST}"]}
            ),
            "belongs to another artifact",
        ),
        (add(export.SEAL, b"x" * 5000), "its seal has 5000 bytes"),
        (lambda members: members.clear(), "it holds no artifact"),
        (
            lambda members: members.update({f"{A}/{n}.pt2": b"" for n in range(20000)}),
            "at most 16384 files",
        ),
        (add(f"{A}/huge.pt2", bytes(1_100_000)), "at most 16384 files of 1000000 bytes"),
    ],
)
def test_bad_archives(exported, change, message):
    """Unsigned archives: nothing becomes visible, not even the good artifact beside the bad one."""
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
    with pytest.raises(
        ArtifactRejected, match="it has 1099511627776 bytes, and the store holds 1000000"
    ):
        other.import_(exported / "sparse.zip", None, allow_unsigned=True)
    whole = (exported / "signed.zip").read_bytes()
    for cut in [0, 1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        (exported / "cut.zip").write_bytes(whole[:cut])
        with pytest.raises(ArtifactRejected, match="it is not a whole zip"):
            other.import_(exported / "cut.zip", SECRET)
    (exported / "far.zip").write_bytes(
        whole[:-10] + b"\xff\xff\xff\x7f" + whole[-6:]
    )  # a directory larger than the file
    with pytest.raises(ArtifactRejected, match="a directory of 2147483647 bytes"):
        other.import_(exported / "far.zip", SECRET)
    with pytest.raises(StoreError, match=r"Could not import.* does not exist. Check the name"):
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
    artifact = store.put(recipe("a"), units)
    with pytest.raises(StoreError, match=r"is not in .* Expected one that is"):
        store.export([key_of("a"), key_of("b")], tmp_path / "x.zip", SECRET)
    with pytest.raises(StoreError, match="no artifact was named"):
        store.export([], tmp_path / "x.zip", SECRET)
    with pytest.raises(StoreError, match="The signing key has 3 bytes"):
        store.export([key_of("a")], tmp_path / "x.zip", b"abc")
    with pytest.raises(StoreError, match=r"export.*the folder .* does not exist. Check the name"):
        store.export([key_of("a")], tmp_path / "absent" / "x.zip", SECRET)
    flip(artifact.file("mid.pt2"), 3)
    with pytest.raises(ArtifactRejected, match="its checksum does not match"):
        store.export([key_of("a")], tmp_path / "x.zip", SECRET)
    assert not (tmp_path / "x.zip").exists()


def test_keys(tmp_path):
    key, path = signing.generate_key(), tmp_path / "key"
    assert key != signing.generate_key()
    signing.write_key(path, key)
    assert signing.read_key(path) == key
    with pytest.raises(
        StoreError, match=r"Could not write the key file.* exists already. Choose another name"
    ):
        signing.write_key(path, key)
    signature = signing.sign(key, "export", b"text")
    for other in (
        (key, "artifact", b"text"),
        (key, "export", b"texts"),
        (bytes(32), "export", b"text"),
    ):
        assert signing.sign(*other) != signature
    path.write_bytes(b"not a key")
    with pytest.raises(StoreError, match=r"holds no key. Expected 64 hex digits"):
        signing.read_key(path)
    with pytest.raises(
        StoreError, match=r"Could not read the key file.* does not exist. Check the name"
    ):
        signing.read_key(tmp_path / "absent")


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_key_open_to_others(tmp_path, mode):
    path = tmp_path / "key"
    signing.write_key(path, SECRET)
    path.chmod(mode)
    with pytest.raises(StoreError, match=rf"is open to others \(mode {mode:04o}\).*chmod 600"):
        signing.read_key(path)


@posix
def test_no_rights_are_changed_of_a_file_that_is_no_key(tmp_path):
    """Somebody names a file of the system by mistake: /etc/passwd has to stay readable."""
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0:root:/root:/bin/bash\n")
    path.chmod(0o644)
    with pytest.raises(StoreError, match="holds no key") as refused:
        signing.read_key(path)
    assert "chmod" not in str(refused.value)


@root_only
def test_key_of_another_user(tmp_path):
    path = tmp_path / "key"
    signing.write_key(path, SECRET)
    os.chown(path, 12345, -1)
    with pytest.raises(StoreError, match=r"belongs to another user .id 12345"):
        signing.read_key(path)

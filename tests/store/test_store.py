"""The artifact store: putting, finding, room and damage, with real files. Permissions, disks and processes: test_faults.py."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store.store import MANIFEST, ArtifactStore
from tests.store.kit import RECIPE, flip, hidden, key_of

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
    assert [got.file(name).read_bytes() for name in units] == [
        path.read_bytes() for path in units.values()
    ]
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


@pytest.mark.parametrize(
    "name",
    [
        "../x.pt2",
        "a/b.pt2",
        "a\\b.pt2",
        MANIFEST,
        "Manifest.JSON",
        ".hidden",
        "nul.pt2",
        "CON",
        "x.",
        "",
    ],
)
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


def test_an_artifact_tells_of_itself(store, units):
    verdict = {"units": {"down": {"compiled": [1e-7]}}}
    artifact = store.put(key_of("a"), RECIPE, units, verdict)
    assert artifact.recipe == RECIPE
    assert artifact.verdict == verdict
    assert store.put(key_of("b"), RECIPE, units).verdict is None


def test_contains(store, units):
    assert not store.contains(key_of("a"))
    artifact = store.put(key_of("a"), RECIPE, units)
    assert store.contains(key_of("a"))
    (artifact.path / MANIFEST).unlink()
    assert store.contains(key_of("a"))  # damaged, so there is something to discard
    store.discard(key_of("a"), "damaged")
    assert not store.contains(key_of("a"))
    with pytest.raises(StoreError, match="is not an artifact key"):
        store.contains("a")


def test_entry_looks_at_one_key(store, units, monkeypatch):
    assert store.entry(key_of("a")) is None
    artifact = store.put(key_of("a"), RECIPE, units)
    store.put(key_of("b"), RECIPE, units)
    everything = {entry.key: entry for entry in store.list()}
    monkeypatch.setattr(store, "_scan", lambda: pytest.fail("it looked at the others"))
    assert store.entry(key_of("a")) == everything[key_of("a")]
    assert store.entry(key_of("a")).artifact == artifact
    artifact.file("mid.pt2").unlink()
    damaged = store.entry(key_of("a"))
    assert (damaged.artifact, "mid.pt2 is missing" in damaged.problem) == (None, True)


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    store = ArtifactStore(tmp_path / "store")
    for look in (store.contains, store.entry, store.get):
        with pytest.raises(StoreError, match=r"Could not .*Not a directory.*choose another folder"):
            look(key_of("a"))


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
    os.utime(
        store.root / key_of("new") / MANIFEST, (1, 1)
    )  # the oldest by its clock, and yet just put
    tiny.put(key_of("new"), RECIPE, units)
    assert {entry.key for entry in tiny.list()} == {key_of("new")}


# Damage


def test_every_byte_of_the_manifest_counts(store, units):
    manifest = store.put(key_of("a"), RECIPE, units).path / MANIFEST
    good = manifest.read_bytes()
    for position in range(len(good)):
        flip(manifest, position)
        with pytest.raises(
            ArtifactRejected, match=r"manifest.json is damaged.*Discard this artifact"
        ):
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
    with pytest.raises(
        ArtifactRejected,
        match=rf"belongs to another artifact .{key_of('b')[:12]}, expected {key_of('c')[:12]}",
    ):
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
        (
            {"files": {"../../x": {"sha256": "0" * 64, "bytes": 1}}},
            "its entry for '../../x' is wrong",
        ),
        ({"files": {"x.pt2": {"sha256": "0", "bytes": 1}}}, "its entry for 'x.pt2' is wrong"),
        (
            {"files": {"x.pt2": {"sha256": "0" * 64, "bytes": "1"}}},
            "its entry for 'x.pt2' is wrong",
        ),
    ],
)
def test_strange_manifests(store, units, changes, message):
    artifact = store.put(key_of("a"), RECIPE, units)
    write_manifest(artifact.path / MANIFEST)
    assert store.get(key_of("a")) == artifact  # the helper itself makes a good one
    write_manifest(artifact.path / MANIFEST, **changes)
    with pytest.raises(ArtifactRejected, match=message):
        store.get(key_of("a"))

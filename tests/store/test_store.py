"""The artifact store: put, find, list, discard and evict, with real files."""

from __future__ import annotations

import os

import pytest

from lib_accel.errors import StoreError
from lib_accel.store import MANIFEST, ArtifactStore
from tests.store.kit import flip, hidden, key_of, recipe

# Storing and finding again


def test_round_trip(store, units):
    key = key_of("a")
    assert store.get(key) is None
    assert not store.root.exists()
    verdict = {"rel_error": [1e-3, 2e-3], "psnr": 90.5}
    put = store.put(recipe("a"), units, verdict)
    got = store.get(key)
    assert got == put
    assert got.files == ("data/model/down.so", "mid.pt2")
    assert got.bytes == 2001
    assert [got.file(name).read_bytes() for name in units] == [
        path.read_bytes() for path in units.values()
    ]
    assert got.recipe == recipe("a")
    assert got.manifest["origin"] == "built here"
    assert got.verdict == verdict
    assert [entry.key for entry in store.list()] == [key]
    assert sorted(path.name for path in store.root.iterdir()) == [".accel-store", ".locks", key]
    assert list((store.root / ".locks").iterdir()) == []
    with pytest.raises(
        StoreError, match=r"has no file 'up.pt2'. It holds: data/model/down.so, mid.pt2"
    ):
        got.file("up.pt2")


def test_what_is_there_wins_unless_it_is_damaged(store, units):
    first = store.put(recipe("a"), units, {"n": 1})
    assert store.put(recipe("a"), units, {"n": 2}).verdict == {"n": 1}
    flip(first.file("mid.pt2"), 5)
    assert store.put(recipe("a"), units, {"n": 3}).verdict == {"n": 3}
    assert store.get(key_of("a")).verdict == {"n": 3}


@pytest.mark.parametrize("key", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_bad_keys(store, key):
    with pytest.raises(StoreError, match=r"is not an artifact key. Expected 64 lowercase hex"):
        store.get(key)


@pytest.mark.parametrize(
    "name",
    [
        "../x.pt2",
        "/b.pt2",
        "a//b.pt2",
        "a/./b.pt2",
        "a/../b.pt2",
        "a/",
        "a/.b/c.pt2",
        "a/nul/c.pt2",
        "a/" * 8 + "b.pt2",
        "a" * 201,
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
        store.put(recipe("a"), {name: units["mid.pt2"]})


def test_bad_puts(store, units):
    with pytest.raises(StoreError, match="has no files"):
        store.put(recipe("a"), {})
    with pytest.raises(StoreError, match="differ only in case"):
        store.put(recipe("a"), {"A.pt2": units["mid.pt2"], "a.pt2": units["mid.pt2"]})
    with pytest.raises(StoreError, match="differ only in case"):
        store.put(recipe("a"), {"a/x.pt2": units["mid.pt2"], "A/y.pt2": units["mid.pt2"]})
    with pytest.raises(StoreError, match="differ only in case"):
        store.put(recipe("a"), {"a": units["mid.pt2"], "a/y.pt2": units["mid.pt2"]})
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        store.put({"dtype": object()}, units)
    with pytest.raises(StoreError, match="its recipe cannot be right"):
        store.put({**recipe("a"), "machine": None}, units)
    with pytest.raises(StoreError, match="its verdict cannot be right"):
        store.put(recipe("a"), units, {"units": {"down": {"compiled": [1e-7]}}})
    with pytest.raises(
        StoreError, match=r"Could not store artifact.*absent does not exist. Check the name"
    ):
        store.put(recipe("a"), {"a.pt2": units["mid.pt2"].with_name("absent")})
    assert store.list() == []
    assert hidden(store.root) == []
    with pytest.raises(StoreError, match="Expected more than 0"):
        ArtifactStore(store.root, max_bytes=0)


def test_discard_and_clear(store, units, caplog):
    for number in range(3):
        store.put(recipe(number), units)
    store.discard(key_of(0), "inaccurate")
    assert "Discarded artifact" in caplog.text
    assert "inaccurate" in caplog.text
    store.discard(key_of(0), "again")  # absent: nothing to do
    assert store.get(key_of(0)) is None
    taken = sum(entry.bytes for entry in store.list())
    trash = store.root / ".trash-0123456789abcdef"
    trash.mkdir()  # what a process leaves that is killed while it discards
    (trash / "mid.pt2").write_bytes(bytes(77))
    assert store.clear() == taken + 77 > 2 * 2001
    assert store.list() == []
    assert hidden(store.root) == []


def test_an_artifact_keeps_its_recipe_and_verdict(store, units):
    verdict = {"compiled": [1e-7], "eager": [1e-7]}
    artifact = store.put(recipe("a"), units, verdict)
    assert artifact.recipe == recipe("a")
    assert artifact.verdict == verdict
    assert store.put(recipe("b"), units).verdict is None


def test_contains(store, units):
    assert not store.contains(key_of("a"))
    artifact = store.put(recipe("a"), units)
    assert store.contains(key_of("a"))
    (artifact.path / MANIFEST).write_bytes(b"")
    assert store.contains(key_of("a"))  # damaged, so there is something to discard
    store.discard(key_of("a"), "damaged")
    assert not store.contains(key_of("a"))
    with pytest.raises(StoreError, match="is not an artifact key"):
        store.contains("a")


def test_entry_looks_at_one_key(store, units, monkeypatch):
    assert store.entry(key_of("a")) is None
    artifact = store.put(recipe("a"), units)
    store.put(recipe("b"), units)
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
    assert store.entry(key_of("a")) is None
    for look in (store.contains, store.get):
        with pytest.raises(StoreError, match=r"Could not .*Not a directory.*is a file\. Choose"):
            look(key_of("a"))


# The limit


def test_the_least_recently_used_goes_first(store, units):
    for number in range(4):
        store.put(recipe(number), units)
        os.utime(store.root / key_of(number) / MANIFEST, (number, number))
    assert store.get(key_of(0)) is not None  # now 1 is the oldest
    assert [entry.key for entry in store.list()] == [key_of(number) for number in (1, 2, 3, 0)]
    small = ArtifactStore(store.root, max_bytes=3 * store.list()[0].bytes + 100)
    small.put(recipe(9), units)
    assert {entry.key for entry in small.list()} == {key_of(3), key_of(0), key_of(9)}
    assert sum(entry.bytes for entry in small.list()) <= small.max_bytes


def test_eviction_spares_the_new_one_and_the_locked(store, units):
    store.put(recipe("locked"), units)
    store.put(recipe("free"), units)
    tiny = ArtifactStore(store.root, max_bytes=1)
    with store.lock(key_of("locked"), 0):
        tiny.put(recipe("new"), units)
        assert {entry.key for entry in tiny.list()} == {key_of("locked"), key_of("new")}
    os.utime(
        store.root / key_of("new") / MANIFEST, (1, 1)
    )  # the oldest by its clock, and yet just put
    tiny.put(recipe("new"), units)
    assert {entry.key for entry in tiny.list()} == {key_of("new")}


def test_eviction_spares_what_the_caller_keeps(store, units):
    for name in ("first", "second", "other"):
        store.put(recipe(name), units)
    tiny = ArtifactStore(store.root, max_bytes=1)
    tiny.put(recipe("third"), units, keep=[key_of("first"), key_of("second")])
    left = {entry.key for entry in tiny.list()}
    assert left == {key_of("first"), key_of("second"), key_of("third")}

"""Artifacts that are damaged, or whole and senseless: found, refused and replaced."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected
from lib_accel.store import MANIFEST, groups
from tests.store.kit import flip, key_of, recipe


def test_every_byte_of_the_manifest_counts(store, units):
    manifest = store.put(recipe("a"), units).path / MANIFEST
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
    artifact = store.put(recipe("a"), units)
    flip(artifact.file("data/model/down.so"), position)
    with pytest.raises(ArtifactRejected, match=r"down.so is damaged: its checksum does not match"):
        store.get(key_of("a"))
    assert store.list()[0].problem is None  # cheap: sizes only
    assert "checksum" in (dict(store.verify())[key_of("a")] or "")


def test_other_damage(store, units):
    artifact = store.put(recipe("a"), units)
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
    store.put(recipe("b"), units).path.rename(store.root / key_of("c"))
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


def changed(part: str, **fields: object):
    """Return a change of some fields of the manifest's recipe, verdict or files."""
    return lambda manifest: {part: {**manifest[part], **fields}}


SENSELESS = {
    "another format": ({"format": 1}, "it has format 1, this version reads 2"),
    "a format that equals 2": ({"format": 2.0}, "it has format 2.0, this version reads 2"),
    "no recipe": ({"recipe": None}, "these fields are missing or wrong: recipe"),
    "an empty recipe": ({"recipe": {}}, "missing or wrong: recipe"),
    "a recipe of another unit": (changed("recipe", unit={"layer": "Output"}), "not the sha256"),
    "a recipe of another torch": (changed("recipe", machine={"torch": "2.9.1"}), "not the sha256"),
    "a machine that is null": (changed("recipe", machine=None), "missing or wrong: recipe"),
    "a machine that is a list": (changed("recipe", machine=[1]), "missing or wrong: recipe"),
    "a machine of lists": (changed("recipe", machine={"torch": []}), "missing or wrong: recipe"),
    "a unit that is null": (changed("recipe", unit=None), "missing or wrong: recipe"),
    "a dtype that is a number": (changed("recipe", dtype=16), "missing or wrong: recipe"),
    "a verdict that is a list": ({"verdict": [1]}, "missing or wrong: verdict"),
    "a verdict of lists of lists": ({"verdict": {"units": [[1]]}}, "missing or wrong: verdict"),
    "a verdict of words": ({"verdict": {"compiled": "good"}}, "missing or wrong: verdict"),
    "an origin that is a list": ({"origin": []}, "missing or wrong: origin"),
    "an origin for terminals": ({"origin": "\x1b[31m"}, "missing or wrong: origin"),
    "no files": ({"files": {}}, "it lists no files"),
    "files that are a list": ({"files": ["x.pt2"]}, "missing or wrong: files"),
    "a file elsewhere": (
        {"files": {"../../x": {"sha256": "0" * 64, "bytes": 1}}},
        "its entry for '../../x' is wrong",
    ),
    "a file called like the manifest": (
        changed("files", **{"Manifest.json": {"sha256": "0" * 64, "bytes": 1}}),
        "its entry for 'Manifest.json' is wrong",
    ),
    "files that differ in case": (
        changed("files", **{"MID.pt2": {"sha256": "0" * 64, "bytes": 1}}),
        "its files differ only in case",
    ),
    "a short checksum": (
        {"files": {"x.pt2": {"sha256": "0", "bytes": 1}}},
        "its entry for 'x.pt2' is wrong",
    ),
    "a size that is text": (
        {"files": {"x.pt2": {"sha256": "0" * 64, "bytes": "1"}}},
        "its entry for 'x.pt2' is wrong",
    ),
    "a size that is true": (
        {"files": {"x.pt2": {"sha256": "0" * 64, "bytes": True}}},
        "its entry for 'x.pt2' is wrong",
    ),
}


@pytest.mark.parametrize(("changes", "message"), SENSELESS.values(), ids=SENSELESS)
def test_a_whole_manifest_without_sense_is_refused(store, units, changes, message):
    """Like a damaged one; and it stops no other artifact."""
    artifact = store.put(recipe("a"), units)
    good = store.put(recipe("b"), units)
    path = artifact.path / MANIFEST
    write_manifest(path)
    assert store.get(key_of("a")) == artifact  # the helper itself makes a good one
    changes = changes(json.loads(path.read_bytes())) if callable(changes) else changes
    write_manifest(path, **changes)
    with pytest.raises(ArtifactRejected, match=message) as caught:
        store.get(key_of("a"))
    assert caught.value.key == key_of("a")
    found = {entry.key: entry for entry in store.list()}
    assert (found[good.key].artifact, found[good.key].problem) == (good, None)
    assert message in str(found[artifact.key].problem)
    assert {key: bool(problem) for key, problem in store.verify()} == {
        good.key: False,
        artifact.key: True,
    }
    assert len(groups(store.list())) == 2
    assert store.put(recipe("a"), units).recipe == recipe("a"), "a new one takes its place"


@pytest.mark.parametrize("name", ["evil.so", "data/model/evil.so", "empty/folder"])
def test_a_file_beside_those_of_the_manifest_is_refused(store, units, name):
    """Torch loads whatever library it finds in the folder."""
    extra = store.put(recipe("a"), units).path / name
    extra.parent.mkdir(exist_ok=True)
    if name.endswith(".so"):
        extra.write_bytes(b"code")
    with pytest.raises(ArtifactRejected, match=r"'\] is not in its manifest"):
        store.get(key_of("a"))

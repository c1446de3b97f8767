"""Artifacts that came unchecked: the note of a check, and who replaces whom."""

from __future__ import annotations

import pytest

from lib_accel.errors import ArtifactRejected, StoreError
from lib_accel.store import ArtifactStore, PublicKeys, signing
from lib_accel.store.exchange.public_keys import write_pair
from lib_accel.store.manifest import UNTUNED
from tests.store.kit import key_of, recipe

KEY, VERDICT = key_of("a"), {"compiled": [1e-7], "eager": [1e-7]}


def noted(store: ArtifactStore) -> object:
    """Note a check of the artifact; return what the store has of it then."""
    artifact = store.get(KEY)
    assert artifact is not None
    assert artifact.verdict is None
    store.record(artifact, VERDICT)
    after = store.get(KEY)
    assert after is not None
    assert after.checksum == artifact.checksum
    return after.verdict


def test_a_check_is_noted_and_the_origin_stays(units, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    store.put(recipe("a"), units, origin=f"built elsewhere{UNTUNED}")
    assert noted(store) == VERDICT
    (entry,) = store.list()
    assert entry.problem is None
    assert entry.artifact is not None
    assert entry.artifact.manifest["origin"] == f"built elsewhere{UNTUNED}"


def test_a_check_is_not_noted_where_nothing_may_be_written(units, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    artifact = store.put(recipe("a"), units)
    with pytest.raises(StoreError, match=r"note the check of artifact .* is used read-only"):
        ArtifactStore(store.root, readonly=True).record(artifact, VERDICT)
    assert artifact == store.get(KEY)


def test_checked_code_replaces_unchecked_code_and_not_the_other_way(units, tmp_path):
    store, name = ArtifactStore(tmp_path / "store"), next(iter(units))
    store.put(recipe("a"), units)
    others = {**units, name: tmp_path / "other"}
    (tmp_path / "other").write_bytes(b"other code")
    assert store.put(recipe("a"), others).checksum != store.put(recipe("b"), others).checksum
    checked = store.put(recipe("a"), others, VERDICT)
    assert checked.checksum == store.put(recipe("b"), others).checksum
    assert store.put(recipe("a"), units) == checked


def test_the_key_of_its_maker_can_be_revoked_after_the_check(units, tmp_path):
    pytest.importorskip("cryptography")
    line = write_pair(tmp_path / "builder.key")
    signing.write_key(tmp_path / "theirs", bytes(range(1, 33)))
    signer = PublicKeys(signer=tmp_path / "builder.key")
    made = ArtifactStore(tmp_path / "theirs.store", key_file=tmp_path / "theirs", public=signer)
    made.put(recipe("a"), units, origin=f"built elsewhere{UNTUNED}")
    made.export([KEY], tmp_path / "sent.zip", None)
    keys = tmp_path / "accel-keys.txt"
    keys.write_text(f"{line}\n")
    store = ArtifactStore(tmp_path / "store", public=PublicKeys(keys))
    (taken,) = store.import_(tmp_path / "sent.zip", None)
    assert taken.manifest["origin"] == "imported from sent.zip, signed by builder, untuned"
    assert noted(store) == VERDICT
    keys.write_text(f"{line}\nrevoked {line.split()[1]}\n")
    with pytest.raises(ArtifactRejected, match="the key that signed it is revoked"):
        store.get(KEY)


def test_the_builder_signs_what_it_has_checked_later(units, tmp_path):
    pytest.importorskip("cryptography")
    line = write_pair(tmp_path / "builder.key")
    store = ArtifactStore(tmp_path / "own", public=PublicKeys(signer=tmp_path / "builder.key"))
    store.put(recipe("a"), units)
    assert noted(store) == VERDICT
    store.export([KEY], tmp_path / "sent.zip", None)
    (tmp_path / "accel-keys.txt").write_text(f"{line}\n")
    there = ArtifactStore(tmp_path / "there", public=PublicKeys(tmp_path / "accel-keys.txt"))
    assert there.import_(tmp_path / "sent.zip", None)[0].verdict == VERDICT

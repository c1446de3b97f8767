"""Artifacts that must not serve: damaged, made for another machine, or never checked."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.errors import ArtifactRejected
from lib_accel.store import MANIFEST, Artifact, ArtifactStore

from .. import tiny
from .kit import OUTPUT, started
from .processes import PATIENCE_S

KEY = tiny.target().keys[OUTPUT]


def put_again(store: ArtifactStore, artifact: Artifact, **changes: Any) -> None:
    """Store the artifact with another `recipe` or `verdict`, or with other bytes in its library."""
    copy = Path(shutil.copytree(artifact.path, store.root.parent / "copied"))
    files = {name: copy / name for name in artifact.files}
    if code := changes.get("code"):
        files[library(artifact)].write_bytes(code)
    store.discard(artifact.key, "replaced by a test")
    recipe, verdict = changes.get("recipe", artifact.recipe), artifact.verdict
    made_with = changes.get("made_with")
    store.put(recipe, files, changes.get("verdict", verdict), made_with=made_with)
    shutil.rmtree(copy)


def library(artifact: Artifact) -> str:
    return next(name for name in artifact.files if name.endswith((".so", ".pyd")))


def flip(artifact: Artifact) -> None:
    path = artifact.file(library(artifact))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[ArtifactStore, Artifact], Any], str]] = {
    "a flipped bit": (lambda s, a: flip(a), "checksum does not match"),
    "a missing file": (lambda s, a: a.file(a.files[1]).unlink(), "is missing"),
    "a shorter file": (
        lambda s, a: a.file(a.files[1]).write_bytes(b"PK"),
        "it has 2 bytes, expected",
    ),
    "a torn manifest": (
        lambda s, a: (a.path / MANIFEST).write_bytes(b'{"format": 1'),
        "its own checksum does not match",
    ),
    "a verdict that it did not pass": (
        lambda s, a: put_again(s, a, verdict={"compiled": [0.5], "eager": [1e-6]}),
        "has no accuracy check for Output 64 -> 4",
    ),
    "code for a newer processor": (
        lambda s, a: put_again(s, a, made_with={"cpu": "x86-64-v9"}),
        "its code is for processors with x86-64-v9",
    ),
    "no code in it": (lambda s, a: put_again(s, a, code=b"no library"), "does not load"),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD)
def test_a_bad_artifact_never_serves(
    own_store: Path, spoil: Callable[[ArtifactStore, Artifact], Any], words: str
):
    """A read-only store keeps it, another store loses it; the other units stay."""
    store, given = ArtifactStore(own_store), tiny.inputs()
    good = store.get(KEY)
    assert good is not None
    kept = ArtifactStore(own_store.parent / "kept")
    kept.put(good.recipe, {name: good.file(name) for name in good.files}, good.verdict)
    spoil(store, good)

    engine = tiny.engine(own_store, store_readonly=True, backend="aoti")
    engine.prepare()
    assert engine.status.state == "fallback"
    assert words in str(engine.status.reason)
    tiny.check(engine, given)
    assert store.contains(KEY)

    engine = tiny.engine(own_store, compile=False)
    engine.prepare()
    assert engine.status.state == "eager"
    assert words in str(engine.status.reason)
    assert "1 of 5 compiled units are missing and compiling is switched off" in str(
        engine.status.reason
    )
    assert {entry.key for entry in store.list()} == {*tiny.target().keys.values()} - {KEY}
    tiny.check(engine, given)
    assert engine.counters.accelerated_calls == 0

    again = kept.get(KEY)
    assert again is not None
    store.put(again.recipe, {name: again.file(name) for name in again.files}, again.verdict)
    tiny.check(tiny.ready(own_store), given)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another torch": (
        {"torch": "2.9.1"},
        f"code in the store was made for torch '2.9.1', here '{torch.__version__}'",
    ),
    "another GPU": (
        {"device_type": "cuda", "capability": "9.0"},
        "capability '9.0', here",
    ),
}


@pytest.mark.parametrize(("machine", "words"), OTHERS.values(), ids=OTHERS)
def test_code_made_for_another_machine_is_named_and_never_loaded(
    own_store: Path, machine: dict[str, Any], words: str
):
    store = ArtifactStore(own_store)
    for entry in store.list():
        assert entry.artifact is not None
        recipe = entry.artifact.recipe
        changed = {**recipe, "machine": {**recipe["machine"], **machine}}
        put_again(store, entry.artifact, recipe=changed)
    for options in ({"store_readonly": True}, {"compile": False}):
        engine = tiny.engine(own_store, backend="aoti", **options)
        engine.prepare()
        assert engine.status.backend == "eager"
        assert words in str(engine.status.reason)
        tiny.check(engine, tiny.inputs())
        assert engine.counters.accelerated_calls == 0
    assert len(store.list()) == 5


def test_code_of_another_machine_under_this_key_is_refused(own_store: Path):
    """The key is the sha256 of the recipe, so an artifact cannot pass for another one."""
    store = ArtifactStore(own_store)
    good = store.get(KEY)
    assert good is not None
    recipe = {**good.recipe, "dtype": "float16"}
    put_again(store, good, recipe=recipe)
    (other,) = {entry.path for entry in store.list()} - {
        store.root / key for key in tiny.target().keys.values()
    }
    other.rename(store.root / KEY)
    with pytest.raises(ArtifactRejected, match="it belongs to another artifact") as caught:
        store.get(KEY)
    assert caught.value.key == KEY


@pytest.mark.slow
def test_a_bad_artifact_is_compiled_again_at_once(own_store: Path):
    """One is damaged, one came unchecked and does not load; only these two units are compiled."""
    store = ArtifactStore(own_store)
    damaged, unchecked = (store.get(tiny.target().keys[u]) for u in tiny.target().units[-2:])
    assert damaged is not None
    assert unchecked is not None
    flip(damaged)
    put_again(store, unchecked, code=b"no library", verdict=None)
    engine = tiny.engine(own_store, backend="aoti")
    with contextlib.closing(engine):
        engine.prepare()
        assert engine.job is not None
        assert engine.job.wait(PATIENCE_S)
        assert engine.take_up()
        assert (engine.status.state, engine.status.reason, engine.counters.compiles) == (
            "ready",
            None,
            2,
        )
        tiny.served(engine, tiny.inputs())
    assert [problem for _, problem in store.verify()] == [None] * 5


@pytest.mark.slow
def test_a_job_compiles_what_it_cannot_load(own_store: Path):
    """A unit is missing, and the library of another one cannot be loaded."""
    store = ArtifactStore(own_store)
    bad = store.get(tiny.target().keys[tiny.target().units[0]])
    assert bad is not None
    put_again(store, bad, code=b"no library")
    store.discard(KEY, "a test wants it compiled")
    job = started(store, tiny.target().units)
    assert job.result().keys() == set(tiny.target().units)
    assert job.compiled == 2
    tiny.check(tiny.ready(own_store), tiny.inputs())


def test_an_artifact_that_is_bad_again_ends_the_trying(own_store: Path):
    """Where somebody keeps putting bad ones, the second is not discarded."""
    store = ArtifactStore(own_store)
    good = store.get(KEY)
    assert good is not None
    failed = {"compiled": [0.5], "eager": [1e-6]}
    copy = Path(shutil.copytree(good.path, own_store.parent / "copy"))
    put_again(store, good, verdict=failed)
    engine = tiny.engine(own_store, backend="aoti", compile=False)
    engine.prepare()
    assert not store.contains(KEY)
    store.put(good.recipe, {name: copy / name for name in good.files}, failed)
    engine.prepare()
    assert store.contains(KEY)
    assert (engine.status.state, engine.status.backend) == ("fallback", "eager")
    assert "has no accuracy check" in str(engine.status.reason)


@pytest.mark.slow
def test_compiled_code_serves_only_weights_of_the_dtype_it_was_made_for(
    all_but_one: ArtifactStore,
):
    engine, given = tiny.engine(all_but_one.root, backend="aoti"), tiny.inputs()
    with contextlib.closing(engine):
        weights = engine.network.state_dict()
        engine.prepare()
        first = engine.job
        assert first is not None
        assert first.wait(PATIENCE_S)
        engine.network.to("meta")
        assert not engine.take_up(), "while the weights are away it waits"
        assert engine.job is first
        engine.network.load_state_dict(weights, assign=True)
        engine.network.double()
        assert engine.take_up()
        assert engine.job not in (None, first), "the new dtype is compiled for"
        assert torch.equal(engine.compute(*given), tiny.clean(engine, *given))
        assert engine.counters.accelerated_calls == 0
        engine.network.float()
        tiny.check(engine, given)
        tiny.served(engine, given)
        assert engine.status.state == "ready"
        calls = engine.counters.accelerated_calls
        engine.network.double()
        assert torch.equal(engine.compute(*given), tiny.clean(engine, *given))
        assert (engine.status.state, engine.status.reason, engine.counters.accelerated_calls) == (
            "compiling",
            None,
            calls,
        )

"""Artifacts that must not serve: damaged, made for another machine, or never checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.compile.units import unit_key, units_of
from lib_accel.store.store import MANIFEST, Artifact, ArtifactStore

from .. import tiny
from ..threads import one_thread  # noqa: F401  (a fixture)

OUTPUT = units_of(tiny.TINY)[-1]


def neighbour(store: ArtifactStore) -> None:
    """Put the same units under other keys: whatever is made again is copied, not compiled."""
    target = tiny.target(units_of(tiny.TINY)[:3])
    whole = store.get(tiny.target().key)
    assert whole is not None
    store.put(
        target.key,
        target.recipe,
        {f"{unit_key(u)}.pt2": whole.file(f"{unit_key(u)}.pt2") for u in target.units},
        whole.verdict,
    )
    rest = tiny.target([OUTPUT])
    store.put(
        rest.key,
        rest.recipe,
        {f"{unit_key(OUTPUT)}.pt2": whole.file(f"{unit_key(OUTPUT)}.pt2")},
        whole.verdict,
    )


def flip(artifact: Artifact) -> None:
    path = artifact.file(artifact.files[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def put_again(
    store: ArtifactStore,
    artifact: Artifact,
    recipe: dict[str, Any],
    names: tuple[str, ...],
    verdict: Any,
) -> None:
    files = {name: artifact.path.parent.parent / name for name in names}
    for name, copy in files.items():
        copy.write_bytes(artifact.file(name).read_bytes())
    store.discard(artifact.key, "replaced by a test")
    store.put(artifact.key, recipe, files, verdict)


def foreign(store: ArtifactStore, artifact: Artifact, **machine: Any) -> None:
    recipe = {**artifact.recipe, "machine": {**artifact.recipe["machine"], **machine}}
    put_again(store, artifact, recipe, artifact.files, artifact.verdict)


DAMAGES: dict[str, tuple[Callable[[ArtifactStore, Artifact], Any], str]] = {
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
    "another torch": (
        lambda s, a: foreign(s, a, torch="2.9.1"),
        f"was made for torch '2.9.1', here '{torch.__version__}'",
    ),
    "another GPU": (
        lambda s, a: foreign(s, a, device_type="cuda", device_name="H100"),
        "device_name 'H100', here",
    ),
    "another version": (
        lambda s, a: put_again(s, a, {**a.recipe, "source": "0" * 64}, a.files, a.verdict),
        "was made for another version of this extension; compile it on this machine",
    ),
    "a unit too few": (
        lambda s, a: put_again(s, a, a.recipe, a.files[:3], a.verdict),
        "has no code for ",
    ),
    "no verdict": (
        lambda s, a: put_again(s, a, a.recipe, a.files, None),
        "has no accuracy check for ResBlock 64 -> 64",
    ),
    "no code in it": (lambda s, a: garbage(s, a), "does not load"),
}


def garbage(store: ArtifactStore, artifact: Artifact) -> None:
    artifact.file(artifact.files[0]).write_bytes(b"no zip at all")
    put_again(store, artifact, artifact.recipe, artifact.files, artifact.verdict)


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_bad_artifact_never_serves(
    own_store: Path, damage: Callable[[ArtifactStore, Artifact], Any], words: str
):
    """It is refused in a read-only store, removed in another, and made again by who may compile."""
    store, key, given = ArtifactStore(own_store), tiny.target().key, tiny.inputs()
    good = store.get(key)
    assert good is not None
    neighbour(store)
    damage(store, good)

    engine = tiny.engine(own_store, store_readonly=True, backend="aoti")
    engine.prepare()
    assert engine.status.state == "fallback"
    assert words in str(engine.status.reason)
    tiny.check(engine, given)
    assert store.contains(key)

    engine = tiny.engine(own_store, compile=False)
    engine.prepare()
    assert engine.status.state == "eager"
    assert words in str(engine.status.reason)
    assert "compiling is switched off" in str(engine.status.reason)
    assert not store.contains(key)
    tiny.check(engine, given)
    assert engine.counters.accelerated_calls == 0

    engine = tiny.engine(own_store, backend="aoti", blocking=True)
    engine.prepare()
    assert (engine.status.state, engine.status.reason, engine.counters.compiles) == (
        "ready",
        None,
        0,
    )
    tiny.check(engine, given)


def test_a_bad_artifact_is_made_again_at_once(own_store: Path):
    store = ArtifactStore(own_store)
    good = store.get(tiny.target().key)
    assert good is not None
    neighbour(store)
    flip(good)
    engine = tiny.engine(own_store, backend="aoti")
    with contextlib.closing(engine):
        engine.prepare()
        assert engine.job is not None
        assert "checksum does not match" in str(engine.status.reason)
        assert engine.job.wait(60)
        assert engine.take_up()
        assert (engine.status.state, engine.status.reason, engine.counters.compiles) == (
            "ready",
            None,
            0,
        )
        tiny.served(engine, tiny.inputs())
    assert [problem for _, problem in store.verify()] == [None] * 3


def test_a_second_bad_artifact_ends_the_trying(own_store: Path):
    """Where somebody keeps putting bad ones, the second is not discarded."""
    store, recipe = ArtifactStore(own_store), tiny.target().recipe
    good = store.get(tiny.target().key)
    assert good is not None
    put_again(store, good, recipe, good.files, None)
    engine = tiny.engine(own_store, backend="aoti", compile=False)
    engine.prepare()
    assert not store.contains(good.key)
    store.put(good.key, recipe, {name: own_store.parent / name for name in good.files}, None)
    engine.prepare()
    assert store.contains(good.key)
    assert (engine.status.state, engine.status.backend) == ("fallback", "eager")
    assert "has no accuracy check" in str(engine.status.reason)


def test_compiled_code_serves_only_weights_of_the_dtype_it_was_made_for(own_store: Path):
    store, given = ArtifactStore(own_store), tiny.inputs()
    neighbour(store)
    store.discard(tiny.target().key, "a test wants it made again")
    engine = tiny.engine(own_store, backend="aoti")
    with contextlib.closing(engine):
        weights = engine.network.state_dict()
        engine.prepare()
        first = engine.job
        assert first is not None
        assert first.wait(60)
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

"""Code that somebody else put into the store: it never serves, and stops nothing."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

import pytest

from lib_accel.store import ArtifactStore, signing
from lib_accel.store.private_folder import private_folder

from .. import tiny
from .kit import OUTPUT
from .processes import PATIENCE_S

KEYS = [tiny.target().keys[unit] for unit in tiny.target().units]


@pytest.fixture
def foreign(own_store: Path) -> ArtifactStore:
    """A store with two units that were signed with another key, OUTPUT among them."""
    store, key = ArtifactStore(own_store), own_store.parent / "their.key"
    signing.write_key(key, bytes(32))
    others = ArtifactStore(own_store.parent / "theirs", key_file=key)
    for name in {tiny.target().keys[OUTPUT], KEYS[0]}:
        good = store.get(name)
        assert good is not None
        others.put(good.recipe, {file: good.file(file) for file in good.files}, good.verdict)
        store.discard(name, "replaced by a test")
        (others.root / name).rename(store.root / name)
    return store


def test_it_does_not_serve_where_nothing_may_be_compiled(foreign: ArtifactStore):
    for options in ({"store_readonly": True}, {"compile": False}):
        engine = tiny.engine(foreign.root, backend="aoti", **options)
        engine.prepare()
        assert engine.status.backend == "eager"
        assert "2 of 5 compiled units are missing" in str(engine.status.reason)
        assert "is not signed with your store key" in str(engine.status.reason)
        assert "--accel-store-key" in str(engine.status.reason)
        tiny.check(engine, tiny.inputs())
        assert engine.counters.accelerated_calls == 0
    assert len(foreign.list()) == 5, "it is left to who put it there"


def test_it_serves_who_has_its_key(foreign: ArtifactStore):
    key = foreign.root.parent / "their.key"
    theirs = ArtifactStore(foreign.root.parent / "theirs", key_file=key)
    for name in KEYS:
        if (good := ArtifactStore(foreign.root, key_file=key).entry(name)) and good.foreign:
            mine = foreign.get(name)
            assert mine is not None
            theirs.put(mine.recipe, {n: mine.file(n) for n in mine.files}, mine.verdict)
            foreign.discard(name, "replaced by a test")
            (theirs.root / name).rename(foreign.root / name)
    engine = tiny.engine(foreign.root, backend="aoti", store_readonly=True, store_key=key)
    engine.prepare()
    assert (engine.status.state, engine.status.reason) == ("ready", None)
    tiny.check(engine, tiny.inputs())


@pytest.mark.slow
def test_it_is_compiled_again_and_one_line_says_so(
    foreign: ArtifactStore, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    engine = tiny.engine(foreign.root, backend="aoti")
    with contextlib.closing(engine):
        engine.prepare()
        assert engine.job is not None
        assert engine.job.wait(PATIENCE_S)
        assert engine.take_up()
        assert (engine.status.state, engine.counters.compiles) == ("ready", 2)
        tiny.served(engine, tiny.inputs())
    assert [problem for _, problem in foreign.verify()] == [None] * 5
    (line,) = [record.message for record in caplog.records]
    assert "Compiling 2 units again" in line
    assert "is not signed with your store key" in line


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_below_a_parent_of_others_a_private_copy_is_loaded(own_store: Path):
    own_store.parent.chmod(0o775)
    engine = tiny.ready(own_store)
    tiny.check(engine, tiny.inputs())
    tiny.served(engine, tiny.inputs())
    loaded = Path("/proc/self/maps").read_text()
    assert f"{private_folder()}/" in loaded
    assert f"{own_store}/" not in loaded

"""Compile jobs without room for temporary files or in the store."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from lib_accel.errors import NoRoom, StoreError
from lib_accel.store import ArtifactStore

from .. import tiny
from .kit import OUTPUT, started
from .processes import until, using

pytestmark = pytest.mark.slow


def test_no_room_for_temporary_files(
    disk: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    (disk / "filler").write_bytes(bytes(3 * tiny.MIB - 16384))
    with pytest.raises(NoRoom, match="No space left on device"):
        started(store).result()
    until("its processes to end", lambda: not using(disk), 10)
    assert [p.name for p in disk.iterdir()] == ["filler"]
    assert store.list() == []


def test_no_folder_for_temporary_files(
    tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(NoRoom, match="there is no folder for temporary files"):
        started(store).result()


def test_no_room_in_the_store(disk: Path, all_but_one: ArtifactStore, temp: Path):
    """The unit is compiled and does not fit; what was stored before stays and serves."""
    store = ArtifactStore(disk / "store")
    for entry in all_but_one.list():
        artifact = entry.artifact
        assert artifact is not None
        files = {name: artifact.file(name) for name in artifact.files}
        store.put(artifact.recipe, files, artifact.verdict)
    before = [entry.key for entry in store.list()]
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
    with pytest.raises(StoreError, match="No space left on device"):
        started(store).result()
    assert [entry.key for entry in store.list()] == before
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".tmp")] == []
    assert list(temp.iterdir()) == []
    (disk / "filler").unlink()
    assert [problem for _, problem in store.verify()] == [None] * 4


def test_a_limit_smaller_than_the_target_evicts_none_of_its_units(
    all_but_one: ArtifactStore, temp: Path
):
    other = {**tiny.target().recipe(OUTPUT), "dtype": "float16"}
    all_but_one.put(other, {"unit.so": Path(__file__)})
    job = started(ArtifactStore(all_but_one.root, max_bytes=1), tiny.target().units)
    assert job.result().keys() == set(tiny.target().units)
    assert job.compiled == 1
    assert {e.key for e in all_but_one.list()} == set(tiny.target().keys.values())


def test_a_store_on_a_read_only_disk(packaging: None, disk: Path):
    engine = tiny.engine(disk / "store", backend="aoti", blocking=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    engine.prepare()
    assert (engine.status.backend, engine.counters.compiles, engine.job) == ("eager", 0, None)
    assert f"Could not use the store {disk / 'store'}: " in str(engine.status.reason)
    tiny.check(engine, tiny.inputs())

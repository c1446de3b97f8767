"""What is checked is what is loaded: in place where nobody else can reach it, else from a copy."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lib_accel.errors import ArtifactRejected
from lib_accel.store import MANIFEST, Artifact, ArtifactStore
from lib_accel.store.private_folder import private_folder
from tests.store.kit import key_of, posix, recipe, root_only

SECRET = bytes(range(32))


def contents(folder: Path, artifact: Artifact) -> list[bytes]:
    return [(folder / name).read_bytes() for name in artifact.files]


@pytest.fixture
def swapped(store, units, tmp_path):
    """A store below a folder of another user, an artifact of it, and what puts evil in its place.

    The evil one has the same names and sizes.
    """
    os.chown(tmp_path, 12345, -1)
    artifact = store.put(recipe("a"), units)
    evil = tmp_path / "evil" / store.root.name
    for name in artifact.files:
        (evil / artifact.key / name).parent.mkdir(parents=True, exist_ok=True)
        (evil / artifact.key / name).write_bytes(b"x" * artifact.file(name).stat().st_size)
    (evil / artifact.key / MANIFEST).write_bytes((artifact.path / MANIFEST).read_bytes())

    def swap() -> None:
        store.root.rename(tmp_path / "away")
        evil.rename(store.root)

    return artifact, swap


@posix
def test_below_closed_and_sticky_parents_code_is_loaded_in_place(store, units, tmp_path):
    artifact = store.put(recipe("a"), units)
    for mode in (0o755, 0o700, 0o1777, 0o1770):
        tmp_path.chmod(mode)
        assert store.place(artifact) == artifact.path


@posix
def test_below_a_parent_that_a_group_can_write_a_private_copy_is_loaded(store, units, tmp_path):
    artifact = store.put(recipe("a"), units)
    tmp_path.chmod(0o775)
    place = store.place(artifact)
    assert private_folder() in place.parents
    assert store.root not in place.parents
    assert contents(place, artifact) == contents(artifact.path, artifact)
    found = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert found == set(artifact.files)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (place, *place.rglob("*"))}
    assert modes == {0o700, 0o600}


@root_only
def test_a_swap_between_check_and_load_is_refused(store, swapped):
    artifact, swap = swapped
    checked = store.get(artifact.key)
    swap()
    with pytest.raises(ArtifactRejected, match="it was changed while it was loaded") as caught:
        store.place(checked)
    assert caught.value.key == artifact.key


@root_only
def test_a_swap_after_the_copy_changes_nothing(store, swapped, units):
    artifact, swap = swapped
    place = store.place(store.get(artifact.key))
    good = contents(place, artifact)
    swap()
    assert contents(place, artifact) == good == [path.read_bytes() for path in units.values()]


@root_only
def test_a_swap_before_an_export_signs_nothing(store, swapped, monkeypatch, tmp_path):
    """Somebody else's code under the operator's signature would run on every machine."""
    artifact, swap = swapped
    load = store._load
    monkeypatch.setattr(store, "_load", lambda key: (load(key), swap())[0])
    with pytest.raises(ArtifactRejected, match="it was changed while it was exported"):
        store.export([artifact.key], tmp_path / "x.zip", SECRET)
    assert not (tmp_path / "x.zip").exists()


@root_only
def test_a_swap_during_an_import_is_not_signed(store, units, tmp_path, monkeypatch):
    """Between the check of the seal and the new signature."""
    from lib_accel.store.exchange.vouching import Vouching

    for name, content in (("good", b"good"), ("evil", b"evil")):
        (tmp_path / name).write_bytes(content)
        made = ArtifactStore(tmp_path / f"{name}-store")
        made.put(recipe("a"), {"x.so": tmp_path / name})
        made.export([key_of("a")], tmp_path / f"{name}.zip", SECRET)
    evil = ArtifactStore(tmp_path / "evil-store").get(key_of("a")).path
    check = Vouching.check_seal

    def swap(*given):
        checked = check(*given)
        (work,) = [p for p in store.root.iterdir() if p.name.startswith(".tmp-")]
        (work / key_of("a")).rename(tmp_path / "away")
        evil.rename(work / key_of("a"))
        return checked

    monkeypatch.setattr(Vouching, "check_seal", swap)
    with pytest.raises(ArtifactRejected, match="it was changed while it was imported"):
        store.import_(tmp_path / "good.zip", SECRET)
    assert store.list() == []


def test_a_file_that_is_no_file_any_more_is_refused(store, units, tmp_path):
    """A pipe in its place would wait for ever."""
    if os.name != "posix":
        pytest.skip("no pipes in folders")
    artifact = store.put(recipe("a"), units)
    tmp_path.chmod(0o775)
    artifact.file("mid.pt2").unlink()
    os.mkfifo(artifact.file("mid.pt2"))
    with pytest.raises(Exception, match="is not a real file"):
        store.place(artifact)

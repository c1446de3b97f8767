"""What people are shown of a store: groups, their names, and whether they fit this machine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_accel.errors import StoreError
from lib_accel.store import MANIFEST, ArtifactStore, groups, named
from lib_accel.store.summary import IN_USE, UNNAMED
from tests.store.kit import flip, key_of, recipe

HERE = {"torch": {"machine": recipe("a")["machine"], "source": "new"}}
"""A machine, as `compile/session.py: of_machine` describes it."""


def test_artifacts_are_grouped_by_what_they_were_made_for(store, units):
    other = {**recipe("c"), "dtype": "float32"}
    for each in (recipe("a"), other, recipe("b")):
        store.put(each, units)
    flip(store.put(recipe("d"), units).path / MANIFEST, 5)
    found = sorted(groups(store.list()), key=lambda group: group.made_for)
    assert [len(group.entries) for group in found] == [1, 1, 2]
    damaged, single, pair = found[0], *found[1:]
    assert [group.made_for for group in (single, pair)] == [
        "1 unit, float32, torch 2.13.0, x86-64-v3",
        "2 units, float16, torch 2.13.0, x86-64-v3",
    ]
    assert (damaged.key, damaged.made_for) == (key_of("d"), damaged.problem)
    assert "its own checksum does not match" in str(damaged.problem)
    assert pair.bytes == sum(entry.bytes for entry in pair.entries)
    assert {entry.key for entry in pair.entries} == {key_of("a"), key_of("b")}
    assert pair.key not in {entry.key for entry in store.list()}
    for name, keys in ((pair.key, {key_of("a"), key_of("b")}), (key_of("a")[:12], {key_of("a")})):
        (group,) = named(store.list(), name)
        assert {entry.key for entry in group.entries} == keys
    assert len(named(store.list(), "")) == 3 + 3  # the groups and the three whole artifacts


def test_model_families_of_one_machine_are_groups_with_their_names(store, units):
    for unit, name in (("a", "SD1"), ("b", "SD1"), ("c", "SDXL"), ("d", "")):
        store.put(recipe(unit), units, name=name)
    found = {group.name: group for group in groups(store.list())}
    assert {name: len(group.entries) for name, group in found.items()} == {
        "SD1": 2,
        "SDXL": 1,
        UNNAMED: 1,
    }
    assert len({group.key for group in found.values()}) == 3
    (shown,) = named(store.list(), found["SD1"].key)
    assert shown.name == "SD1"


def test_a_name_is_no_part_of_the_key_and_code_without_one_serves(store, units):
    before = store.put(recipe("a"), units)
    assert "name" not in json.loads((before.path / MANIFEST).read_text())
    assert store.put(recipe("a"), units, name="SD1") == before == store.get(key_of("a"))


def test_a_name_is_signed_travels_and_must_be_printable(store, units, tmp_path):
    artifact = store.put(recipe("a"), units, name="SDXL inpainting")
    store.export([artifact.key], tmp_path / "x.zip", bytes(32))
    other = ArtifactStore(tmp_path / "other")
    other.import_(tmp_path / "x.zip", bytes(32))
    assert [group.name for group in groups(other.list())] == ["SDXL inpainting"]
    manifest = artifact.path / MANIFEST
    manifest.write_text(manifest.read_text().replace("SDXL inpainting", "SDXL"))
    assert [group.name for group in groups(store.list())] == [UNNAMED]
    with pytest.raises(StoreError, match="its name cannot be right"):
        store.put(recipe("b"), units, name="SD1\x1b[2J")


def of_tensorrt(name: str, **machine: str) -> dict[str, Any]:
    """Return the recipe of an engine, or with `card` of the kernels that were made of it."""
    made_with = {"device_type": "cuda", "tensorrt_rtx": "1.7.1", "cards": "ampere+", **machine}
    return {**recipe(name), "machine": made_with, "source": "engines"}


CARD = "NVIDIA GeForce RTX 3060"


def test_engines_and_kernels_of_tensorrt_say_its_version_and_their_cards(store, units):
    store.put(of_tensorrt("a"), units, name="SD1")
    store.put(of_tensorrt("a", card=CARD), units, name="SD1")
    assert {group.made_for for group in groups(store.list())} == {
        "1 unit, float16, TensorRT 1.7.1, ampere+",
        f"1 unit, float16, TensorRT 1.7.1, {CARD}",
    }


@pytest.mark.parametrize(
    ("machine", "state"),
    [
        ({}, ""),
        ({"card": CARD}, ""),
        ({"tensorrt_rtx": "1.6.0"}, "not for this TensorRT"),
        ({"cards": "turing"}, "not for this device"),
        ({"card": "NVIDIA GeForce RTX 4090"}, "not for this device"),
    ],
)
def test_engines_of_tensorrt_fit_its_version_and_the_card(store, units, machine, state):
    ours = of_tensorrt("a", card=CARD)["machine"]
    here = {**HERE, "tensorrt_rtx": {"machine": ours, "source": "engines"}}
    store.put(of_tensorrt("a", **machine), units)
    (group,) = groups(store.list())
    assert group.state(here) == state


def test_a_group_says_what_of_this_machine_it_was_not_made_for(store, units):
    here = HERE
    expected = {
        "": {},
        "not for this torch": {"torch": "2.9.1", "capability": "9.0"},
        "not for this device": {"capability": "9.0"},
        "not for this system": {"platform": "win32-amd64"},
    }
    for state, changes in expected.items():
        made = {**recipe("a"), "machine": {**recipe("a")["machine"], **changes}, "source": "new"}
        store.put(made, units, name=state or "SD1")
    old = store.put({**recipe("a"), "source": "old"}, units, name="SD1")
    found = groups(store.list())
    states = {group.state(here) for group in found}
    assert states == {*expected, "not for this version of the extension"}
    (used,) = [g for g in found if g.entries[0].key == old.key]
    assert used.state(here, {old.key}) == IN_USE
    flip(old.path / MANIFEST, 5)
    assert "not usable" in {group.state(here) for group in groups(store.list())}

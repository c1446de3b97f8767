"""Which cards the backend serves, and what it asks the store for. It needs no TensorRT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_accel.compile.backends.tensorrt import libraries
from lib_accel.compile.backends.tensorrt.backend import TensorRT, wanted
from lib_accel.compile.backends.tensorrt.child import ENGINE_FILE
from lib_accel.compile.backends.tensorrt.engines import cards_of, of_machine
from lib_accel.compile.machine import probe
from lib_accel.compile.target import Target
from lib_accel.config import Config
from lib_accel.store import ArtifactStore, groups
from lib_accel.store.summary import misfit

from ..tiny import TINY


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "version", lambda: "1.7.1")


def target(capability: str, dtype: torch.dtype = torch.float16) -> Target:
    here, name = probe(torch.device("cpu")), "NVIDIA GeForce RTX 3060"
    machine = replace(here, device_type="cuda", device_name=name, capability=capability)
    return Target.of_unet(TINY, dtype, torch.device("cuda"), machine)


def why_not(folder: Path, capability: str, dtype: torch.dtype = torch.float16) -> str | None:
    return TensorRT().why_not(target(capability, dtype), ArtifactStore(folder), Config())


@pytest.mark.parametrize(
    ("capability", "cards"),
    [
        ("7.0", None),
        ("7.5", "turing"),
        ("8.0", "ampere+"),
        ("8.6", "ampere+"),
        ("8.7", None),
        ("8.9", "ampere+"),
        ("9.0", None),
        ("10.0", None),
        ("12.0", "ampere+"),
        ("12.1", "ampere+"),
    ],
)
def test_each_card_has_its_engines_or_a_reason(tmp_path, capability, cards):
    assert cards_of(capability) == cards
    why = why_not(tmp_path, capability)
    if cards:
        assert why is None
        assert {each.cards for each in wanted(target(capability)).values()} == {cards}
    else:
        assert f"compute capability {capability}; TensorRT for RTX serves 7.5, 8.0" in str(why)
        assert wanted(target(capability)) == {}


def test_turing_computes_float16_alone(tmp_path):
    assert "computes only float16" in str(why_not(tmp_path, "7.5", torch.bfloat16))
    assert why_not(tmp_path, "8.6", torch.bfloat16) is None


def test_what_is_missing_is_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "version", lambda: None)
    assert str(why_not(tmp_path, "8.6")).endswith("-m pip install tensorrt_rtx")
    assert TensorRT().kept_bytes(target("8.6"), ArtifactStore(tmp_path)) is None


def test_engines_are_kept_by_all_that_they_depend_on(tmp_path):
    file = tmp_path / "engine"
    file.write_bytes(b"as small as any")
    store, keys = ArtifactStore(tmp_path / "store"), wanted(target("8.6"))
    backend = TensorRT()
    assert backend.kept_bytes(target("8.6"), store) is None
    for each in keys.values():
        store.put(each.recipe, {ENGINE_FILE: file}, name=each.family)
    assert {entry.key for entry in store.list()} == {*keys}
    assert backend.kept_bytes(target("8.9"), store) == sum(e.bytes for e in store.list())
    assert backend.kept_bytes(target("7.5"), store) is None
    assert backend.kept_bytes(target("8.6", torch.bfloat16), store) is None
    (group,) = groups(store.list())
    assert group.made_for == f"{len(keys)} units, float16, TensorRT 1.7.1, ampere+"
    here = {"tensorrt_rtx": of_machine(target("8.6").machine)}
    assert misfit(group.entries[0], here) == ""
    other = {"tensorrt_rtx": of_machine(target("7.5").machine)}
    assert misfit(group.entries[0], other) == "not for this device"

"""The attacks of this folder, in short. Those on the store are tried in tests/store/."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..threads import one_thread  # noqa: F401  (for every test here)
from .table import MODULES, away_from_home, entries, main

HERE = {
    name: entry
    for module in MODULES
    if module.startswith(__package__ or "")
    for name, entry in entries(module).items()
    if entry[1]
}


SLOW = ("malformed checkpoints",)
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in HERE]


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_is_withstood(tmp_path: Path, name: str) -> None:
    attack, few, _ = HERE[name]
    with away_from_home(tmp_path) as place:
        assert attack(place, few, 1) >= few


def test_a_full_run_shows_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_folder: Path, _count: int, _seed: int) -> int:
        raise AssertionError("it gave way")

    attacks = {"good": (lambda _folder, count, _seed: count, 1, 7), "broken": (broken, 1, 7)}
    monkeypatch.setattr("tests.attack.table.entries", lambda _: attacks)
    monkeypatch.setattr("tests.attack.table.MODULES", ("one",))
    assert main([]) == 1
    _, good, bad, *trace = capsys.readouterr().out.splitlines()
    assert good.split()[:3] == ["good", "7", "held"]
    assert bad.split()[:3] == ["broken", "0", "FAILED"]
    assert "AssertionError: it gave way" in trace
    assert main(["good"]) == 0
    assert main(["none of that name"]) == 1

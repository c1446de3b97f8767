"""Pairs of times of a step: what follows from them, and whatever becomes of their file."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.compile.session import BACKENDS, Session
from lib_accel.compile.speeds import KEPT, NEEDED, Speeds, driver_version, size_class
from lib_accel.compile.target import Target
from lib_accel.config import Config, own_speeds_file
from lib_accel.store.store import ArtifactStore

from .. import tiny

SHAPE = (2, 4, 64, 64)
SIZE = size_class(SHAPE)
NAMES = [backend.name for backend in BACKENDS]


@pytest.fixture(autouse=True)
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in a profile of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "profile"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "profile"))
    file = tmp_path / "profile" / "speeds.json"
    monkeypatch.setattr("lib_accel.compile.speeds.own_speeds_file", lambda: file)
    return file


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny.target()


def speeds(theirs: str = "sdp") -> Speeds:
    """Return what a new process knows."""
    return Speeds(lambda: theirs)


def measure(target: Target, *ratios: float, backend: str = "aoti", to: Speeds | None = None) -> Any:
    """Keep a pair for each ratio of our time to the WebUI's."""
    to = to or speeds()
    for ratio in ratios:
        to.add(target, backend, SHAPE, 0.2 * ratio, 0.2)
    return to


def slower(target: Target, known: Speeds | None = None) -> bool:
    return (known or speeds()).why_not(target, "aoti", SIZE) is not None


# -- what follows


@pytest.mark.parametrize(
    ("ratios", "decided"),
    [
        ([1.1, 1.1], False),  # too few
        ([1.1, 1.07, 1.15], True),
        ([1.1, 1.04, 1.1], False),  # within the noise
        ([1.05] * KEPT, False),
        ([1.06] * NEEDED, True),
        ([1.6, 4.0, 2.0], True),  # beyond all noise
        ([1.1, 2.0, 1.1], False),  # a busy machine: more are needed
        ([1.1, 2.0, 1.1, 1.3, 0.9, 1.2, 1.5, 1.1], False),
        ([1.1, 2.0, 1.1, 1.3, 0.9, 1.2, 1.5, 1.1, 1.1], True),
        ([0.5, 0.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.0], False),
        ([0.5] * 3 + [1.5] * KEPT, True),  # it has become slower: the newest count
    ],
)
def test_more_than_five_percent_slower_in_pairs_that_agree_decides(
    ratios: list[float], decided: bool, target: Target
):
    assert slower(target, measure(target, *ratios)) == decided


def test_pairs_are_wanted_until_they_decide(target: Target):
    def wants(*ratios: float) -> bool:
        known = speeds()
        known.forget(target)
        return measure(target, *ratios, to=known).wants(target, "aoti", SIZE)

    assert wants()
    assert wants(1.1, 1.1)
    assert not wants(1.1, 1.1, 1.1)
    assert not wants(0.5, 0.9, 0.3)
    assert wants(0.5, 0.9, 1.3)
    assert wants(1.1, 1.1, 2.0)
    assert not wants(*[0.5, 2.0, 1.1] * 3)


def test_the_sentence_gives_both_times_of_the_usual_pair(target: Target):
    assert measure(target, 1.1, 1.05, 1.2).why_not(target, "aoti", SIZE) is None
    assert measure(target, *[1.1] * KEPT).why_not(target, "aoti", SIZE) == (
        "aoti is slower here at 2 x 512x512: 0.22 s a step instead of 0.2 s; "
        "the WebUI's own code computes this size; Build now measures again"
    )


def test_twice_the_work_is_another_size_class():
    assert size_class((2, 4, 64, 64)) == size_class((2, 320, 64, 96)) == size_class((3, 4, 64, 64))
    assert size_class((4, 4, 64, 64)) == size_class((2, 4, 128, 64)) == SIZE + 1


def test_without_a_host_nothing_is_measured(target: Target, profile: Path):
    known = measure(target, 1.1, 1.1, 1.1, to=Speeds())
    assert not known.wants(target, "aoti", SIZE)
    assert not slower(target, known)
    assert not profile.exists()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_not_kept(seconds: float, target: Target):
    known = speeds()
    known.add(target, "aoti", SHAPE, seconds, 0.2)
    known.add(target, "aoti", SHAPE, 0.2, seconds)
    assert known.known(target) == []


# -- among backends


def _choose(target: Target, folder: Path, backend: str = "auto") -> tuple[str | None, str | None]:
    session = Session(lambda: "sdp")
    store = folder / "store"
    chosen = session.choose(target, ArtifactStore(store), Config(backend, store))
    return chosen.backend.name if chosen.backend else None, chosen.reason


def test_the_backend_that_was_measured_to_be_fastest_is_tried_first(
    packaging: None, target: Target, tmp_path: Path
):
    assert _choose(target, tmp_path) == ("aoti", None)
    measure(target, 1.0, 0.98, 1.0)
    assert _choose(target, tmp_path) == ("aoti", None)
    measure(target, 0.8, 0.8, 0.8, backend="jit")
    reason = "aoti: jit is faster here: 0.16 s a step instead of 0.2 s at 2 x 512x512"
    assert _choose(target, tmp_path) == ("jit", reason)
    assert _choose(target, tmp_path, "aoti") == ("aoti", None), "the user has named it"
    measure(target, 0.5, 0.5, 0.5, backend="eager")
    name, reasons = _choose(target, tmp_path)
    assert name == "eager"
    assert str(reasons).startswith("aoti: eager is faster here: 0.1 s")
    assert "; jit: eager is faster here: 0.1 s" in str(reasons)


def test_the_order_holds_within_the_noise_and_where_nothing_was_measured(target: Target):
    known = measure(target, 1.2, 1.2, 1.2)
    assert known.ranked(target, NAMES) == NAMES
    measure(target, 1.0, 1.1, 1.18, backend="eager", to=known)
    assert known.ranked(target, NAMES) == NAMES
    known.add(target, "jit", (2, 4, 128, 128), 0.1, 0.2)  # another size class says nothing
    assert known.ranked(target, NAMES) == NAMES
    measure(target, *[1.0] * KEPT, backend="eager", to=known)
    assert known.ranked(target, NAMES) == ["tensorrt", "eager", "aoti", "jit", "kernels"]


# -- what it depends on, and where it is kept


def test_it_is_measured_again_on_another_machine_torch_driver_or_attention(
    target: Target, monkeypatch: pytest.MonkeyPatch
):
    measure(target, 1.1, 1.1, 1.1)
    assert slower(target)
    assert slower(tiny.target())
    for change in ({"torch": "9.9"}, {"device_name": "A card"}, {"capability": "x86-64-v9"}):
        assert not slower(tiny.target(**change)), change
    assert not slower(target, speeds("xformers"))
    card = replace(target, device=torch.device("cuda"))
    monkeypatch.setattr("lib_accel.compile.speeds.driver_version", lambda: "551.23")
    measure(card, 1.1, 1.1, 1.1)
    assert slower(card)
    monkeypatch.setattr("lib_accel.compile.speeds.driver_version", lambda: "551.24")
    assert not slower(card)


def test_a_machine_without_the_driver_has_no_version_of_it():
    assert isinstance(driver_version(), str)


def test_what_was_forgotten_is_measured_again(target: Target):
    known = measure(target, 1.1, 1.1, 1.1)
    known.forget(target)
    assert not slower(target)
    assert known.wants(target, "aoti", SIZE)


def test_the_file_does_not_grow_without_end(target: Target, profile: Path):
    for i in range(40):
        measure(target, *[1.1] * NEEDED, to=speeds(f"way {i}"))
    assert profile.stat().st_size < 40_000
    assert not slower(target, speeds("way 0"))
    assert slower(target, speeds("way 39"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "[" * 10**5,
        lambda text: text.replace("0.22", '"0.22"'),
        lambda text: text.replace("0.22", "NaN"),
        lambda text: text.replace("0.22", "1e999"),
        lambda text: text.replace("0.22", "[]"),
        lambda text: text.replace(f"aoti {SIZE}", "aoti much"),
        lambda text: text.replace(f"aoti {SIZE}", "aoti"),
        lambda text: text.replace("0.22, ", ""),
        lambda text: text[: text.index("[")] + "[]}}",
    ],
)
def test_a_file_that_means_nothing_is_passed_over_and_replaced(
    change: Callable[[str], str], target: Target, profile: Path
):
    measure(target, 1.1, 1.1, 1.1)
    changed = change(profile.read_text())
    assert changed != profile.read_text()
    profile.write_text(changed)
    known = speeds()
    assert not slower(target, known)
    assert known.known(target) == []
    measure(target, 1.1, 1.1, 1.1)
    assert slower(target)


def test_a_profile_that_cannot_be_written_holds_until_the_end(target: Target, profile: Path):
    profile.parent.mkdir()
    profile.parent.joinpath("file").touch()
    profile = profile.parent / "file" / "speeds.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib_accel.compile.speeds.own_speeds_file", lambda: profile)
        known = measure(target, 1.1, 1.1, 1.1)
        assert slower(target, known)
        assert not slower(target)


def test_without_a_profile_nothing_is_written(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lib_accel.compile.speeds.own_speeds_file", lambda: Path("~/speeds.json"))
    assert slower(target, measure(target, 1.1, 1.1, 1.1))
    assert list(tmp_path.iterdir()) == []


def _keep(file: Path, theirs: str) -> None:
    from lib_accel.compile import speeds as module

    module.own_speeds_file = lambda: file
    known, target = speeds(theirs), tiny.target()
    for _ in range(60):
        measure(target, 1.1, to=known)


def test_two_processes_and_one_that_is_killed_leave_a_whole_file(target: Target, profile: Path):
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_keep, args=(profile, f"way {i}")) for i in range(2)]
    for process in running:
        process.start()
    while not profile.exists():
        assert any(process.is_alive() for process in running)
    running[0].join(0.05)
    running[0].kill()
    running[1].join()
    running[0].join()
    assert slower(target, speeds("way 1"))


def test_the_file_lies_in_the_profile_beside_no_store():
    assert own_speeds_file().is_absolute()
    assert own_speeds_file().suffix == ".json"

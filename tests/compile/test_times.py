"""How long units are expected to take: as in earlier runs, whatever became of their file."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path

import pytest

from lib_accel.compile.backends.times import START_S, Times
from lib_accel.compile.units import units_of
from lib_accel.config import own_times_file
from lib_accel.model.specs import SpatialTransformer

from .. import tiny

UNITS = units_of(tiny.TINY)
RES = next(u for u in UNITS if type(u).__name__ == "ResBlock")
TRANSFORMER = next(u for u in UNITS if isinstance(u, SpatialTransformer))


def _file(tmp_path: Path) -> Path:
    return tmp_path / "times"


def test_a_deep_transformer_takes_longest_before_anything_is_known():
    times = Times("aoti", "cpu")
    deep = dataclasses.replace(TRANSFORMER, depth=10)
    assert times.expected(deep) > 4 * times.expected(TRANSFORMER)
    assert times.expected(TRANSFORMER) > times.expected(RES) > times.expected(UNITS[-1]) > 0


def test_times_are_kept_by_kind_backend_and_device():
    Times("aoti", "cpu").add(RES, 60.0, first=False)
    again = Times("aoti", "cpu")
    assert again.expected(RES) == 60.0
    assert again.expected(TRANSFORMER) == 4 * Times("jit", "cpu").expected(TRANSFORMER)
    assert Times("aoti", "cuda").expected(RES) == Times("jit", "cpu").expected(RES) == 15.0
    again.add(RES, 30.0, first=False)
    assert Times("aoti", "cpu").expected(RES) == 45.0


def test_units_that_torch_has_cached_teach_nothing(tmp_path: Path):
    times = Times("jit", "cpu")
    times.add(RES, 0.05, first=False)
    assert Times("jit", "cpu").expected(RES) == 15.0
    _file(tmp_path).write_text('{"jit cpu ResBlock": 0.003}')  # of an earlier version
    assert Times("jit", "cpu").expected(RES) == 15.0


def test_the_start_of_a_process_is_kept_apart():
    times = Times("aoti", "cpu")
    times.add(RES, times.expected(RES) + 2 * START_S, first=True)
    assert times.start_s == 2 * START_S


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"aoti cpu ResBlock": "NaN"}',
        '{"aoti cpu ResBlock": []}',
        '{"aoti cpu ResBlock": -1}',
        '{"aoti cpu ResBlock": 1e999}',
        "[" * 10**5,
        "\x00",
    ],
)
def test_a_file_that_means_nothing_is_passed_over_and_replaced(tmp_path: Path, text: str):
    _file(tmp_path).write_text(text)
    times = Times("aoti", "cpu")
    assert times.expected(RES) == 15.0
    times.add(RES, 30.0, first=False)
    assert Times("aoti", "cpu").expected(RES) == 30.0


def test_a_profile_that_cannot_be_written_costs_only_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(
        "lib_accel.compile.backends.times.own_times_file", lambda: tmp_path / "file" / "times"
    )
    Times("aoti", "cpu").add(RES, 30.0, first=False)
    assert Times("aoti", "cpu").expected(RES) == 15.0


def _keep(file: Path) -> None:
    from lib_accel.compile.backends import times

    times.own_times_file = lambda: file
    for _ in range(100):
        times.Times("aoti", "cpu").add(RES, 30.0, first=False)


def test_a_killed_process_leaves_a_whole_file(tmp_path: Path):
    process = multiprocessing.get_context("spawn").Process(target=_keep, args=(_file(tmp_path),))
    process.start()
    while not _file(tmp_path).exists():
        assert process.is_alive()
    process.kill()
    process.join()
    assert Times("aoti", "cpu").expected(RES) == 30.0


def test_the_file_lies_in_the_profile():
    assert own_times_file().is_absolute()
    assert own_times_file().suffix == ".json"

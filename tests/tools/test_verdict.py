"""The words for what was measured: a word only where the measurements are clear."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from lib_accel.tools.bench.table import _speed_up
from lib_accel.tools.report import words
from lib_accel.tools.report.verdict import SAME, UNKNOWN, Verdict, seconds


@pytest.mark.parametrize(
    ("off", "on", "words"),
    [
        ((3.0, 3.1, 2.9), (1.5, 1.6, 1.4), "2.0x faster"),
        ((1.5, 1.6, 1.4), (3.0, 3.1, 2.9), "2.0x slower"),
        ((1.05, 1.06, 1.05), (1.0, 1.0, 1.0), "5 % faster"),
        ((1.02, 1.02, 1.02), (1.0, 1.0, 1.0), SAME),  # clear, and too little to speak of
        ((3.0, 1.2, 1.2), (1.5, 1.0, 1.1), SAME),  # few pairs, and their ranges overlap
        ((3.0, 1.2, 1.2) * 2, (1.5, 1.0, 1.1) * 2, "1.2x faster"),  # six pairs agree
        ((3.0, 1.2, 1.2) * 2, (1.5, 1.3, 1.1) * 2, SAME),  # one of six does not
        ((-0.1, 0.2, 0.2), (0.1, 0.1, 0.1), SAME),  # differences that are lost in the noise
        ((3.0, 3.0), (1.0, 1.0), UNKNOWN),
    ],
)
def test_a_word_needs_clear_measurements(
    off: tuple[float, ...], on: tuple[float, ...], words: str
) -> None:
    assert Verdict.of(off, on).short == words


def test_the_spread_goes_in_the_direction_of_the_word() -> None:
    assert Verdict.of((3.0, 4.0, 2.0), (1.0, 1.0, 1.0)).spread == "3 pairs, 2.0 to 4.0x"
    assert Verdict.of((1.0, 1.0, 1.0), (3.0, 4.0, 2.0)).spread == "3 pairs, 2.0 to 4.0x"
    assert Verdict.of((1.0,), (2.0,)).spread == "1 pair, 0.5x"


def _agree(short: str, off: str, on: str, upside_down: bool = False) -> None:
    """Check that a word with its size says what the figures beside it say."""
    numbers = [float(re.match(r"[\d.e+-]+", text)[0]) for text in (off, on)]
    ratio = numbers[0] / numbers[1]
    if upside_down:  # the more, the faster
        ratio = 1 / ratio
    size, unit, word = re.fullmatch(r"([\d.]+)(x| %) (faster|slower)", short).groups()
    assert (ratio > 1) == (word == "faster"), (short, off, on)
    times = max(ratio, 1 / ratio)
    shown = float(size) if unit == "x" else 1 + float(size) / 100
    digit = 0.01 if unit != "x" else 1 if "." not in size else 0.1
    assert abs(times - shown) < 0.501 * digit, (short, off, on)


def _random_pairs(random_times: random.Random) -> tuple[list[float], list[float]]:
    """Return times of a busy machine, on which both of a pair may be slow."""
    pace, faster = 10 ** random_times.uniform(-3, 3), 2 ** random_times.gauss(0, 1)
    spread, busy = random_times.choice((0.001, 0.03)), random_times.choice((0.0, 1.0))
    paces = [pace * 2 ** random_times.uniform(0, busy) for _ in range(random_times.randint(3, 9))]
    off = [p * 2 ** random_times.uniform(0, spread) for p in paces]
    return off, [p / faster * 2 ** random_times.uniform(0, spread) for p in paces]


def test_the_middle_pair_is_told_and_not_two_medians() -> None:
    """On a busy machine the medians of 34 s and 30 s stood beside 1.5x."""
    off, on = (33.0, 34.0, 90.0, 60.0, 33.0, 33.5), (22.0, 30.0, 60.0, 40.0, 30.0, 22.3)
    assert Verdict.of(off, on).told() == ("33 s", "22 s", "1.5x faster")


def test_the_word_agrees_with_the_figures_beside_it_for_any_times() -> None:
    random_times, clear = random.Random(1), 0
    result: dict[str, Any] = {"error_ok": True, "gpu": False}
    for _ in range(3000):
        off, on = _random_pairs(random_times)
        found = Verdict.of(off, on)
        if found.word not in ("faster", "slower"):
            continue
        clear += 1
        for ranges in (False, True):
            _agree(*(found.told(ranges)[i] for i in (2, 0, 1)))
        result["seconds_of_steps"] = {"off": off, "on": on}
        for gpu in (False, True):
            said = words.headline(result | {"gpu": gpu})
            short, ours, theirs = re.fullmatch(
                r"(.*?): (.*) instead of (.*), the .*", said
            ).groups()
            _agree(short, theirs, ours, upside_down=gpu)
    assert clear > 1000


def test_a_table_of_speed_ups_agrees_with_its_seconds() -> None:
    assert _speed_up(1.00046, 1.0) == "1.00x"
    assert _speed_up(2.00149, 0.99996) == "2.00x"


def test_seconds_have_two_digits() -> None:
    assert seconds([0.1534, 0.1611, 0.1499]) == "0.15 s (0.15 to 0.16)"
    assert seconds([11.94, 11.96]) == "12 s"

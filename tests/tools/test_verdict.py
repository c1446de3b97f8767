"""The words for what was measured: a word only where the measurements are clear."""

from __future__ import annotations

import pytest

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


def test_seconds_have_two_digits() -> None:
    assert seconds([0.1534, 0.1611, 0.1499]) == "0.15 s (0.15 to 0.16)"
    assert seconds([11.94, 11.96]) == "12 s"

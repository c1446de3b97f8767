"""The plot of UNet times: SVG, which takes the page's colours, light or dark, and its language."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..clock import Timing
from .markup import fixed, heading, plain

_WIDTH, _HEIGHT, _LEFT, _TOP = 480, 150, 42, 10  # of the drawing, in its own units
_WIDEST = 28.0  # a bar with its margins


def plot(timings: Sequence[Timing]) -> str:
    """Draw the median UNet time of the last batches, with and without acceleration."""
    title = heading("UNet time of the last images")
    if not timings:
        return title + f"<p>{fixed('No image has been made yet.')}</p>"
    top = max(t.milliseconds for t in timings)
    step = min(_WIDEST, (_WIDTH - _LEFT) / len(timings))
    scale = (
        _tick(_TOP, _number(top))
        + _tick((_TOP + _HEIGHT) / 2, _number(top / 2))
        + _tick(_HEIGHT, "0")
    )
    bars = "".join(_bar(t, _LEFT + i * step, step, top) for i, t in enumerate(timings))
    axis = f"<line class='accel-axis' x1='{_LEFT}' x2='{_WIDTH}' y1='{_HEIGHT}' y2='{_HEIGHT}'/>"
    box = f"viewBox='0 0 {_WIDTH} {_HEIGHT + 6}' role='img'"
    unit = fixed("milliseconds a UNet call (median of an image), oldest to newest")
    return (
        f"{title}<svg class='accel-plot' {box}>{scale}{bars}{axis}</svg>"
        f"{_legend(timings)}<p><small>{unit}</small></p>"
    )


def _number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _bar(timing: Timing, x: float, step: float, top: float) -> str:
    height = max(1.0, timing.milliseconds / top * (_HEIGHT - _TOP))
    return (
        f"<rect class='accel-{'on' if timing.accelerated else 'off'}' "
        f"x='{x + step * 0.1:.1f}' y='{_HEIGHT - height:.1f}' "
        f"width='{step * 0.8:.1f}' height='{height:.1f}'>"
        f"<title>{timing.milliseconds:.1f} ms</title></rect>"
    )


def _tick(y: float, label: str) -> str:
    return (
        f"<line class='accel-grid' x1='{_LEFT}' x2='{_WIDTH}' y1='{y:.1f}' y2='{y:.1f}'/>"
        f"<text x='{_LEFT - 5}' y='{y + 3:.1f}' text-anchor='end'>{label}</text>"
    )


def _legend(timings: Sequence[Timing]) -> str:
    entries = []
    for accelerated, css, words in (
        (False, "accel-off", "without acceleration"),
        (True, "accel-on", "with acceleration"),
    ):
        values = [t.milliseconds for t in timings if t.accelerated is accelerated]
        if values:
            median = plain(f"{_number(statistics.median(values))} ms")
            entries.append(f"<span><i class='{css}'></i>{fixed(words)} {median}</span>")
    return f"<div class='accel-legend'>{' '.join(entries)}</div>"

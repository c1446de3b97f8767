"""The plot of step times: SVG, which takes the page's colours, light or dark, and its language."""

from __future__ import annotations

import html
import itertools
import statistics
from collections.abc import Callable, Sequence

from ..clock import Timing
from .markup import fixed, heading, plain, varying
from .speed import alike, headline, seconds, size_of

_WIDTH, _HEIGHT, _LEFT, _TOP = 480, 150, 46, 12  # of the drawing, in its own units
_WIDEST = 28.0  # a bar with its margins
_CUT = 2.0
"""A bar more than this many times the usual one is cut off, so that it does not flatten the rest"""


def plot(timings: Sequence[Timing]) -> str:
    """Say how much faster images are, and draw the step times of those like the last one."""
    figure = html.escape(headline())
    sentence = f"<p class='accel-text accel-headline' id='accel_headline'>{figure}</p>"
    title, shown = heading("Time of a step"), alike(timings)
    if not shown:
        return sentence
    top = _top(shown)
    step = min(_WIDEST, (_WIDTH - _LEFT) / len(shown))
    scale = (
        _tick(_TOP, seconds(top))
        + _tick((_TOP + _HEIGHT) / 2, seconds(top / 2))
        + _tick(_HEIGHT, "0")
    )
    bars = "".join(_bar(t, _LEFT + i * step, step, top) for i, t in enumerate(shown))
    axis = f"<line class='accel-axis' x1='{_LEFT}' x2='{_WIDTH}' y1='{_HEIGHT}' y2='{_HEIGHT}'/>"
    box = f"viewBox='0 0 {_WIDTH} {_HEIGHT + 6}' role='img' aria-labelledby='accel_headline'"
    what = varying(f"seconds, the last images of {size_of(shown[-1])}, oldest to newest")
    return (
        f"{sentence}{title}<svg class='accel-plot' {box}>{scale}{bars}{axis}</svg>"
        f"{_legend(shown, top)}<p><small>{what}</small></p>{_phases(shown)}"
    )


def _phases(shown: Sequence[Timing]) -> str:
    """Return the median time of each phase of an image like the last one, by whose code it was."""
    alike = [t for t in shown if len(t.times) == len(shown[-1].times) and t.after]
    kinds = (
        ("the WebUI's own code", lambda t: not t.backend and not t.vae),
        ("accelerated, but for the VAE", lambda t: t.backend and not t.vae),
        ("accelerated", lambda t: t.backend and t.vae),
    )
    phases: dict[str, Callable[[Timing], float]] = {
        "Prompt": lambda t: t.before,
        f"Steps ({len(shown[-1].times)})": lambda t: sum(t.times),
        "Checks": lambda t: t.checks,
        "VAE": lambda t: t.after,
    }
    if not any(t.checks for t in alike):
        del phases["Checks"]
    rows = ""
    for words, is_one in kinds:
        if found := [t for t in alike if is_one(t)]:
            medians = (statistics.median(map(phase, found)) for phase in phases.values())
            parts = "".join(f"<td>{plain(f'{seconds(median)} s')}</td>" for median in medians)
            rows += f"<tr><th scope='row'>{fixed(words)}</th>{parts}</tr>"
    if not rows:
        return ""
    head = "".join(f"<th scope='col'>{varying(name)}</th>" for name in phases)
    return f"<table class='accel-table' id='accel_phases'><tr><td></td>{head}</tr>{rows}</table>"


def _top(shown: Sequence[Timing]) -> float:
    """Return the end of the scale: a multiple of the usual time of the slowest backend."""
    usual = max(map(_usual, _by_backend(shown).values()))
    return min(max(t.milliseconds for t in shown), _CUT * usual)


def _bar(timing: Timing, x: float, step: float, top: float) -> str:
    height = max(1.0, min(timing.milliseconds / top, 1) * (_HEIGHT - _TOP))
    size = timing.size if timing.images == 1 else f"{timing.images} x {timing.size}"
    by = timing.backend or "WebUI"
    what = (f"{seconds(timing.milliseconds)} s", size, timing.model, by)
    title = html.escape(", ".join(filter(None, what)))
    left, width = x + step * 0.1, step * 0.8
    bar = (
        f"<rect class='{_kind(timing.backend)}' "
        f"x='{left:.1f}' y='{_HEIGHT - height:.1f}' "
        f"width='{width:.1f}' height='{height:.1f}'><title>{title}</title></rect>"
    )
    if timing.milliseconds <= top:
        return bar
    y, low = _TOP + 10, _TOP + 15  # a slanted gap: the bar goes on beyond the scale
    right = left + width
    gap = f"{left:.1f},{low} {right:.1f},{y} {right:.1f},{y + 4} {left:.1f},{low + 4}"
    return f"{bar}<polygon class='accel-cut' points='{gap}'/>"


def _by_backend(shown: Sequence[Timing]) -> dict[str, list[Timing]]:
    return {b: [t for t in shown if t.backend == b] for b in {t.backend for t in shown}}


def _usual(timings: Sequence[Timing]) -> float:
    """Return the usual milliseconds of a step, as in the sentence above the plot."""
    return statistics.median(itertools.chain(*(t.times for t in timings)))


def _kind(backend: str) -> str:
    """Return the class of what a backend has computed; style.css gives each its colour."""
    return f"accel-by-{backend or 'webui'}"


def _tick(y: float, label: str) -> str:
    return (
        f"<line class='accel-grid' x1='{_LEFT}' x2='{_WIDTH}' y1='{y:.1f}' y2='{y:.1f}'/>"
        f"<text x='{_LEFT - 5}' y='{y + 4:.1f}' text-anchor='end'>{label}</text>"
    )


def _legend(shown: Sequence[Timing], top: float) -> str:
    entries = []
    for backend, timings in sorted(_by_backend(shown).items()):  # the WebUI, "", comes first
        who = plain(backend) if backend else fixed("the WebUI's own code")
        number = plain(f"{seconds(_usual(timings))} s ({len(timings)})")
        entries.append(f"<span><i class='{_kind(backend)}'></i>{who} {number}</span>")
    if any(t.milliseconds > top for t in shown):
        entries.append(fixed("bars with a gap are cut off"))
    return f"<div class='accel-legend'>{' '.join(entries)}</div>"

"""Bars with their labels, as SVG whose words are text: it takes the page's colours and font."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from .verdict import Verdict

_HEIGHT, _GAP, _LABELS, _WIDTH = 22, 12, 14, 340  # in the units of the drawing

STYLE = (
    ".bars{font:12px system-ui,sans-serif;fill:currentColor;width:100%;max-width:34em;height:auto}"
    ".bars .off{fill:#8b94a3}.bars .on{fill:#2f7be0}.bars .other{fill:#b98a2f}"
)
_ALONE = (
    "svg{color-scheme:light dark;color:#1d2430;background:#fff}"
    "@media(prefers-color-scheme:dark){svg{color:#e4e8ef;background:#15181e}}"
)


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its length in whatever all have in common, and what is written at it."""

    name: str
    value: float
    text: str
    kind: str = "other"  # "off", "on" or "other", for its colour


def off_and_on(names: Sequence[str], found: Verdict) -> list[Bar]:
    """Return the bars of what was measured, without acceleration and with it."""
    texts = found.told(ranges=True)
    return [Bar(*bar) for bar in zip(names, found.typical, texts, ("off", "on"), strict=False)]


def bars(title: str, groups: Sequence[Sequence[Bar]], alone: bool = False) -> str:
    """Draw bars from zero, with a gap between groups. `alone` makes a file of its own of it.

    Names and values are written above their bars, so that neither is ever cut.
    """
    longest = max((b.value for group in groups for b in group), default=0) or 1.0
    parts, y = [], 0.0
    for group in groups:
        for bar in group:
            width = max(1.0, bar.value / longest * _WIDTH)
            name, text = html.escape(bar.name), html.escape(bar.text)
            parts.append(
                f"<text x='0' y='{y + _LABELS - 3:.0f}'>{name}</text>"
                f"<text x='{_WIDTH}' y='{y + _LABELS - 3:.0f}' text-anchor='end'>{text}</text>"
                f"<rect class='{bar.kind}' x='0' y='{y + _LABELS:.0f}' rx='2' "
                f"width='{width:.1f}' height='{_HEIGHT - _LABELS + 4}'/>"
            )
            y += _HEIGHT + 10
        y += _GAP
    spoken = "; ".join(f"{b.name}: {b.text}" for group in groups for b in group)
    style = f"<style>{STYLE}{_ALONE}</style>" if alone else ""
    head = "xmlns='http://www.w3.org/2000/svg' " if alone else ""
    box = f"-8 -8 {_WIDTH + 16} {y + 8:.0f}" if alone else f"0 0 {_WIDTH} {max(1.0, y - _GAP):.0f}"
    return (
        f"<svg {head}class='bars' viewBox='{box}' role='img' "
        f"aria-label='{html.escape(title)}. {html.escape(spoken)}'>{style}"
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>"
    )

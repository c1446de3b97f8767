"""The demo's report: a figure with the pictures and the speed, and a page around it."""

from __future__ import annotations

import html
import json
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...model.architecture import Architecture
from ..sampling import to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OFF, _ON, _INK, _GREY = "#b3b9c4", "#2f6fde", "#1d2430", "#6b7482"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2em auto;padding:0 1em;max-width:66em;"
    "color:#1d2430}img{width:100%}"
    "td{border-bottom:1px solid #e3e6eb;padding:.3em 1em .3em 0;vertical-align:top}"
    "td:first-child{color:#6b7482;white-space:nowrap}"
)
_HEADINGS = ("acceleration off", "acceleration on", "difference, 64 times")


@dataclass
class Picture:
    """One sampled picture: its latents `[1, 4, h, w]` and the seconds of each step."""

    label: str  # "off", "on", "off, LoRA" or "on, LoRA"
    latent: Tensor
    seconds: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        """Median seconds of a step, without the first, which warms up."""
        return statistics.median(self.seconds[1:] or self.seconds)


def write_report(
    folder: Path, result: dict[str, Any], pictures: list[Picture], architecture: Architecture
) -> Path:
    """Write report.png, report.html and report.json; return the path of the page.

    `pictures` are off, on, off with LoRA, on with LoRA.
    """
    _figure(folder / "report.png", result, pictures, architecture)
    (folder / "report.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    rows = "".join(
        f"<tr><td>{html.escape(k.replace('_', ' '))}<td>{html.escape(_text(v))}"
        for k, v in result.items()
    )
    page = folder / "report.html"
    page.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Acceleration report</title>"
        f"<style>{_STYLE}</style>"
        f"<h1>{html.escape(_headline(result))}</h1><p>{html.escape(_machine(result))}"
        "<p><img src=report.png alt='pictures with acceleration off and on, and seconds a step'>"
        f"<table>{rows}</table>",
        encoding="utf-8",
    )
    return page


def _headline(r: dict[str, Any]) -> str:
    """The measured speed, be it more or less, and whether the pictures agree."""
    same = "the same picture" if r["error_ok"] else "A DIFFERENT PICTURE"
    speed, with_lora = f"{r['speedup']:.2f}x", f"{r['speedup_with_lora']:.2f}x"
    return f"{speed} the speed with acceleration, {with_lora} with a LoRA, {same}"


def _machine(r: dict[str, Any]) -> str:
    # without trade marks, and without the digest of a CPU's features
    device = re.sub(r"\((?:R|TM)\)| [0-9a-f]{8}$", "", r["device"])
    parts = (
        r["architecture"],
        device,
        r["dtype"],
        f"{r['size']}x{r['size']} pixels",
        f"{r['steps']} steps",
        f"torch {r['torch']}",
        f"backend {r['backend']}",
    )
    return "  ·  ".join(parts)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    return str(value)


def _figure(
    path: Path, result: dict[str, Any], pictures: list[Picture], architecture: Architecture
) -> None:
    from matplotlib.figure import Figure  # not pyplot, which has global state and opens windows

    figure = Figure(figsize=(13, 7.6), facecolor="white")
    figure.text(0.045, 0.945, _headline(result), fontsize=19, weight="bold", color=_INK)
    figure.text(0.045, 0.905, _machine(result), fontsize=10.5, color=_GREY)
    grid = figure.add_gridspec(
        2, 3, left=0.045, right=0.68, top=0.83, bottom=0.05, wspace=0.09, hspace=0.16
    )
    heading = {"fontsize": 12, "weight": "bold", "color": _INK}
    for row, (off, on) in enumerate((pictures[:2], pictures[2:])):
        axes = [figure.add_subplot(grid[row, column]) for column in range(3)]
        _row(axes, off, on, architecture)
        label = ("without LoRA", "with LoRA")[row]
        at = {"rotation": 90, "ha": "center", "va": "center", "transform": axes[0].transAxes}
        axes[0].text(-0.06, 0.5, label, **at, **heading)
        if row == 0:
            for axis, text in zip(axes, _HEADINGS, strict=True):
                axis.set_title(text, pad=8, **heading)
    _bars(figure.add_axes((0.775, 0.47, 0.2, 0.36)), pictures)
    facts = "\n".join(_facts(result))
    figure.text(0.715, 0.41, facts, fontsize=10.5, color=_INK, va="top", linespacing=1.6)
    figure.savefig(path, dpi=110)


def _row(axes: list[Axes], off: Picture, on: Picture, architecture: Architecture) -> None:
    """Draw a picture off, the same on, and their difference."""
    a, b = to_rgb(off.latent, architecture), to_rgb(on.latent, architecture)
    difference = (a.int() - b.int()).abs()
    shown = (a.numpy(), b.numpy(), (difference * 64).clamp(0, 255).numpy().astype("uint8"))
    under = (
        f"{off.step:.3g} s a step",
        f"{on.step:.3g} s a step",
        f"at most {difference.max().item()} of 255",
    )
    for axis, pixels, text in zip(axes, shown, under, strict=True):
        axis.imshow(pixels, interpolation="bicubic" if axis is not axes[2] else "nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(text, fontsize=10.5, color=_GREY)
        for spine in axis.spines.values():
            spine.set_visible(False)


def _bars(axis: Axes, pictures: list[Picture]) -> None:
    """Draw the seconds of a step, off above on, without and with LoRA."""
    places = (0, 1, 2.5, 3.5)
    colours = [_ON if p.label.startswith("on") else _OFF for p in pictures]
    bars = axis.barh(places, [p.step for p in pictures], color=colours, height=0.86)
    axis.bar_label(bars, fmt="%.3g s", padding=4, fontsize=10.5, color=_INK)
    axis.set_yticks(places, [p.label for p in pictures], fontsize=10.5, color=_INK)
    axis.set_title("seconds a step (median)", fontsize=12, weight="bold", color=_INK, pad=8)
    axis.set_xticks([])
    axis.margins(x=0.22)
    axis.invert_yaxis()
    axis.tick_params(left=False)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _facts(r: dict[str, Any]) -> list[str]:
    """Short lines: they share a column of 3.7 inches."""
    first = r["seconds_to_first_image"]
    size = f" ({r['artifact']['bytes'] / 1e6:.1f} MB)" if r["artifact"] else ""
    removed = "the same picture, bit for bit" if r["same_after_lora"] else "A DIFFERENT PICTURE"
    lines = [
        f"{r['compiled_units']} units compiled{size}, ready after {r['seconds_until_ready']:.3g} s"
    ]
    if first is not None:
        lines.append(f"first picture after {first:.3g} s, before that")
    lines += [
        f"LoRA merged in {r['lora_merge_seconds']:.2g} s, {r['compiles_for_lora']} units compiled",
        f"LoRA removed: {removed}",
        f"error of a UNet call: off {r['error_off']:.1e}, on {r['error_on']:.1e}",
        f"latents off and on differ by {r['latent_difference']:.1e}",
    ]
    return [
        *lines,
        *(["the weights are random: pictures are noise"] if r["random_weights"] else []),
    ]

"""The demo's report: one picture that says it all, and a page around it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...model.architecture import Architecture
from ..sampling import to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .demo import Picture

_OFF, _ON, _INK, _GREY = "#b3b9c4", "#2f6fde", "#1d2430", "#6b7482"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2em auto;padding:0 1em;max-width:66em;color:#1d2430}img{width:100%}"
    "td{border-bottom:1px solid #e3e6eb;padding:.3em 1em .3em 0;vertical-align:top}td:first-child{color:#6b7482;white-space:nowrap}"
)


def write_report(
    folder: Path, result: dict[str, Any], pictures: list[Picture], architecture: Architecture
) -> Path:
    """Write report.png, report.html and report.json; returns the page's path."""
    _figure(folder / "report.png", result, pictures, architecture)
    (folder / "report.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    rows = "".join(
        f"<tr><td>{html.escape(k.replace('_', ' '))}<td>{html.escape(_text(v))}"
        for k, v in result.items()
    )
    page = folder / "report.html"
    page.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Acceleration report</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(_headline(result))}</h1><p>{html.escape(_machine(result))}"
        "<p><img src=report.png alt='pictures with acceleration off and on, and the seconds a step took'>"
        f"<table>{rows}</table>",
        encoding="utf-8",
    )
    return page


def _headline(r: dict[str, Any]) -> str:
    """The speed as it was measured, whatever it is, and whether the pictures agree."""
    same = "the same picture" if r["error_ok"] else "ANOTHER PICTURE"
    return f"{r['speedup']:.2f}x the speed with acceleration, {r['speedup_with_lora']:.2f}x with a LoRA, {same}"


def _machine(r: dict[str, Any]) -> str:
    device = re.sub(
        r"\((?:R|TM)\)| [0-9a-f]{8}$", "", r["device"]
    )  # the digest of a CPU's features is for machines
    parts = (
        r["architecture"],
        device,
        r["dtype"],
        f"{r['size']}x{r['size']} pixels",
        f"{r['steps']} steps",
        f"torch {r['torch']}",
    )
    return "  ·  ".join((*parts, f"backend {r['backend']}"))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    return (
        {None: "-", True: "yes", False: "no"}.get(value, str(value))
        if value is None or isinstance(value, bool)
        else str(value)
    )


def _figure(
    path: Path, result: dict[str, Any], pictures: list[Picture], architecture: Architecture
) -> None:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(13, 7.6), facecolor="white")
    figure.text(0.045, 0.945, _headline(result), fontsize=19, weight="bold", color=_INK)
    figure.text(0.045, 0.905, _machine(result), fontsize=10.5, color=_GREY)
    grid = figure.add_gridspec(
        2, 3, left=0.045, right=0.68, top=0.83, bottom=0.05, wspace=0.09, hspace=0.16
    )
    for row, (off, on) in enumerate((pictures[:2], pictures[2:])):
        axes = [figure.add_subplot(grid[row, column]) for column in range(3)]
        _row(axes, off, on, architecture)
        axes[0].text(-0.06, 0.5, ("without LoRA", "with LoRA")[row], rotation=90, ha="center", va="center", transform=axes[0].transAxes,
                     fontsize=12, weight="bold", color=_INK)  # fmt: skip
        if row == 0:
            for axis, heading in zip(
                axes, ("acceleration off", "acceleration on", "difference, 64 times"), strict=True
            ):
                axis.set_title(heading, fontsize=12, weight="bold", color=_INK, pad=8)
    _bars(figure.add_axes((0.775, 0.47, 0.2, 0.36)), pictures)
    figure.text(
        0.715, 0.41, "\n".join(_facts(result)), fontsize=10.5, color=_INK, va="top", linespacing=1.6
    )
    figure.savefig(path, dpi=110)


def _row(axes: list[Axes], off: Picture, on: Picture, architecture: Architecture) -> None:
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
    """Seconds a step, off above on, without and with LoRA."""
    places = (0, 1, 2.5, 3.5)
    bars = axis.barh(
        places,
        [p.step for p in pictures],
        color=[_ON if p.label.startswith("on") else _OFF for p in pictures],
        height=0.86,
    )
    axis.bar_label(bars, fmt="%.3g s", padding=4, fontsize=10.5, color=_INK)
    axis.set_yticks(places, ["off", "on", "off, LoRA", "on, LoRA"], fontsize=10.5, color=_INK)
    axis.set_title("seconds a step (median)", fontsize=12, weight="bold", color=_INK, pad=8)
    axis.set_xticks([])
    axis.margins(x=0.22)
    axis.invert_yaxis()
    axis.tick_params(left=False)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _facts(r: dict[str, Any]) -> list[str]:
    """Short lines: they share a column 3.7 inches wide."""
    first, size = (
        r["seconds_to_first_image"],
        f" ({r['artifact']['bytes'] / 1e6:.1f} MB)" if r["artifact"] else "",
    )
    return [
        f"{r['compiled_units']} units compiled{size}, ready after {r['seconds_until_ready']:.3g} s",
        *([f"first image after {first:.3g} s, not waiting for that"] if first is not None else []),
        f"LoRA merged in {r['lora_merge_seconds']:.2g} s, {r['compiles_for_lora']} units compiled for it",
        f"LoRA removed: {'the same picture, bit for bit' if r['same_after_lora'] else 'ANOTHER PICTURE than before'}",
        f"error of a UNet call: off {r['error_off']:.1e}, on {r['error_on']:.1e}",
        f"latents off and on: {r['latent_difference']:.1e} apart",
        *(["random weights can show no more than noise"] if r["random_weights"] else []),
    ]

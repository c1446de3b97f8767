"""The demo's report: one picture that says it all, and a page around it."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architecture import Architecture
from ..sampling import to_rgb

if TYPE_CHECKING:
    from .demo import Picture

_OFF, _ON = "#8a8f98", "#2f6fde"


def write_report(folder: Path, result: dict[str, Any], pictures: list[Picture], architecture: Architecture) -> Path:
    """Write report.png, report.html and report.json; returns the page's path."""
    _figure(folder / "report.png", result, pictures, architecture)
    (folder / "report.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    rows = "".join(f"<tr><td>{html.escape(k.replace('_', ' '))}</td><td>{html.escape(_text(v))}</td></tr>" for k, v in result.items())
    page = folder / "report.html"
    page.write_text(
        "<!doctype html><meta charset=utf-8><title>Acceleration report</title>"
        "<style>body{font:15px system-ui;margin:2em auto;max-width:70em;color:#222}img{max-width:100%}"
        "td{border-bottom:1px solid #ddd;padding:.25em .8em .25em 0;vertical-align:top}</style>"
        f"<h1>{html.escape(result['architecture'])}: {result['speedup']:.2f}x with acceleration</h1>"
        f"<img src=report.png alt='pictures and times'><table>{rows}</table>",
        encoding="utf-8",
    )
    return page


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    return str(value)


def _figure(path: Path, result: dict[str, Any], pictures: list[Picture], architecture: Architecture) -> None:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(12, 7.2), layout="constrained")
    size = f"{result['size']}x{result['size']}"
    figure.suptitle(" · ".join((result["architecture"], result["device"], result["dtype"], size, f"backend {result['backend']}")))
    grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 1, 1.5))
    for row, (off, on) in enumerate((pictures[:2], pictures[2:4])):
        a, b = to_rgb(off.latent, architecture), to_rgb(on.latent, architecture)
        difference = (a.int() - b.int()).abs()
        panels = (
            (a.numpy(), f"{off.label}: {off.step:.3f} s a step"),
            (b.numpy(), f"{on.label}: {on.step:.3f} s a step"),
            ((difference * 64).clamp(0, 255).numpy().astype("uint8"), f"difference x64 (largest {difference.max().item()} of 255)"),
        )
        for column, (pixels, title) in enumerate(panels):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    axis = figure.add_subplot(grid[0, 3])
    bars = axis.barh(
        [p.label for p in pictures], [p.step for p in pictures], color=[_ON if p.label.startswith("on") else _OFF for p in pictures]
    )
    axis.bar_label(bars, fmt="%.4g s", padding=3)
    axis.margins(x=0.2)
    axis.invert_yaxis()
    axis.set_title("median seconds a step", fontsize=9)
    axis = figure.add_subplot(grid[1, 3])
    for p in pictures:
        axis.plot(range(1, len(p.seconds) + 1), p.seconds, label=p.label, marker="o", color=_ON if p.label.startswith("on") else _OFF,
                  linestyle="--" if "LoRA" in p.label else "-")  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step")
    axis.set_title(f"seconds, step by step · {result['compiles_for_lora']} compiles for the LoRA", fontsize=9)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)

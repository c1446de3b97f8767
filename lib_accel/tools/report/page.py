"""The demonstration's report: one page with live text, its pictures and bars inside it."""

from __future__ import annotations

import base64
import html
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...model.architecture import Architecture
from ..demo.images import Picture
from ..demo.sampling import to_rgb
from .bars import STYLE, Bar, bars, off_and_on
from .verdict import short_seconds
from .words import facts, headline, machine, verdict

STRETCH = 64
"""How many times larger the difference of two pictures is shown than it is."""

_STYLE = (
    ":root{color-scheme:light dark;--ink:#1d2430;--soft:#5b6472;--line:#dfe3ea;--page:#fff}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e4e8ef;--soft:#a3adbb;--line:#343b47;"
    "--page:#15181e}}"
    "body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;padding:1em;max-width:60em;"
    "color:var(--ink);background:var(--page)}"
    "h1{font-size:1.5em;line-height:1.25}h2{font-size:1.1em;margin-top:2em}"
    ".soft,figcaption{color:var(--soft);font-size:.9em}"
    ".pictures{display:grid;grid-template-columns:repeat(3,1fr);gap:.6em}"
    "figure{margin:0}img{width:100%;display:block;image-rendering:pixelated;border-radius:3px}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere}"
    "pre{padding:.7em;border:1px solid var(--line);border-radius:4px}"
    "td{border-bottom:1px solid var(--line);padding:.25em .8em .25em 0;vertical-align:top;"
    "overflow-wrap:anywhere}td:first-child{color:var(--soft)}summary{cursor:pointer}" + STYLE
)


def write_report(
    folder: Path, result: dict[str, Any], pictures: list[Picture], architecture: Architecture
) -> Path:
    """Write report.html, which needs no other file, and report.json; return the page's path.

    `pictures` are off, on, off with LoRA, on with LoRA.
    """
    (folder / "report.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_page(result, pictures, architecture), encoding="utf-8")
    return page


def _page(r: dict[str, Any], pictures: list[Picture], architecture: Architecture) -> str:
    title = html.escape(headline(r))
    random = "The weights are random, so the pictures are noise. " if r["random_weights"] else ""
    sentences = "".join(f"<li>{html.escape(f)}</li>" for f in facts(r)[1:])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p class=soft>{html.escape(machine(r))}</p>"
        f"<h2>Seconds a step</h2>{_steps(r)}<ul>{sentences}</ul>"
        "<h2>The same pictures</h2>"
        f"<p class=soft>{random}The third of each row is the difference, {STRETCH} times as large "
        "as it is: black where there is none.</p>"
        f"{_rows(pictures, architecture)}"
        f"<h2>Where the time went</h2>{_phases(r)}"
        f"<h2>What was compiled</h2>{_units(r)}"
        f"<h2>Again</h2><pre>{html.escape(_command())}</pre>"
        "<p class=soft>On another machine the same command gives that machine's figures.</p>"
        f"<details><summary>All figures</summary>{_table(r)}</details></html>"
    )


def _steps(r: dict[str, Any]) -> str:
    groups = []
    for name, lora in (("", False), (", with a LoRA", True)):
        names = (f"The WebUI today{name}", f"Accelerated{name}")
        groups.append(off_and_on(names, verdict(r, lora)))
    return bars("Seconds a step", groups)


def _phases(r: dict[str, Any]) -> str:
    found = [Bar(name, s, short_seconds(s)) for name, s in r["phases"].items()]
    return bars("Seconds of each phase", [found])


def _units(r: dict[str, Any]) -> str:
    took = (
        "" if r["compile_seconds"] is None else f" The compiler ran {r['compile_seconds']:.0f} s."
    )
    names = "".join(f"<li>{html.escape(name)}</li>" for name in r["units"])
    return (
        f"<p>{r['compiled_units']} of {len(r['units'])} units were compiled in this run; what was "
        f"in the store already is not compiled again.{took}</p>"
        f"<details><summary>The units</summary><ul>{names}</ul></details>"
    )


def _command() -> str:
    return " ".join(["python3 -m lib_accel", *sys.argv[1:]])


def _rows(pictures: list[Picture], architecture: Architecture) -> str:
    figures = []
    for off, on, lora in ((*pictures[:2], ""), (*pictures[2:], ", with a LoRA")):
        a, b = (to_rgb(p.latent, architecture) for p in (off, on))
        difference = (a.int() - b.int()).abs()
        shown = (difference * STRETCH).clamp(0, 255).to(torch.uint8)
        most = int(difference.max())
        figures += [
            _figure(a, f"Off{lora}"),
            _figure(b, f"On{lora}"),
            _figure(shown, f"Difference: {most} of 255 at most" if most else "Difference: none"),
        ]
    return f"<div class=pictures>{''.join(figures)}</div>"


def _figure(pixels: torch.Tensor, words: str) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(out, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    return f"<figure><img alt='{words}' src='{source}'><figcaption>{words}</figcaption></figure>"


def _table(r: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(k.replace('_', ' '))}<td>{html.escape(_text(v))}"
        for k, v in r.items()
        if v is not None and k != "units"
    )
    return f"<table>{rows}</table>"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)

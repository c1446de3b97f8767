"""What a person sees: the status line and the Acceleration tab.

The WebUI translates text that is alone in its element and equals a key of localizations/*.json. So every fixed piece of text has an element
of its own here. Text with values in it has the class `accel-text`; javascript/accel.js translates it with keys that hold {0}, {1}.
"""

from __future__ import annotations

import html
import statistics
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from ...errors import AccelError
from ...store.store import Entry
from .. import webui
from ..service import service

_WORDS = {
    "off": "Acceleration is off",
    "eager": "Acceleration is on, without compiled code",
    "compiling": "Compiling",
    "ready": "Acceleration is on",
    "fallback": "Not accelerated",
}
_MARKS = {"ok": "&#10003;", "note": "&#8226;", "problem": "&#10007;"}
_PROBLEMS = (AccelError, ValueError, OSError)  # ValueError: an option out of range


def _fixed(text: str, tag: str = "span") -> str:
    return f"<{tag}>{text}</{tag}>"


def _text(text: object, tag: str = "span") -> str:
    return f"<{tag} class='accel-text'>{html.escape(str(text))}</{tag}>"


def _plain(text: object) -> str:
    """Names and numbers: never translated."""
    return f"<span class='accel-plain'>{html.escape(str(text))}</span>"


def _problem(e: Exception) -> str:
    return f"<div class='accel-message'>{_text(e)}</div>"


# -- the status line


def status_line() -> str:
    """One line of HTML: state, progress, backend, architecture, reason."""
    try:
        s = service.status()
    except _PROBLEMS as e:
        return f"<div class='accel-line' data-state='fallback'><i></i>{_fixed(_WORDS['fallback'], 'b')}{_text(e, 'small')}</div>"
    parts = ["<i></i>", _fixed(_WORDS[s["state"]], "b")]
    if s["state"] == "compiling":
        parts.append(_progress(s))
    elif s["state"] in ("ready", "eager"):
        parts += [
            _plain(s[name])
            for name in ("backend", "architecture", "dtype")
            if s[name] and (name, s[name]) != ("backend", "eager")
        ]
    reason = s["reason"]
    if s["state"] == "compiling" or (reason or "").startswith(
        "compiling;"
    ):  # of an image before the code was there
        reason = None
    if reason:
        parts.append(_text(reason, "small"))
    mark = "data-limited='1'" if reason and s["state"] == "ready" else ""
    return f"<div class='accel-line' data-state='{s['state']}' {mark}>{' '.join(parts)}</div>"


def _progress(s: dict[str, Any]) -> str:
    fraction = (s["progress"] or {}).get("fraction")
    until = (
        "images wait for it"
        if webui.config().blocking
        else "images are made without acceleration until then"
    )
    shown = [f"<b class='accel-plain'>{fraction:.0%}</b>"] if fraction is not None else []
    return " ".join([*shown, _plain(s["architecture"]), f"<small>{_fixed(until)}</small>"])


# -- the tab


def _details() -> str:
    s = service.status()
    counters = s["counters"]
    rows: dict[str, object] = {
        "Architecture": s["architecture"],
        "Backend": s["backend"],
        "Precision": s["dtype"],
        "Device": s["device"],
        "UNet calls accelerated": counters["accelerated_calls"],
        "UNet calls the WebUI's way": counters["host_calls"],
        "Units compiled since the start": counters["compiles"],
        "LoRA sets merged": counters["lora_merges"],
        "Control models accelerated": s["control_models"],
    }
    if s["progress"]:
        rows["At work on"] = s["progress"]["stage"]
        rows["Seconds so far"] = f"{s['progress']['elapsed_s']:.0f}"
    cells = "".join(
        f"<tr><th>{_fixed(k)}</th><td>{_text(v) if k == 'At work on' else _plain(v)}</td></tr>"
        for k, v in rows.items()
    )
    return f"<table class='accel-table'>{cells}</table>"


def _artifacts() -> str:
    """The table of compiled code. Its buttons call accelDelete of javascript/accel.js, which asks before it deletes."""
    entries = service.artifacts()
    if not entries:
        return f"<h4>Compiled code</h4><p>{_fixed('None yet. It is made when a model is loaded, or with the button above.')}</p>"
    head = "".join(f"<th>{_fixed(h)}</th>" for h in ("Key", "MB", "Last used", "Made for", ""))
    rows = "".join(_artifact(e) for e in entries)
    return (
        f"<h4>Compiled code</h4><table class='accel-table accel-wide'><tr>{head}</tr>{rows}</table>"
    )


def _artifact(e: Entry) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.last_used))
    key, size = html.escape(e.key), f"{e.bytes / 1e6:.1f}"
    button = f"<button type='button' class='accel-button' onclick=\"accelDelete('{key}', '{size}')\">Delete</button>"
    cells = [
        f"<code title='{key}'>{key[:12]}</code>",
        _plain(size),
        _plain(used),
        _text(_about(e)),
        button,
    ]
    return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _about(e: Entry) -> str:
    if e.problem or e.artifact is None:
        return e.problem or ""
    recipe = e.artifact.recipe
    return f"{len(recipe['units'])} units, {recipe['dtype']}, torch {recipe['machine']['torch']}, {recipe['machine']['device_name']}"


def _findings() -> str:
    items = "".join(
        f"<li data-level='{f.level}'><b>{_MARKS[f.level]}</b><div>{_text(f.what)}{_text(f.advice, 'small') if f.advice else ''}</div></li>"
        for f in service.findings()
    )
    return f"<h4>This machine</h4><ul class='accel-findings'>{items}</ul>"


# -- the plot: SVG, which takes the page's colours, light and dark, and its language

_WIDTH, _HEIGHT, _LEFT, _TOP = 480, 150, 42, 10


def _plot() -> str:
    """Median UNet time of the last images, with and without acceleration."""
    timings = list(service.clock.timings)
    title = "<h4>UNet time of the last images</h4>"
    if not timings:
        return title + f"<p>{_fixed('No image has been made yet.')}</p>"
    top = max(t.milliseconds for t in timings)
    step = min(28.0, (_WIDTH - _LEFT) / len(timings))
    bars = "".join(
        _bar(_LEFT + i * step, step, t.milliseconds / top, t.milliseconds, t.accelerated)
        for i, t in enumerate(timings)
    )
    base = f"<line class='accel-axis' x1='{_LEFT}' x2='{_WIDTH}' y1='{_HEIGHT}' y2='{_HEIGHT}'/>"
    scale = (
        _tick(_TOP, _number(top))
        + _tick((_TOP + _HEIGHT) / 2, _number(top / 2))
        + _tick(_HEIGHT, "0")
    )
    picture = f"<svg class='accel-plot' viewBox='0 0 {_WIDTH} {_HEIGHT + 6}' role='img'>{scale}{bars}{base}</svg>"
    axes = f"<p><small>{_fixed('milliseconds a UNet call (median of an image), oldest to newest')}</small></p>"
    return (
        title
        + picture
        + _legend(
            [t.milliseconds for t in timings if not t.accelerated],
            [t.milliseconds for t in timings if t.accelerated],
        )
        + axes
    )


def _number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _bar(x: float, step: float, share: float, milliseconds: float, accelerated: bool) -> str:
    height = max(1.0, share * (_HEIGHT - _TOP))
    return (
        f"<rect class='accel-{'on' if accelerated else 'off'}' x='{x + step * 0.1:.1f}' y='{_HEIGHT - height:.1f}' "
        f"width='{step * 0.8:.1f}' height='{height:.1f}'><title>{milliseconds:.1f} ms</title></rect>"
    )


def _tick(y: float, label: str) -> str:
    return (
        f"<line class='accel-grid' x1='{_LEFT}' x2='{_WIDTH}' y1='{y:.1f}' y2='{y:.1f}'/>"
        f"<text x='{_LEFT - 5}' y='{y + 3:.1f}' text-anchor='end'>{label}</text>"
    )


def _legend(off: list[float], on: list[float]) -> str:
    names = (("accel-off", "without acceleration", off), ("accel-on", "with acceleration", on))
    entries = [
        f"<span><i class='{css}'></i>{_fixed(words)} {_plain(_number(statistics.median(values)) + ' ms')}</span>"
        for css, words, values in names
        if values
    ]
    return f"<div class='accel-legend'>{' '.join(entries)}</div>"


# -- putting it together


def _shown(part: Callable[[], str]) -> str:
    """A part of the tab, or why it cannot be shown: one part's trouble must not take the others away."""
    try:
        return part()
    except _PROBLEMS as e:
        return _problem(e)


def _everything(message: str = "") -> tuple[str, ...]:
    return message, *(_shown(part) for part in (_details, _plot, _artifacts, _findings))


def _build() -> tuple[str, ...]:
    try:
        service.build()
        state = service.status()["state"]
    except _PROBLEMS as e:
        return _everything(_problem(e))
    words = {
        "compiling": "The compiler is at work; the status line says how far it is.",
        "ready": "This model has its compiled code; there is nothing to build.",
    }
    return _everything(
        f"<div class='accel-message'>{_fixed(words[state])}</div>" if state in words else ""
    )


def _delete(key: str) -> tuple[str, ...]:
    try:
        removed = bool(key) and service.delete(key)
    except _PROBLEMS as e:
        return _everything(_problem(e))
    words = (
        "Deleted. A model that was using it keeps it until the WebUI ends."
        if removed
        else "There is no such compiled code any more."
    )
    return _everything(f"<div class='accel-message'>{_fixed(words)}</div>")


def tab() -> list[tuple[gr.Blocks, str, str]]:
    """The Acceleration tab, as the WebUI's tab callback returns it. javascript/accel.js fills it when it is opened."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(status_line(), elem_id="accel_status_tab", elem_classes=["accel-status"])
        with gr.Row():
            refresh = gr.Button("Refresh", elem_id="accel_refresh")
            build = gr.Button("Build now", elem_id="accel_build", variant="primary")
        message = gr.HTML(elem_id="accel_message")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                details = gr.HTML(elem_id="accel_details")
            with gr.Column(scale=3, min_width=320):
                plot = gr.HTML(elem_id="accel_plot")
        artifacts = gr.HTML(elem_id="accel_artifacts")
        findings = gr.HTML(elem_id="accel_findings")
        everything = [message, details, plot, artifacts, findings]
        refresh.click(_everything, outputs=everything, queue=False, show_progress=False)
        build.click(_build, outputs=everything, queue=False, show_progress=False)
        # pressed by javascript: `_js` gives the key of the artifact to delete, `accel_status` is fetched for the status lines
        key = gr.Textbox(visible=False)
        delete = gr.Button(visible=False, elem_id="accel_delete")
        delete.click(
            _delete,
            _js="accelChosen",
            inputs=[key],
            outputs=everything,
            queue=False,
            show_progress=False,
        )
        line = gr.HTML(visible=False)
        poll = gr.Button(visible=False)
        poll.click(
            status_line, outputs=[line], queue=False, show_progress=False, api_name="accel_status"
        )
        key.do_not_save_to_config = delete.do_not_save_to_config = poll.do_not_save_to_config = True
    return [(blocks, "Acceleration", "accel")]

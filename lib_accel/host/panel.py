"""What a person sees: the status line and the Acceleration tab."""

from __future__ import annotations

import html
import time
from typing import Any

import gradio as gr

from ..errors import AccelError
from .service import service

_WORDS = {
    "off": "Acceleration is off",
    "eager": "Acceleration is on, without compiled code",
    "compiling": "Compiling; images are made without acceleration until then",
    "ready": "Acceleration is on",
    "fallback": "Not accelerated",
}
_COLOURS = {"off": "#888", "eager": "#b80", "compiling": "#2f6fde", "ready": "#2a2", "fallback": "#c60"}


def status_line() -> str:
    """One line of HTML: state, backend, architecture, progress, reason. Words are elements of their own so that they can be translated."""
    s = service.status()
    parts = [f"<span class='accel-dot' style='color:{_COLOURS[s['state']]}'>&#9679;</span>", f"<span>{_WORDS[s['state']]}</span>"]
    if s["progress"] and s["progress"]["fraction"] is not None:
        parts.append(f"<b>{s['progress']['fraction']:.0%}</b>")
    if s["state"] in ("ready", "eager"):
        parts.append(
            f"<span>{html.escape(s['backend'])} &middot; {html.escape(s['architecture'])} &middot; {html.escape(s['dtype'])}</span>"
        )
    if s["reason"]:
        parts.append(f"<small>{html.escape(s['reason'])}</small>")
    return f"<div class='accel-line'>{' '.join(parts)}</div>"


def _details() -> str:
    s = service.status()
    rows = {
        "Architecture": s["architecture"],
        "Backend": s["backend"],
        "Precision": s["dtype"],
        "Device": s["device"],
        "UNet calls accelerated": s["counters"]["accelerated_calls"],
        "UNet calls the WebUI's way": s["counters"]["host_calls"],
        "Units compiled since the start": s["counters"]["compiles"],
        "LoRA sets merged": s["counters"]["lora_merges"],
    }
    cells = "".join(f"<tr><td><span>{k}</span></td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"{status_line()}<table class='accel-table'>{cells}</table>"


def _artifacts() -> list[list[str]]:
    return [
        [e.key[:12], f"{e.bytes / 1e6:.1f}", time.strftime("%Y-%m-%d %H:%M", time.localtime(e.last_used)), _about(e)]
        for e in service.artifacts()
    ]


def _about(entry: Any) -> str:
    if entry.problem:
        return entry.problem
    recipe = entry.artifact.recipe
    return f"{len(recipe['units'])} units, {recipe['dtype']}, torch {recipe['machine']['torch']}, {recipe['machine']['device_name']}"


def _findings() -> str:
    marks = {"ok": "&#10003;", "note": "&#8226;", "problem": "&#10007;"}
    items = "".join(
        f"<li>{marks[f.level]} {html.escape(f.what)}" + (f"<br><small>{html.escape(f.advice)}</small>" if f.advice else "") + "</li>"
        for f in service.findings()
    )
    return f"<ul class='accel-findings'>{items}</ul>"


def _plot() -> Any:
    """Median UNet time of the last images, with and without acceleration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axis = figure.add_subplot()
    for accelerated, label, colour in ((False, "off", "#8a8f98"), (True, "on", "#2f6fde")):
        images = [(i, t.milliseconds) for i, t in enumerate(service.clock.timings) if t.accelerated == accelerated]
        if images:
            axis.bar([i for i, _ in images], [ms for _, ms in images], color=colour, label=label)
    axis.set_xlabel("image")
    axis.set_ylabel("ms a UNet call")
    if service.clock.timings:
        axis.legend(fontsize=8)
    else:
        axis.text(0.5, 0.5, "no image yet", ha="center", va="center", transform=axis.transAxes)
    return figure


def _everything() -> tuple[Any, ...]:
    return _details(), _artifacts(), _plot(), _findings()


def _build() -> tuple[Any, ...]:
    try:
        service.build()
    except AccelError as e:
        gr.Warning(str(e))
    return _everything()


def _delete(prefix: str) -> tuple[Any, ...]:
    keys = [e.key for e in service.artifacts() if prefix and e.key.startswith(prefix.strip())]
    if len(keys) != 1:
        gr.Warning(f"{len(keys)} artifacts begin with {prefix!r}; expected exactly one")
    else:
        service.delete(keys[0])
    return _everything()


def tab() -> list[tuple[gr.Blocks, str, str]]:
    """The Acceleration tab, as the WebUI's tab callback returns it."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        details = gr.HTML(_details(), elem_id="accel_details")
        with gr.Row():
            refresh = gr.Button("Refresh", elem_id="accel_refresh")
            build = gr.Button("Build now", elem_id="accel_build", variant="primary")
        plot = gr.Plot(label="UNet time of the last images", elem_id="accel_plot")
        table = gr.Dataframe(
            headers=["Artifact", "MB", "Last used", "Made for"],
            value=_artifacts,
            interactive=False,
            label="Artifacts",
            elem_id="accel_artifacts",
        )
        with gr.Row():
            key = gr.Textbox(label="Artifact to delete", placeholder="first characters of its key", elem_id="accel_key")
            delete = gr.Button("Delete", elem_id="accel_delete")
        findings = gr.HTML(_findings(), elem_id="accel_findings", label="This machine")
        everything = [details, table, plot, findings]
        refresh.click(_everything, outputs=everything, queue=False, show_progress=False)
        build.click(_build, outputs=everything, queue=False, show_progress=False)
        delete.click(_delete, inputs=[key], outputs=everything, queue=False, show_progress=False)
        # javascript/accel.js presses the one and copies the other to where pictures are made
        line = gr.HTML(status_line(), elem_id="accel_line", elem_classes=["accel-hidden"])
        poll = gr.Button("", elem_id="accel_poll", elem_classes=["accel-hidden"])
        poll.click(status_line, outputs=[line], queue=False, show_progress=False)
    return [(blocks, "Acceleration", "accel")]

"""The Acceleration tab: this model, UNet times, compiled code on disk, this machine."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from .. import stored_code
from ..api import refusal
from ..service import service
from .artifacts import artifacts
from .markup import fixed, heading, message, plain, problem, varying
from .plot import plot
from .status_line import status_line

_MARKS = {"ok": "&#10003;", "note": "&#8226;", "problem": "&#10007;"}
_AFTER_BUILD = {
    "compiling": "The compiler is running; the status line shows its progress.",
    "ready": "This model has its compiled code; there is nothing to build.",
}


def _details() -> str:
    s = service.status()
    counters = s["counters"]
    rows: dict[str, object] = {
        "Architecture": s["architecture"],
        "Backend": s["backend"],
        "Precision": s["dtype"],
        "Device": s["device"],
        "UNet calls accelerated": counters["accelerated_calls"],
        "UNet calls not accelerated": counters["host_calls"],
        "Units compiled since the start": counters["compiles"],
        "LoRA sets merged": counters["lora_merges"],
        "Control models accelerated": s["control_models"],
        "Steps compared with the WebUI's": s["witnessed"],
        "Largest difference": f"{s['worst_error']:.1e}",
        "Seconds taken by comparing": f"{s['witness_seconds']:.1f}",
        "Measured speed-up of a step": f"{s['speedup']:.2f}" if s["speedup"] else "-",
    }
    cells = "".join(f"<tr><th>{fixed(k)}</th><td>{plain(v)}</td></tr>" for k, v in rows.items())
    if s["progress"]:
        stage, seconds = varying(s["progress"]["stage"]), plain(f"{s['progress']['elapsed_s']:.0f}")
        cells += f"<tr><th>{fixed('Compiler')}</th><td>{stage}</td></tr>"
        cells += f"<tr><th>{fixed('Seconds so far')}</th><td>{seconds}</td></tr>"
    if s["difference"]:
        cells += f"<tr><th>{fixed('Difference')}</th><td>{varying(s['difference'])}</td></tr>"
    return f"<table class='accel-table'>{cells}</table>"


def _plot() -> str:
    return plot(service.clock.timings)


def _findings() -> str:
    items = "".join(
        f"<li data-level='{f.level}'><b>{_MARKS[f.level]}</b>"
        f"<div>{varying(f.what)}{varying(f.advice, 'small') if f.advice else ''}</div></li>"
        for f in stored_code.findings()
    )
    return f"{heading('This machine')}<ul class='accel-findings'>{items}</ul>"


def _or_problem(part: Callable[[], str]) -> str:
    """Return a part of the tab, or why it cannot be shown. The other parts are shown anyway."""
    try:
        return part()
    except Exception as e:  # noqa: BLE001  the other parts are shown
        return problem(e)


def _everything(answer: str = "") -> tuple[str, ...]:
    """Return the value of each component that `tab` lists as outputs. `answer` is HTML."""
    return answer, *map(_or_problem, (_details, _plot, artifacts, _findings))


def _build(request: gr.Request) -> tuple[str, ...]:
    if reason := refusal(request.request):
        return _everything(message(varying(reason)))
    try:
        service.build()
        state = service.status()["state"]
    except Exception as e:  # noqa: BLE001  the other parts are shown
        return _everything(problem(e))
    return _everything(message(fixed(_AFTER_BUILD[state])) if state in _AFTER_BUILD else "")


def _delete(key: str, request: gr.Request) -> tuple[str, ...]:
    if reason := refusal(request.request):
        return _everything(message(varying(reason)))
    try:
        deleted = bool(key) and service.delete(key)
    except Exception as e:  # noqa: BLE001  the other parts are shown
        return _everything(problem(e))
    if deleted:
        text = "Deleted. A model that was using it keeps it until the WebUI ends."
    else:
        text = "There is no such compiled code any more."
    return _everything(message(fixed(text)))


def tab() -> list[tuple[gr.Blocks, str, str]]:
    """Return the tab for the WebUI's callback. javascript/accel.js fills it when it is opened."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(status_line(), elem_id="accel_status_tab", elem_classes=["accel-status"])
        with gr.Row():
            refresh = gr.Button("Refresh", elem_id="accel_refresh")
            build = gr.Button("Build now", elem_id="accel_build", variant="primary")
        answer = gr.HTML(elem_id="accel_message")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                details = gr.HTML(elem_id="accel_details")
            with gr.Column(scale=3, min_width=320):
                times = gr.HTML(elem_id="accel_plot")
        stored = gr.HTML(elem_id="accel_artifacts")
        machine = gr.HTML(elem_id="accel_findings")
        parts = [answer, details, times, stored, machine]
        refresh.click(_everything, outputs=parts, queue=False, show_progress=False)
        build.click(_build, outputs=parts, queue=False, show_progress=False)
        _add_hidden(parts)
    return [(blocks, "Acceleration", "accel")]


def _add_hidden(parts: list[gr.HTML]) -> None:
    """Add what javascript/accel.js uses: a delete button, and the API name `accel_status`."""
    key = gr.Textbox(visible=False)  # accelChosen of accel.js fills in the artifact to delete
    delete = gr.Button(visible=False, elem_id="accel_delete")
    line = gr.HTML(visible=False)
    poll = gr.Button(visible=False)
    for hidden in (key, delete, poll):
        hidden.do_not_save_to_config = True  # the WebUI would list it in ui-config.json
    delete.click(
        _delete,
        _js="accelChosen",
        inputs=[key],
        outputs=parts,
        queue=False,
        show_progress=False,
    )
    poll.click(
        status_line, outputs=[line], queue=False, show_progress=False, api_name="accel_status"
    )

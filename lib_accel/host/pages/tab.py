"""The Acceleration tab: this model, step times, compiled code on disk, this machine."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from ...compile.doctor import Finding
from ...config import MIB
from ...errors import AccelError
from ...runtime.trial import Trial
from .. import stored_code, webui
from ..service import service
from .api import refusal
from .artifacts import artifacts
from .markup import fixed, heading, message, plain, problem, varying, what_failed
from .plot import plot
from .speed import why_off
from .status_line import announced_line, status_line

Findings = Callable[[], list[Finding]]

_MARKS = {"ok": "&#10003;", "note": "&#8226;", "problem": "&#10007;"}
_RUNS = "The compiler is running; the status line shows its progress."
_BUILT = "This model has its compiled code; there is nothing to build."


def _details(found: Findings) -> str:
    """Return what a bug report needs, folded away. Its text is in English, to be copied."""
    s = service.status()
    counters, compared = s["counters"], s["witnessed"]
    rows: dict[str, object] = {
        "Architecture": s["architecture"],
        "Backend": s["backend"],
        "Precision": s["dtype"],
        "Device": s["device"],
        "UNet calls by compiled code": counters["accelerated_calls"],
        "UNet calls by our code, not compiled": counters["eager_calls"],
        "UNet calls by the WebUI's own code": counters["host_calls"],
        "Units compiled since the start": counters["compiles"],
        "LoRA sets merged": counters["lora_merges"],
        "Control models accelerated": s["control_models"],
        "Steps compared with the WebUI's": compared,
        "Largest difference": f"{s['worst_error']:.1e}" if compared else "",
        "Seconds taken by comparing": f"{s['witness_seconds']:.1f}" if compared else "",
        "Measured speed-up of a step": f"{s['speedup']:.2f}" if s["speedup"] else "",
        "Times of a step": "; ".join(map(_times, s["speeds"])),
        "Second copy of the weights, GB": f"{s['kept_bytes'] / 1e9:.1f}" if s["kept_bytes"] else "",
        "Compiler": s["progress"]["stage"] if s["progress"] else "",
        "Difference": s["difference"],
        "Reason": s["reason"],
        **{f"VAE {kind}": _half(row) for kind, row in s["vae"].items()},
    }
    rows = {name: value for name, value in rows.items() if value}
    sentences = ("Compiler", "Difference", "Reason")
    cells = "".join(
        f"<tr><th scope='row'>{fixed(name)}</th>"
        f"<td>{(varying if name in sentences else plain)(value)}</td></tr>"
        for name, value in rows.items()
    )
    checks = [f"{f.level}: {f.what} {f.advice}".strip() for f in found()]
    report = "\n".join([*(f"{name}: {value}" for name, value in rows.items()), *checks])
    copy = (
        f"<button type='button' class='accel-button' data-report='{html.escape(report)}' "
        f"onclick='accelCopy(this)'>{fixed('Copy')}</button>"
    )
    return (
        f"<details><summary>{fixed('Details for a bug report')}</summary>"
        f"{copy}<table class='accel-table'>{cells}</table></details>"
    )


def _half(row: dict[str, Any]) -> str:
    """Return how one half of the VAE stands, in one line."""
    ours = row["accelerated_calls"]
    calls = f"calls={ours}/{ours + row['host_calls']}"
    size = f"{row['artifact']['bytes'] / MIB:.1f} MiB" if row["artifact"] else ""
    return ", ".join(filter(None, (row["state"], row["backend"], calls, size, row["reason"])))


def _times(row: dict[str, Any]) -> str:
    """Return what was measured at a size class, in one line."""
    ours, theirs = (f"{row[way]:.3g} s" for way in ("ours_s", "theirs_s"))
    return f"{row['size']}: {ours} {row['backend']}, {theirs} WebUI"


def _plot() -> str:
    return plot(service.clock.timings)


def _findings(found: Findings) -> str:
    items = "".join(
        f"<li data-level='{f.level}'><b>{_MARKS[f.level]}</b>"
        f"<div>{varying(f.what)}{varying(f.advice, 'small') if f.advice else ''}</div></li>"
        for f in found()
    )
    return f"{heading('This machine')}<ul class='accel-findings'>{items}</ul>"


def _or_problem(part: Callable[[], str]) -> str:
    """Return a part of the tab, or why it cannot be shown. The other parts are shown anyway."""
    try:
        return part()
    except Exception as e:  # noqa: BLE001  the other parts are shown
        return problem(what_failed(e))


def _everything(answer: str = "") -> tuple[Any, ...]:
    """Return the value of each component that `tab` lists as outputs. `answer` is HTML."""
    found = functools.cache(stored_code.findings)  # shown twice
    of_machine = (functools.partial(part, found) for part in (_findings, _details))
    parts = map(_or_problem, (_plot, artifacts, *of_machine))
    return (answer, *parts, *_buttons())


def _buttons() -> tuple[Any, Any]:
    """Return how *Build now* and *Cancel* change: each can be pressed where it does something."""
    try:
        compiles = _compiles()
        idle = not (compiles or service.builds_later)
        buildable = webui.enabled() and idle and not _is_built()
    except Exception:  # noqa: BLE001  the parts of the tab say what is wrong
        compiles, buildable = False, True
    return gr.update(interactive=buildable), gr.update(visible=compiles)


def _compiles() -> bool:
    """Return whether the compiler is at work; after *Cancel* it is not, though it may be ending."""
    return webui.enabled() and any(not (job.done or job.cancelled) for job in service.jobs())


def _is_built() -> bool:
    current, model = service.current(), webui.current_model()
    stored = [each.is_stored for each in service.vaes.engines(model)]
    return current is not None and current.engine.is_stored and all(stored) and _slower() is None


def _slower() -> Trial | None:
    """Return what has found our way to be slower somewhere: *Build now* lets it measure again."""
    current = service.current()
    return current.witness.trial if current and current.witness.trial.slower else None


def _answer(doing: Callable[[], str], request: gr.Request) -> tuple[Any, ...]:
    """Do what a button is for; return everything, with the answer or why it was not done."""
    try:
        answer = problem(reason) if (reason := refusal(request.request)) else doing()
    except Exception as e:  # noqa: BLE001  the other parts are shown
        answer = problem(what_failed(e))
    return _everything(answer)


def _build(request: gr.Request) -> tuple[Any, ...]:
    def build() -> str:
        if not webui.enabled():
            raise AccelError(why_off())
        if (slower := _slower()) is not None:
            slower.begin_anew()
            return message(fixed("The next images measure again which way is faster."))
        service.build()
        if service.builds_later:
            return message(fixed("It begins when the image that is being made is done."))
        text = _RUNS if _compiles() else _BUILT if _is_built() else ""
        return message(fixed(text)) if text else ""

    return _answer(build, request)


def _cancel(request: gr.Request) -> tuple[Any, ...]:
    def cancel() -> str:
        if service.cancel_build():
            return message(fixed("It is being cancelled. What was compiled so far is kept."))
        return message(fixed("Nothing is compiled now."))

    return _answer(cancel, request)


def _delete(key: str, request: gr.Request) -> tuple[Any, ...]:
    def delete() -> str:
        if key and service.delete(key):
            text = "Deleted. A model that was using it keeps it until the WebUI ends."
        else:
            text = "There is no such compiled code any more."
        return message(fixed(text))

    return _answer(delete, request)


def tab() -> list[tuple[gr.Blocks, str, str]]:
    """Return the tab for the WebUI's callback. javascript/accel.js fills it when it is opened."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(announced_line(), elem_id="accel_status_tab", elem_classes=["accel-status"])
        answer = gr.HTML(elem_id="accel_message")
        times = gr.HTML(elem_id="accel_plot")
        with gr.Row(elem_id="accel_buttons"):
            refresh = gr.Button("Refresh", elem_id="accel_refresh", size="sm")
            build = gr.Button("Build now", elem_id="accel_build", size="sm", interactive=False)
            cancel = gr.Button("Cancel", elem_id="accel_cancel", size="sm", visible=False)
        stored = gr.HTML(elem_id="accel_artifacts")
        machine = gr.HTML(elem_id="accel_findings")
        details = gr.HTML(elem_id="accel_details")
        parts = [answer, times, stored, machine, details, build, cancel]
        for button, doing in ((refresh, _everything), (build, _build), (cancel, _cancel)):
            button.click(doing, outputs=parts, queue=False, show_progress=False)
        _add_hidden(parts)
    return [(blocks, "Acceleration", "accel")]


def _add_hidden(parts: list[Any]) -> None:
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

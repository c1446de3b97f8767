"""The status line: above the pictures of txt2img and img2img, and at the top of the tab."""

from __future__ import annotations

from typing import Any

from ..service import service
from ..taiyi.hooks import taiyi
from .markup import fixed, plain, varying, what_failed

_STATES = {
    "off": "Acceleration is off",
    "eager": "Acceleration is on, without compiled code",
    "compiling": "Compiling",
    "ready": "Acceleration is on",
    "fallback": "Not accelerated",
}


def status_line() -> str:
    """Return one line of HTML: state, progress, backend, architecture, reason."""
    try:
        s = service.status()
    except Exception as e:  # noqa: BLE001  the page asks every few seconds
        what = varying(what_failed(e), "small")
        return _line("fallback", [fixed(_STATES["fallback"], "b"), what])
    state, parts = s["state"], [fixed(_STATES[s["state"]], "b")]
    if state == "compiling" and not taiyi.refused:
        return _line(state, [*parts, *_progress(s)])
    if state in ("ready", "eager"):
        names = [s["backend"] if s["backend"] != "eager" else "", s["architecture"], s["dtype"]]
        parts += [plain(name) for name in names if name]
    reason = taiyi.refused or s["reason"] or ""  # the WebUI shows a refusal in its console alone
    if not reason or reason.startswith("compiling;"):  # left by an image before the code was ready
        return _line(state, parts)
    return _line(state, [*parts, varying(reason, "small")], limited=state == "ready")


def _line(state: str, parts: list[str], limited: bool = False) -> str:
    mark = "data-limited='1'" if limited else ""
    return f"<div class='accel-line' data-state='{state}' {mark}><i></i> {' '.join(parts)}</div>"


def _progress(s: dict[str, Any]) -> list[str]:
    fraction = (s["progress"] or {}).get("fraction")
    until = (
        "images wait for it"
        if s["images_wait"]
        else "images are made without acceleration until then"
    )
    shown = [f"<b class='accel-plain'>{fraction:.0%}</b>"] if fraction is not None else []
    return [*shown, plain(s["architecture"]), f"<small>{fixed(until)}</small>"]

"""The status line: above the pictures of txt2img and img2img, and at the top of the tab."""

from __future__ import annotations

from typing import Any

from ..service import service
from ..taiyi.hooks import taiyi
from ..vae.vaes import BEGINS
from .markup import fixed, plain, varying, what_failed
from .speed import measured

_STATES = {
    "off": "Acceleration is off",
    "eager": "Acceleration is on, without compiled code",
    "compiling": "Compiling",
    "ready": "Acceleration is on",
    "fallback": "Not accelerated",
}
_WAITS = ("another ", "waiting ")
"""How the stage of a job begins that waits: for its turn, or for video memory."""

_SHORT = 40
"""A reason of more characters is folded to one line above a picture."""


def announced_line() -> str:
    """Return the line inside an element that says aloud what changes in it."""
    return f"<div role='status' aria-live='polite'>{status_line()}</div>"


def status_line() -> str:
    """Return one line of HTML: state, progress, backend, speed, reason."""
    try:
        s = service.status()
        if s["state"] == "compiling" and not taiyi.refused:
            why = s["reason"] or ""
            reason = [] if _is_passing(why) else [_reason(why)]
            made = _made(s, "b") or _progress({}, "b")
            return _line("compiling", [*made, _until(s["images_wait"]), *reason])
        return _standing(s)
    except Exception as e:  # noqa: BLE001  the page asks every few seconds
        return _line("fallback", [fixed(_STATES["fallback"], "b"), _reason(what_failed(e))])


def _standing(s: dict[str, Any]) -> str:
    state = s["state"]
    if state == "fallback" and s["backend"]:  # it is `eager`, and images are marked so
        state = "eager"
    parts = [fixed(_STATES[state], "b")]
    if state in ("ready", "eager"):
        speed = measured()
        factor = speed.factor if speed and speed.backend == s["backend"] else None
        parts.append(plain(s["backend"] + (f", {factor:.1f}x" if factor else "")))
        parts += _made(s, "small")
    reason = taiyi.refused or s["reason"] or ""  # the WebUI shows a refusal in its console alone
    if _is_passing(reason) and state == "ready":
        of_vae = (row["reason"] or "" for row in s["vae"].values())
        reason = next((r for r in of_vae if not _is_passing(r)), "")
        parts += [plain("VAE:")] if reason and "VAE" not in reason else []
    if _is_passing(reason):
        return _line(state, parts)
    reason = reason.removeprefix(f"{s['backend']}: ")  # which is named before it
    return _line(state, [*parts, _reason(reason)], limited=state == "ready")


def _made(s: dict[str, Any], tag: str) -> list[str]:
    """Return the progress of the model's code or its VAE's, if any: of what waits last."""
    jobs = [row["progress"] for row in (s, *s["vae"].values()) if row["progress"]]
    if not jobs:
        return []
    shown = min(jobs, key=lambda p: p.get("stage", "").startswith(_WAITS))
    return [plain("VAE:")] * (shown is not s["progress"]) + _progress(shown, tag)


def _is_passing(reason: str) -> bool:
    """Return whether there is no reason, or one that an image left before the code was ready."""
    return not reason or reason.startswith(("compiling;", BEGINS))


def _reason(reason: str) -> str:
    shown = varying(reason, "small")
    if len(reason) <= _SHORT:
        return shown
    return f"<details class='accel-reason'><summary>{shown}</summary></details>"


def _line(state: str, parts: list[str], limited: bool = False) -> str:
    mark, dot = "data-limited='1'" if limited else "", "<i aria-hidden='true'></i>"
    return f"<div class='accel-line' data-state='{state}' {mark}>{dot} {' '.join(parts)}</div>"


def _until(images_wait: bool) -> str:
    waits, goes_on = "images wait for it", "images are made without acceleration until then"
    return f"<small>{fixed(waits if images_wait else goes_on)}</small>"


def _progress(progress: dict[str, Any], tag: str) -> list[str]:
    part, parts, left = (progress.get(name) for name in ("part", "parts", "remaining_s"))
    what = f"Compiling {part} of {parts}" if parts else "Compiling"
    if left is not None:
        time = _time_left(left)
        what = f"Compiling {part} of {parts}, {time} left" if parts else f"Compiling, {time} left"
    stage = progress.get("stage", "")
    if stage.startswith(("fetching ", *_WAITS)):
        what = stage
    if stage == "cancelling":  # a compiler in this process first ends its unit
        what = "Cancelling"
    value = progress.get("fraction") or 0
    bar = f"<progress max='1' value='{value:.3f}' aria-hidden='true'></progress>"
    return [varying(what, tag), bar]


def _time_left(seconds: float) -> str:
    """Return about how long, in steps that do not change at each look."""
    if seconds < 55:
        return f"about {max(10, 10 * round(seconds / 10))} seconds"
    minutes = round(seconds / 60)
    return "about 1 minute" if minutes <= 1 else f"about {minutes} minutes"

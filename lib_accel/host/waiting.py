"""Images that wait for the compiler, where the user wants that. Nothing else ever waits for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modules import shared

from ..compile.jobs import Job, Progress
from . import webui
from .options import WAIT

LOOK_S = 0.2
"""Seconds between two looks at what the user wants."""


def images_wait() -> bool:
    """Return whether images wait for the compiler, by the settings or the command line."""
    return bool(webui.flag("accel_blocking")) or webui.option("accel_while_compiling") == WAIT


def wait(job: Job) -> bool:
    """Let an image wait for this job; return whether it has ended. Its progress is the WebUI's.

    Interrupt, Skip, and a changed setting end the wait; the image is made without acceleration. So
    does a compiler that waits for video memory, which the model itself may hold.
    """
    state, before = shared.state, shared.state.textinfo
    try:
        while not job.wait(LOOK_S):
            if not (images_wait() and webui.enabled()) or _given_up(state) or job.waits_for_memory:
                return False
            state.textinfo = _sentence(job.progress())
        return True
    finally:
        state.textinfo = before


def _given_up(state: Any) -> bool:
    """Return whether the user has pressed a button to end the wait, and take note of it.

    Else the image that waits would not be made at all. After Interrupt it is the last one of its
    job, as with the WebUI's own way to stop after an image (1.8 and later).
    """
    if state.interrupted:
        state.interrupted, state.stopping_generation = False, True
        return True
    if state.skipped:
        state.skipped = False
        return True
    return getattr(state, "stopping_generation", False)


def _sentence(p: Progress) -> str:
    if not p.parts or p.remaining_s is None:
        return _translated("Waiting for the compiler; Interrupt makes the image now, slower")
    minutes = max(round(p.remaining_s / 60), 1)
    text = "Compiling {0} of {1}, about {2} min left; Interrupt makes the image now, slower"
    return _translated(text).format(p.part, p.parts, minutes)


def _translated(text: str) -> str:
    """Return a text in the language of the WebUI, which does not translate what holds values."""
    file = Path(__file__).parents[2] / "localizations" / f"{shared.opts.localization}.json"
    try:
        return json.loads(file.read_text("utf-8")).get(text, text)
    except (OSError, ValueError):
        return text

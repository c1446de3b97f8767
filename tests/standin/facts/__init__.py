"""How the WebUI behaves at every point where the stand-in replaces it.

The same functions run in the stand-in and in a real WebUI (by the extension
tests/webui/standin_probe), and tests/webui/test_standin.py compares what they return. Each leaves
the WebUI as it was and returns plain JSON. The extension knows no `tests` package, so nothing here
imports from one.
"""

from __future__ import annotations

from typing import Any

from . import jobs, lora, odd_networks, pages, settings, text, unet
from .jobs import listen

__all__ = ["find", "listen"]

_GROUPS = {
    "webui": (
        settings.options,
        settings.settings_page,
        settings.lock,
        settings.buttons,
        settings.device,
        settings.other_unets,
        jobs.started,
        jobs.script_class,
        unet.unet,
        unet.unet_calls,
        text.text_encoders,
        text.models_in_memory,
    ),
    "lora": (*lora.FACTS, odd_networks.malformed),
    "pages": pages.FACTS,
}


def find(which: str) -> Any:
    """Return the facts of one group: "webui", "lora", "pages", or "job" of the last job."""
    if which == "job":
        return jobs.job()
    return {f.__name__: f() for f in _GROUPS[which]}

"""Images that wait for the compiler."""

from __future__ import annotations

from . import webui
from .options import WAIT


def images_wait() -> bool:
    """Return whether images wait for the compiler, by the settings or the command line."""
    return bool(webui.flag("accel_blocking")) or webui.option("accel_while_compiling") == WAIT

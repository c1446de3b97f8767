"""The arguments of `doctor`."""

from __future__ import annotations

from .common import Commands, add_device_arguments, add_store_arguments, command

_MORE = """It judges the Python that runs it, and says first which one that is. To judge that of
the WebUI, call it with that. It installs nothing, changes nothing, and runs without torch too.

The exit status is 1 where it finds a problem. A note is no problem, it says what could be better.
"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    summary = "say what works on this machine, and what to do about the rest"
    p = command(commands, "doctor", summary, _MORE)
    add_store_arguments(p)
    add_device_arguments(p)

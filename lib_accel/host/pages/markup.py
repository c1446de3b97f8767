"""Pieces of HTML that can be translated.

The WebUI translates an element whose whole text is a key of `localizations/*.json`, so every fixed
text has an element of its own. Text with values in it has the class `accel-text`:
javascript/accel.js translates it by keys that hold {0}, {1}.
"""

from __future__ import annotations

import html
import traceback

from ...errors import AccelError


def fixed(text: str, tag: str = "span") -> str:
    """Return an element with a text that never varies."""
    return f"<{tag}>{text}</{tag}>"


def varying(text: object, tag: str = "span") -> str:
    """Return an element with a text that holds values."""
    return f"<{tag} class='accel-text'>{html.escape(str(text))}</{tag}>"


def plain(text: object) -> str:
    """Return an element with a name or a number, which is not translated."""
    return f"<span class='accel-plain'>{html.escape(str(text))}</span>"


def heading(text: str) -> str:
    """Return the heading of a part of the tab."""
    return f"<h2 class='accel-heading'>{fixed(text)}</h2>"


def message(text: str) -> str:
    """Return the answer to a button that was pressed. `text` is HTML."""
    return f"<div class='accel-message' role='status'>{text}</div>"


def problem(what: str) -> str:
    """Return what went wrong: the answer to a button, or in place of what cannot be shown."""
    return f"<div class='accel-message accel-problem' role='alert'>{varying(what)}</div>"


def what_failed(e: Exception) -> str:
    """Return what to show for an error. One that is a bug is printed as well.

    A page that raises would show an empty error, and none of its other parts.
    """
    if isinstance(e, (AccelError, OSError)):
        return str(e)
    traceback.print_exception(e)
    return f"This is a bug: {type(e).__name__}: {e}; the console has more"

"""The table of compiled code on disk.

Its buttons call accelDelete of javascript/accel.js, which asks before it deletes.
"""

from __future__ import annotations

import html
import time

from ...store import Group
from .. import stored_code
from .markup import fixed, heading, plain, varying


def artifacts() -> str:
    """Return the table. Raises StoreError where the folder cannot be read."""
    title, groups = heading("Compiled code"), stored_code.artifacts()
    if not groups:
        none = fixed("None yet. It is made when a model is loaded, or with the button above.")
        return f"{title}<p>{none}</p>"
    head = "".join(f"<th>{fixed(h)}</th>" for h in ("Key", "MB", "Last used", "Made for", ""))
    rows = "".join(map(_row, groups))
    return f"{title}<table class='accel-table accel-wide'><tr>{head}</tr>{rows}</table>"


def _row(group: Group) -> str:
    key, size = html.escape(group.key), f"{group.bytes / 1e6:.1f}"
    used = _date(group.last_used)
    delete = f"accelDelete('{key}', '{size}')"
    cells = [
        f"<code title='{key}'>{key[:12]}</code>",
        plain(size),
        plain(used),
        varying(group.made_for),
        f"<button type='button' class='accel-button' onclick=\"{delete}\">Delete</button>",
    ]
    return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a file's date can be any number
        return "?"

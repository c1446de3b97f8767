"""The table of compiled code on disk.

Its buttons call accelDelete of javascript/accel.js, which asks before it deletes.
"""

from __future__ import annotations

import html
import time

from ...store.store import Entry
from ..service import service
from .markup import fixed, heading, plain, varying


def artifacts() -> str:
    """Return the table. Raises StoreError where the folder cannot be read."""
    title, entries = heading("Compiled code"), service.artifacts()
    if not entries:
        none = fixed("None yet. It is made when a model is loaded, or with the button above.")
        return f"{title}<p>{none}</p>"
    head = "".join(f"<th>{fixed(h)}</th>" for h in ("Key", "MB", "Last used", "Made for", ""))
    rows = "".join(map(_row, entries))
    return f"{title}<table class='accel-table accel-wide'><tr>{head}</tr>{rows}</table>"


def _row(e: Entry) -> str:
    key, size = html.escape(e.key), f"{e.bytes / 1e6:.1f}"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.last_used))
    delete = f"accelDelete('{key}', '{size}')"
    cells = [
        f"<code title='{key}'>{key[:12]}</code>",
        plain(size),
        plain(used),
        varying(_about(e)),
        f"<button type='button' class='accel-button' onclick=\"{delete}\">Delete</button>",
    ]
    return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _about(e: Entry) -> str:
    if e.problem or e.artifact is None:
        return e.problem or ""
    recipe = e.artifact.recipe
    machine = recipe["machine"]
    return (
        f"{len(recipe['units'])} units, {recipe['dtype']}, "
        f"torch {machine['torch']}, {machine['device_name']}"
    )

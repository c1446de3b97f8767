"""The table of compiled code on disk.

Its buttons call accelDelete of javascript/accel.js, which asks before it deletes.
"""

from __future__ import annotations

import html
import time

from ...config import MIB
from ...store import Group
from ...store.summary import IN_USE, UNNAMED
from .. import stored_code, webui
from ..service import service
from .markup import fixed, heading, plain, varying

_COLUMNS = ("Model", "Made for", "MiB", "Last used", "Key")


def artifacts() -> str:
    """Return the table. Raises StoreError where the folder cannot be used."""
    title, groups = heading("Compiled code"), stored_code.artifacts()
    if not groups:
        stored_code.check()
        none = fixed("None yet. It is made when a model is loaded, or with the button above.")
        return f"{title}<p>{none}</p>"
    head = "".join(f"<th scope='col'>{fixed(name)}</th>" for name in _COLUMNS) + "<td></td>"
    here, current = stored_code.here(), service.current()
    loaded, used = "", set[str]()  # of the code that serves
    if current is not None:
        loaded = current.engine.architecture.name
        for engine in (current.engine, *service.vaes.engines(webui.current_model())):
            used |= stored_code.keys_in_use(engine.status, engine.target)
    rows = "".join(_row(group, group.state(here, used), loaded) for group in groups)
    return f"{title}<table class='accel-table accel-wide'><tr>{head}</tr>{rows}</table>"


def _row(group: Group, state: str, loaded: str) -> str:
    key, size, name = html.escape(group.key), f"{group.bytes / MIB:.1f}", group.name
    if state == IN_USE and name == UNNAMED:
        name = loaded  # the manifest may lack it
    named = fixed(name) if name == UNNAMED else f"<b class='accel-plain'>{html.escape(name)}</b>"
    mark = fixed(state, "small") if state else ""
    button = (
        f"<button type='button' class='accel-button' data-key='{key}' data-size='{size}' "
        f"data-name='{html.escape(name)}' onclick='accelDelete(this.dataset)'>{fixed('Delete')}"
        f"<span class='accel-unseen accel-plain'>{html.escape(name)} {key[:6]}</span></button>"
    )
    cells = {
        "Model": f"{named} {mark}",
        "Made for": varying(group.made_for),
        "MiB": plain(size),
        "Last used": plain(_date(group.last_used)),
        "Key": f"<code title='{key}'>{key[:12]}</code>",
        "": button,
    }
    shown = "".join(
        f"<td>{f'<i>{fixed(column)}</i>' if column else ''}<span>{cell}</span></td>"
        for column, cell in cells.items()
    )
    return f"<tr data-state='{html.escape(state)}'>{shown}</tr>"


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a file's date can be any number
        return "?"

"""The axis "Acceleration" of the X/Y/Z plot: the same picture with it and without it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from modules import scripts

from .. import stored_code, webui
from ..options import WAIT
from ..service import service
from .speed import why_off

LABEL = "Acceleration"
ON, OFF = "on", "off"


def add_axis() -> None:
    """Add the axis, once, where the WebUI has loaded its X/Y/Z plot: its callback `before_ui`."""
    remove_axis()
    for grid in _grids():
        # the cost makes it the outer loop: another backend has to bind all weights anew
        given = {"confirm": _confirm, "cost": 0.9, "choices": _choices}
        grid.axis_options.append(grid.AxisOption(LABEL, str, _apply, **given))


def remove_axis() -> None:
    """Undo `add_axis`."""
    for grid in _grids():
        grid.axis_options[:] = [axis for axis in grid.axis_options if axis.label != LABEL]


def _grids() -> Collection[Any]:
    """Return the module of the X/Y/Z plot; versions of the WebUI load it by different names."""
    names = ("xyz_grid.py", "scripts.xyz_grid")
    found = (s.module for s in scripts.scripts_data if s.script_class.__module__ in names)
    return dict.fromkeys(found).keys()


def _backends() -> dict[str, str | None]:
    current = service.current()
    if current is None or webui.flag("accel_backend"):  # which no setting overrides
        return {}
    return stored_code.backends(current.engine.target)


def _choices() -> list[str]:
    """Return what the button beside the field fills in: nothing that has to be compiled first."""
    return [ON, OFF, *(name for name, why in _backends().items() if why is None)]


def _confirm(p: Any, values: list[str]) -> None:
    """Refuse, before the first image, what the axis cannot do. Raises RuntimeError."""
    if webui.flag("accel_disable"):
        raise RuntimeError(why_off())
    known = {ON: None, OFF: None, **_backends()}
    for value in values:
        if value not in known:
            expected = ", ".join(name for name, why in known.items() if why is None)
            raise RuntimeError(f"{LABEL} cannot be {value!r}; expected one of {expected}")
        if known[value]:
            raise RuntimeError(f"{LABEL} cannot be {value}: {known[value]}")


def _apply(p: Any, value: str, values: list[str]) -> None:
    """Give a cell's job settings of its own. The WebUI takes them back after the job."""
    chosen: dict[str, object] = {"accel_enable": value != OFF, "accel_while_compiling": WAIT}
    if value not in (ON, OFF):
        chosen["accel_backend"] = value
    p.override_settings = {**p.override_settings, **chosen}  # all cells share the one it had
    p.override_settings_restore_afterwards = True
    p.accel_cell = True


def is_cell(p: Any) -> bool:
    """Return whether a job makes a picture of a grid with this axis."""
    return getattr(p, "accel_cell", False)

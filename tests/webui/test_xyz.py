"""The axis "Acceleration" of the X/Y/Z plot: a grid with it and without it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from .host import Server
from .pictures import MIN_DB

SCRIPT = "X/Y/Z plot"


def _index(server: Server) -> int:
    found: list[dict[str, Any]] = server.get("/sdapi/v1/script-info")
    plot = next(s for s in found if s["name"].lower() == SCRIPT.lower() and not s["is_img2img"])
    return plot["args"][0]["choices"].index("Acceleration")


def _ours(server: Server) -> dict[str, Any]:
    options = server.get("/sdapi/v1/options")
    return {name: value for name, value in options.items() if name.startswith("accel_")}


def test_a_grid_shows_the_same_picture_on_and_off(server: Server) -> None:
    server.wait_ready()
    before = _ours(server)
    values, no_axis, switches = ["on", "off", "eager"], (0, "", []), (True, True, *[False] * 5)
    arguments = [_index(server), "", values, *no_axis, *no_axis, *switches, 0, False]
    made = server.make(script_name=SCRIPT, script_args=arguments)
    grid, *infotexts = made.infotexts
    assert ("X Type: Acceleration" in grid, "Accel: " in grid) == (True, False)
    marks = [re.findall(r"Accel: (\w+)", text) for text in infotexts]
    assert marks == [["aoti"], [], ["eager"]]
    on, off, eager = (replace(made, pixels=[pixels]) for pixels in made.pixels[1:])
    assert on.decibels(off) >= MIN_DB
    assert eager.decibels(off) >= MIN_DB
    assert _ours(server) == before
    assert server.make().served

"""The axis "Acceleration" of the X/Y/Z plot, on a stand-in for the plot's module."""

from __future__ import annotations

import copy
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from .conftest import Start
from .host import Host

OURS = {"accel_enable": True, "accel_backend": "auto", "accel_while_compiling": "continue"}


class _AxisOption:
    """As in the WebUI's scripts/xyz_grid.py."""

    def __init__(self, label, kind, apply, format_value=None, confirm=None, cost=0.0, choices=None):
        self.label, self.apply, self.confirm, self.choices = label, apply, confirm, choices


def _add_plot(host: Host, name: str = "xyz_grid.py") -> Any:
    """Load the plot and start the pages anew."""
    plot: Any = ModuleType(name)
    plot.AxisOption, plot.axis_options = _AxisOption, [_AxisOption("Seed", int, None)]
    script = type("Script", (), {"__module__": name})
    data = host.module("modules.scripts").scripts_data
    data[:] = [SimpleNamespace(script_class=script, module=plot)] * 2
    host.reload_ui()
    return plot


def _axis(plot: Any) -> Any:
    return next(axis for axis in plot.axis_options if axis.label == "Acceleration")


def _cell(host: Host, axis: Any, value: str, **fail: Any) -> Any:
    """Make the picture of one cell, as the plot does: a copy of a job shares its dicts."""
    axis.confirm(None, [value])
    p = SimpleNamespace(override_settings={}, override_settings_restore_afterwards=False)
    axis.apply(p, value, [value])
    assert p.override_settings_restore_afterwards
    return host.image(override_settings=p.override_settings, **fail)


def _stored(host: Host) -> dict[str, Any]:
    return {name: host.opts.data[name] for name in OURS}


@pytest.mark.parametrize("name", ["xyz_grid.py", "scripts.xyz_grid"])
def test_the_axis_is_added_once_and_removed(start: Start, name: str) -> None:
    host = start()
    plot = _add_plot(host, name)
    host.reload_ui()
    assert [axis.label for axis in plot.axis_options] == ["Seed", "Acceleration"]
    host.module("modules.script_callbacks").script_unloaded_callback()
    assert [axis.label for axis in plot.axis_options] == ["Seed"]


def test_each_cell_is_made_as_its_value_says_and_the_settings_stay(host: Host) -> None:
    axis = _axis(_add_plot(host))
    host.call()
    before = _stored(host)
    assert axis.choices() == ["on", "off", "aoti", "eager"]  # jit would have to compile
    made = {value: _cell(host, axis, value) for value in ("on", "off", "eager", "aoti")}
    served = {value: p.extra_generation_params.get("Accel") for value, p in made.items()}
    assert served == {"on": "aoti", "off": None, "eager": "eager", "aoti": "aoti"}
    for p in made.values():
        torch.testing.assert_close(p.made[0], made["off"].made[0], rtol=1e-4, atol=1e-4)
    assert _stored(host) == before
    assert host.service.current().engine.config.backend == "auto"
    assert host.image().extra_generation_params["Accel"] == "aoti"


def test_a_cell_that_fails_leaves_the_settings(host: Host) -> None:
    axis = _axis(_add_plot(host))
    host.call()
    host.model.apply_model = None
    with pytest.raises(TypeError):
        _cell(host, axis, "eager")
    del host.model.apply_model
    assert _stored(host) == {**OURS}
    assert host.image().extra_generation_params["Accel"] == "aoti"
    assert host.service.current().engine.config.backend == "auto"


def test_what_cannot_be_is_refused_before_the_first_picture(host: Host) -> None:
    axis = _axis(_add_plot(host))
    with pytest.raises(
        RuntimeError, match=r"cannot be 'fast'; expected one of on, off, aoti, eager"
    ):
        axis.confirm(None, ["on", "fast"])
    host.module("modules.shared").cmd_opts.accel_disable = True
    with pytest.raises(RuntimeError, match="--accel-disable"):
        axis.confirm(None, ["on"])


def test_the_parameters_of_a_whole_grid_name_no_backend(host: Host) -> None:
    p = SimpleNamespace(override_settings={})
    _axis(_add_plot(host)).apply(p, "on", [])
    script = host.module("modules.scripts").scripts[0]
    job = copy.copy(p)
    job.extra_generation_params = {"Accel": "aoti", "Steps": 2}
    script.postprocess(job, None)
    assert job.extra_generation_params == {"Steps": 2}

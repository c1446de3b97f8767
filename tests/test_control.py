"""Another network of a UNet's layers runs on the UNet's code, with weights of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_accel.errors import BadWeights, UnsupportedArchitecture
from lib_accel.host.unet.control_networks import control_networks_behind
from lib_accel.model.reading import layers_in
from lib_accel.runtime.control_network import ControlNetwork
from lib_accel.tools.bench.control import Control, driven

from . import tiny
from .threads import one_thread  # noqa: F401  (a fixture)
from .tiny import ready


def test_a_unet_driven_block_by_block_is_the_same(tiny_store: Path):
    engine, given = ready(tiny_store), tiny.inputs()
    layers, compute_layer = [], engine.compute_layer
    engine.compute_layer = lambda layer, *rest: (layers.append(layer), compute_layer(layer, *rest))[
        1
    ]  # type: ignore[method-assign]
    out = driven(engine, given, controls=0)()
    assert tiny.error(out, engine.compute(*given).double()) < 1e-5
    assert layers == list(engine.compiled_layers().values())


def test_a_control_network_changes_the_result_and_is_computed_by_the_same_code(tiny_store: Path):
    engine, given = ready(tiny_store), tiny.inputs()
    control, bare = Control(engine), tiny.engine(tiny_store, backend="eager")
    compiled = control._control.compiled_layers()
    assert {name for name in compiled if name.startswith("input_blocks")} == {
        name for name in engine.compiled_layers() if name.startswith("input_blocks")
    }
    theirs = control(*given)
    uncompiled = Control(bare)
    uncompiled.load_state_dict(control.state_dict())
    ours = uncompiled(*given)
    assert all(tiny.error(a, b.double()) < 1e-5 for a, b in zip(theirs, ours, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(theirs, ours, strict=True)), (
        "compiled code never ran"
    )
    assert tiny.error(driven(engine, given, controls=1)(), engine.compute(*given).double()) > 1e-3


def test_its_weights_are_followed(tiny_store: Path):
    engine, donor = ready(tiny_store), tiny.donor(seed=3)
    companion = ControlNetwork(donor, engine)
    name = "input_blocks.1.0"
    x, emb, context = tiny.block_inputs(engine, tiny.inputs())

    def check() -> None:
        layer = companion.compiled_layers()[name]
        assert (
            tiny.error(
                engine.compute_layer(layer, x, emb), donor.layers[name](x, emb, context).double()
            )
            < 1e-5
        )

    check()
    weight = donor.get_submodule(f"{name}.in_layers.2").weight
    weight.data.mul_(2)
    check()
    weight.data = weight.data * 0.5
    check()
    donor.half()
    assert not companion.compiled_layers(), "the code is for float32"
    donor.float()
    check()
    donor.to("meta")
    with pytest.raises(BadWeights, match="the model has been unloaded"):
        companion.compiled_layers()
    companion.close()


def test_only_layers_of_a_unet_are_found(tiny_store: Path):
    donor = tiny.donor()
    donor.get_submodule("input_blocks.1.0.emb_layers.1").weight = nn.Parameter(
        torch.zeros(128, 256)
    )  # scale and shift: another kind
    found = layers_in(donor)
    assert "input_blocks.1.0" not in found
    assert "middle_block.0" in found
    with pytest.raises(UnsupportedArchitecture, match="a Linear holds no residual block"):
        ControlNetwork(nn.Linear(3, 4), tiny.engine(tiny_store))


def test_control_networks_behind_a_forward_are_found_past_large_ones():
    """What it closes over may hold whole models: only what leads on is looked at."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_blocks = nn.ModuleList([nn.Linear(1, 1)])

    wanted, own = Encoder(), Encoder()
    large = nn.Sequential(*(nn.Identity() for _ in range(21_000)))
    units = [
        SimpleNamespace(model=large),
        SimpleNamespace(far=SimpleNamespace(behind=SimpleNamespace(model=nn.Sequential(wanted)))),
        own,
    ]

    def forward() -> object:
        return units

    assert control_networks_behind(forward, but=own) == [wanted]

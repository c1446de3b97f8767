"""Whatever is done to a UNet is in the picture, and nothing of it stays.

The layers that nobody has changed are ours. They are not compiled here: that has no part in it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..tiny import inputs
from .host import Host
from .planted_code import CODE, EVERYWHERE, LAYERS, Plant, Undo
from .planted_parts import PARTS, SETTINGS

SMALL = inputs(batch=1, height=8, width=8, length=7)
PLANTS = [pytest.param(plant, id=name) for name, plant in {**CODE, **SETTINGS, **PARTS}.items()]

pytestmark = pytest.mark.slow


@pytest.fixture
def host(eager_host: Host) -> Host:
    return eager_host


def _expected(host: Host, plant: Plant) -> Tensor:
    """Return what the WebUI alone computes."""
    twin = host.new_unet()
    undo = plant(twin)
    out = host.call(SMALL, twin)
    undo()
    return out


def check(host: Host, plant: Plant) -> None:
    """Plant it twice: each time it is in the picture, and gone when it is undone.

    Each change gives what is looked at another version.
    """
    expected, plain = _expected(host, plant), host.call(SMALL)
    inspector = host.service.current().inspector
    assert not torch.allclose(expected, plain, atol=1e-3), "this changes nothing"
    for _ in range(2):
        before = inspector.version
        undo = plant(host.unet)
        try:
            out, reason = host.call(SMALL), host.status()["reason"]
            planted = inspector.version
        finally:
            undo()
        assert torch.allclose(out, expected, atol=1e-4), reason
        assert reason
        assert before < planted == inspector.version
        assert torch.equal(host.call(SMALL), plain)
        assert host.status()["reason"] is None
        assert inspector.version > planted


@pytest.mark.parametrize("path", LAYERS.values(), ids=list(LAYERS))
@pytest.mark.parametrize("plant", EVERYWHERE, ids=lambda f: f.__name__)
def test_a_change_of_any_layer_or_of_any_part_of_it_is_in_the_picture(
    host: Host, plant: Plant, path: str
) -> None:
    kinds: dict[str, str] = {}  # one module of each class
    for name, module in host.unet.get_submodule(path).named_modules(prefix=path):
        if type(module).__name__ not in ("ModuleList", "Identity"):  # these compute nothing
            kinds.setdefault(type(module).__name__, name)
    for name in kinds.values():
        check(host, lambda unet, name=name: plant(unet.get_submodule(name)))


@pytest.mark.parametrize("plant", PLANTS)
def test_a_change_of_code_settings_or_parts_is_in_the_picture(host: Host, plant: Plant) -> None:
    check(host, plant)


@pytest.mark.parametrize("plant", PLANTS[::3])  # it takes long, and kinds stand together
def test_a_change_that_was_there_before_is_honoured_and_its_end_is_noticed(
    host: Host, plant: Plant
) -> None:
    expected, plain = _expected(host, plant), host.call(SMALL)
    host.opts.set("accel_enable", False)
    undo = plant(host.unet)
    host.opts.set("accel_enable", True)
    out = host.call(SMALL)
    undo()
    assert torch.allclose(out, expected, atol=1e-4)
    assert torch.allclose(host.call(SMALL), plain, atol=1e-4)


def test_looking_finds_nothing_where_nothing_is(host: Host) -> None:
    look = host.service.current().inspector.look
    assert look() == ({}, None)


def test_a_lora_is_no_change(host: Host) -> None:
    inspector = host.service.current().inspector
    inspector.look()
    before = inspector.version
    layer: Any = host.unet.middle_block[0].in_layers[2]
    layer.network_weights_backup, layer.network_current_names = layer.weight, ("one",)
    assert inspector.look() == ({}, None)
    assert inspector.version == before


def test_functions_that_the_webui_makes_anew_for_each_call_are_no_change(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does that on cards that cannot autocast."""
    inspector = host.service.current().inspector
    patched, original = host.networks._patched_forward, nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", patched(original))
    assert inspector.look() == ({}, None)
    before = inspector.version
    examined: list[object] = []
    monkeypatch.setattr(inspector, "_examine", lambda: examined.append(1) or ({}, None))
    for _ in range(3):
        monkeypatch.setattr(nn.Linear, "forward", patched(original))
        inspector.look()
    assert (inspector.version, examined) == (before, [])


def test_weights_of_a_new_table_are_followed(host: Host) -> None:
    """This is no foreign code: the same formula, with other numbers."""

    def plant(unet: Any) -> Undo:
        norm = unet.middle_block[0].in_layers[0]
        before = norm._parameters
        norm._parameters = {n: nn.Parameter(p * 1.5, False) for n, p in before.items()}
        return lambda: setattr(norm, "_parameters", before)

    expected, plain = _expected(host, plant), host.call(SMALL)
    undo = plant(host.unet)
    assert torch.allclose(host.call(SMALL), expected, atol=1e-4)
    undo()
    assert torch.equal(host.call(SMALL), plain)


def test_weights_moved_while_other_modules_are_in_the_blocks_are_followed(host: Host) -> None:
    """Names of layers are those of the beginning, whatever stands in their places later."""
    plain = host.call(SMALL)
    undo = PARTS["swapped"](host.unet)
    block = host.unet.middle_block[0]
    block.in_layers[2].weight = nn.Parameter(block.in_layers[2].weight.clone(), False)
    expected = _expected(host, PARTS["swapped"])
    assert torch.allclose(host.call(SMALL), expected, atol=1e-4)
    undo()
    assert torch.allclose(host.call(SMALL), plain, atol=1e-5)

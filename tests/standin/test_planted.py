"""Whatever is done to a UNet is in the picture, and nothing stays of it.

The layers that nobody has changed are ours. They are not compiled here: that takes no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from . import planted
from .host import Host, in_place
from .planted import Plant


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with in_place():
        host = Host("--accel-store", str(tmp_path), "--accel-backend", "eager")
        host.load()
        yield host
        host.close()


def check(host: Host, plant: Plant) -> None:
    """Plant it twice: each time it is in the picture, and gone when it is undone."""
    host.opts.set("accel_enable", False)
    undo = plant(host.unet)
    expected = host.call()
    undo()
    host.opts.set("accel_enable", True)
    plain = host.call()
    assert host.status()["reason"] is None
    for _ in range(2):
        undo = plant(host.unet)
        try:
            out, reason = host.call(), host.status()["reason"]
        finally:
            undo()
        assert torch.allclose(out, expected, atol=1e-4), reason
        assert not torch.allclose(out, plain, atol=1e-3)
        assert reason
        assert torch.equal(host.call(), plain)
        assert host.status()["reason"] is None


@pytest.mark.parametrize("path", planted.LAYERS.values(), ids=list(planted.LAYERS))
@pytest.mark.parametrize("plant", planted.EVERYWHERE, ids=lambda f: f.__name__)
def test_a_change_of_any_layer_or_of_any_part_of_it_is_in_the_picture(
    host: Host, plant: Plant, path: str
) -> None:
    layer: Any = host.unet.get_submodule(path)
    kinds: dict[str, str] = {}  # one module of each class
    for name, module in layer.named_modules(prefix=path):
        if type(module).__name__ not in ("ModuleList", "Identity"):
            kinds.setdefault(type(module).__name__, name)
    for name in kinds.values():
        check(host, lambda unet, name=name: plant(unet.get_submodule(name)))


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(plant, id=name)
        for name, plant in {**planted.CODE, **planted.SETTINGS, **planted.PARTS}.items()
    ],
)
def test_a_change_of_code_settings_or_parts_is_in_the_picture(host: Host, plant: Plant) -> None:
    check(host, plant)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(plant, id=name)
        for name, plant in {**planted.CODE, **planted.SETTINGS, **planted.PARTS}.items()
    ],
)
def test_a_change_that_was_there_before_is_honoured_and_its_end_is_noticed(
    host: Host, plant: Plant
) -> None:
    plain = host.call()
    host.opts.set("accel_enable", False)
    undo = plant(host.unet)
    expected = host.call()
    host.opts.set("accel_enable", True)
    out = host.call()
    undo()
    assert torch.allclose(out, expected, atol=1e-4)
    host.image(steps=1)  # an attach that was refused may be tried again
    assert torch.allclose(host.call(), plain, atol=1e-4)

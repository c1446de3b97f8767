"""Extensions that stand in the place of the Lora extension's or the model's code, by name."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .conftest import Start
from .host import MIDDLE_QUERY, Host, counted, factors, load_file


@pytest.mark.parametrize("wanted", [True, False])
def test_another_module_called_networks(start: Start, wanted: bool) -> None:
    """kohya's sd-scripts have one, and the Lora extension may be disabled."""
    host = start()
    host.load()
    theirs = types.ModuleType("networks")
    if wanted:
        theirs.loaded_networks = []  # type: ignore[attr-defined]
    ours, sys.modules["networks"] = sys.modules["networks"], theirs
    try:
        with counted(host, accelerated_calls=1, host_calls=0):
            assert torch.allclose(host.call(), host.plain(), atol=1e-5)
    finally:
        sys.modules["networks"] = ours


COMPOSABLE = """
import networks, torch

before = torch.nn.Linear.forward, torch.nn.Conv2d.forward

def forward_of(original):
    def forward(self, x):
        networks.network_restore_weights_from_backup(self)
        networks.network_reset_cached_weight(self)
        y = original(self, x)
        for net in networks.loaded_networks:
            module = net.modules.get(getattr(self, "network_layer_name", ""))
            y = y if module is None else module.forward(x, y)
        return y
    return forward

def patch(originals):
    torch.nn.Linear.forward, torch.nn.Conv2d.forward = map(forward_of, originals)

def undo():
    torch.nn.Linear.forward, torch.nn.Conv2d.forward = before
"""


@pytest.fixture
def extension(tmp_path: Path, host: Host) -> Callable[[str, str], Any]:
    """A function that loads a file of an extension of a name."""
    host.module("lib_accel.host.unet.functions").extensions_dir = str(tmp_path)

    def load(name: str, text: str) -> Any:
        file = tmp_path / name / "scripts" / "script.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        return load_file(f"{name}_script", file)

    return load


def test_composable_lora_is_not_merged_for(
    host: Host, extension: Callable[[str, str], Any]
) -> None:
    """It restores each layer at each step, so that each step would merge anew."""
    lora = host.network("lora", {MIDDLE_QUERY: factors()})
    merged = host.image(lora).made[0]
    bare = host.image().made[0]
    theirs = extension("composable-lora", COMPOSABLE)
    theirs.patch(_torchs(host))
    try:
        with counted(host, lora_merges=0):
            composed = host.image(lora, steps=2).made[0]
        assert "by the extension composable-lora" in host.status()["reason"]
        assert torch.allclose(composed, merged, atol=1e-4)
        assert not torch.allclose(composed, bare, atol=1e-3)
    finally:
        theirs.undo()
    with counted(host, accelerated_calls=4, host_calls=0):
        assert torch.allclose(host.image(lora).made[0], merged, atol=1e-5)
        assert torch.allclose(host.image().made[0], bare, atol=1e-5)


def _torchs(host: Host) -> list[Any]:
    """Return the forwards of Linear and Conv2d from before the Lora extension."""
    originals = host.networks._originals
    return [originals[cls, "forward"] for cls in (nn.Linear, nn.Conv2d)]


ATTENTION = """
import torch

class Sage:
    name, label = "sage", None

    def title(self):
        return "sage"

def patch(cls, original):
    def forward(self, x, context=None):
        return original(self, x, context) * 1.5
    cls.forward = forward
"""


def test_attention_by_another_extension_names_the_setting(
    host: Host, extension: Callable[[str, str], Any]
) -> None:
    theirs = extension("sage-attention", ATTENTION)
    cls: Any = host.module("ldm.unet").CrossAttention
    original = cls.forward
    theirs.patch(cls, original)
    try:
        host.call()
        reason = "the class CrossAttention was patched by the extension sage-attention"
        assert reason in host.status()["reason"]
        cls.forward = original
        host.call()
        host.module("modules.sd_hijack").current_optimizer = theirs.Sage()
        theirs.patch(cls, original)
        host.call()
        assert "sage computes attention (Settings, Optimizations)" in host.status()["reason"]
    finally:
        cls.forward = original
    host.call()
    assert host.status()["reason"] is None

"""A random walk over changes that nobody sees: no step is wrong after the witness has spoken.

ACCEL_WALK=300 makes it longer, ACCEL_WALK_SEED=2 takes another way.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..tiny import inputs
from .driver import drive
from .host import MIDDLE_QUERY, Host, factors
from .test_witness import seen, witnessed
from .test_witness_driven import host

__all__ = ["host", "seen"]

pytestmark = pytest.mark.slow

ACTIONS = int(os.environ.get("ACCEL_WALK", "40"))
SEED = int(os.environ.get("ACCEL_WALK_SEED", "1"))
RATE, CALLS = 2, 4  # one step of two is witnessed, so one of three in a row at the latest
Undo = Callable[[], object]


def _set(thing: Any, name: str, value: object) -> Undo:
    there, before = name in vars(thing), getattr(thing, name)
    setattr(thing, name, value)
    return lambda: setattr(thing, name, before) if there else delattr(thing, name)


def _forward(module: Any) -> Undo:
    before = module.forward
    return _set(module, "forward", lambda *given, **named: before(*given, **named) * 1.3)


def _hook(module: Any) -> Undo:
    return module.register_forward_hook(lambda *given: given[-1] * 1.3).remove


def _hook_before(module: Any) -> Undo:
    def larger(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return given[0] * 1.3, *given[1:]

    return module.register_forward_pre_hook(larger).remove


def _in_place(module: Any) -> Undo:
    """Write into what the module answers."""
    return module.register_forward_hook(lambda *given: given[-1].mul_(1.3)).remove


def _number(module: Any) -> Undo:
    """Change a number that the mathematics reads."""
    if isinstance(module, nn.Conv2d) and module.padding == (1, 1):
        return _set(
            module,
            "_conv_forward",
            lambda x, w, b: nn.functional.conv2d(x, w, b, module.stride, 2, 2),
        )  # a dilation
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        return _set(module, "eps", 3.0)
    return _set(module, "heads", 8) if hasattr(module, "heads") else _forward(module)


def _class(module: Any) -> Undo:
    cls = type(module)
    if cls.__module__ != "ldm.unet" or "forward" not in vars(cls):
        return _forward(module)
    before = cls.forward
    return _set(cls, "forward", lambda *given, **named: before(*given, **named) * 1.1)


def _part(module: Any) -> Undo:
    """Put a part behind those of a sequence."""
    if type(module) is not nn.Sequential:
        return _hook(module)
    module.append(nn.Tanh())
    return lambda: module.pop(-1)


CHANGES = (_forward, _hook, _hook_before, _in_place, _number, _class, _part)


class Walk:
    """What was done to a UNet, and what the inspector overlooks."""

    def __init__(self, host: Host):
        self.host, self.r = host, random.Random(SEED)
        self.undo: list[Undo] = []
        self.leave: Undo | None = None
        self.given, self.lora = inputs(), host.network("lora", {MIDDLE_QUERY: factors()})
        self.modules = [(n, m) for n, m in host.unet.named_modules() if n and _computes(m)]
        self.done: list[str] = []
        host.opts.set("accel_witness_steps", RATE)

    def go(self) -> None:
        """Walk."""
        for _ in range(ACTIONS):
            self.act()
            self.check()

    def act(self) -> None:
        """Do one thing at random."""
        which = self.r.choice(
            ("change", "change", "change", "undo", "undo", "size", "lora", "drive")
        )
        self.done = [*self.done[-9:], which]
        if which == "change" and len(self.undo) < 5:
            name, module = self.r.choice(self.modules)
            change = self.r.choice(CHANGES)
            self.done[-1] = f"{change.__name__} {name}"
            self.undo.append(change(module))
        elif which == "undo" and self.undo:
            self.undo.pop()()
        elif which == "size":
            self.given = inputs(height=self.r.choice([8, 16, 24]), seed=self.r.randrange(9))
        elif which == "lora":
            self.host.want(*[self.lora] * self.r.randrange(2))
            self.lora.unet_multiplier = self.r.choice([0.3, 1.0])
        elif which == "drive" and not self.undo:
            self.leave = self.leave() if self.leave else drive(self.host.unet)  # type: ignore[assignment]

    def check(self) -> None:
        """Make an image. Its first steps may be wrong, until the witness has spoken."""
        self.host.service.before_images()
        expected = self._by_the_webui_alone()
        spoken = False
        for i in range(CALLS):
            before = witnessed(self.host)
            out = self.host.call(self.given)
            spoken = spoken or witnessed(self.host) > before or i == CALLS - 1
            right = torch.allclose(
                out, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()
            )
            assert right or not spoken, self.done

    def _by_the_webui_alone(self) -> Tensor:
        data = self.host.opts.data
        data["accel_enable"] = False  # without a callback: nothing is taken down
        try:
            return self.host.call(self.given)
        finally:
            data["accel_enable"] = True


def _computes(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.Dropout))


@pytest.mark.parametrize("sees", ["nothing", "half of it"])
def test_no_step_is_wrong_after_the_witness_has_spoken(
    host: Host, seen: set[str], sees: str
) -> None:
    walk = Walk(host)
    if sees != "nothing":
        seen |= {"around", *walk.r.sample(list(host.service.current()._host_layers), 10)}
    walk.go()
    assert witnessed(host) > ACTIONS / 2


def test_without_the_witness_steps_are_wrong(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = host.module("lib_accel.host.unet.witness").Witness
    monkeypatch.setattr(witness, "is_due", lambda *_: False)
    with pytest.raises(AssertionError):
        Walk(host).go()

"""What has been done to a live UNet by others: found by looking at it, never by knowing who did it."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

HOME = ("ldm", "sgm", "modules", "torch", "networks", "lib_accel")
"""Packages whose classes and class forwards are a UNet's own: the model code, the WebUI, its Lora extension."""


_METHODS = ("forward", "_forward", "_conv_forward")
"""What computes: of any module, behind ldm's checkpointing, and of a convolution behind its padding."""


class Inspector:
    """Tells which layers of `network` (an ldm or sgm UNetModel, a ControlNet) no longer compute what its weights say.

    Signs: a forward set on an instance, another class, hooks, a replaced part, non-zero padding, a class forward that was
    defined outside of HOME.
    """

    def __init__(self, network: nn.Module, names: Iterable[str]):
        self._layers = {name: _Watched(network.get_submodule(name).modules()) for name in names}
        inside = {m for watched in self._layers.values() for m in watched.modules}
        self._frame = _Watched(m for m in network.modules() if m not in inside and m is not network)
        self._network, self._parts = network, tuple(network.children())
        self._traces = _Traces(network)
        self._seen: tuple[list[Any], ...] | None = None
        self._found: tuple[dict[str, str], str | None] = {}, None

    def look(self) -> tuple[dict[str, str], str | None]:
        """-> (layer names with what was found, for those that must run the host's way; what was done around the layers, or None).

        Where something was done around them (to blocks, to how they are joined, to the network's class), only the network's own
        code knows the way from layer to layer. Modules are looked at one by one where anything differs from the last time:
        before every call, that would be too slow.
        """
        now = self._traces.take()
        if now != self._seen:
            self._seen, self._found = now, (self._changed_layers(), self._changed_frame())
        return self._found

    def _changed_layers(self) -> dict[str, str]:
        foreign = {c for w in self._layers.values() for c in w.classes if not _home_made(c)}
        found = {}
        for name, watched in self._layers.items():
            what = watched.changed(foreign)
            if what:
                found[name] = what
        return found

    def _changed_frame(self) -> str | None:
        cls = type(self._network)
        if not _at_home(self._traces.cat):
            return "how the decoder joins its inputs was patched"
        if not _home_made(cls):
            return f"the class {cls.__name__} was patched"
        if tuple(self._network.children()) != self._parts:
            return f"a part of a {cls.__name__} was replaced"
        return self._frame.changed({c for c in self._frame.classes if not _home_made(c)})


class _Traces:
    """Everything `_Watched` and the frame look at, as lists made without a Python loop: 0.3 ms for a UNet of 1,000 modules."""

    def __init__(self, network: nn.Module):
        self._modules = list(network.modules())
        self._own = list(map(vars, self._modules))
        self._children = [m._modules for m in self._modules]
        self._classes = list({type(m) for m in self._modules})
        slots = [(children, name) for children in self._children for name in children]
        self._homes, self._names = [home for home, _ in slots], [name for _, name in slots]
        self._file = sys.modules.get(type(network).__module__)

    @property
    def cat(self) -> Any:
        """What joins skips in ldm's and sgm's file: `th.cat`, where the WebUI puts its own."""
        return getattr(getattr(self._file, "th", torch), "cat", None)

    def take(self) -> tuple[list[Any], ...]:
        def each(name: str) -> list[Any]:
            return list(map(dict.get, self._own, itertools.repeat(name)))

        return (
            [self.cat],
            list(map(type, self._modules)),
            *map(each, _METHODS),
            each("padding_mode"),
            list(map(len, each("_forward_hooks"))),
            list(map(len, each("_forward_pre_hooks"))),
            list(map(len, self._children)),
            list(map(dict.get, self._homes, self._names)),
            *([getattr(c, name, None) for c in self._classes] for name in _METHODS),
        )


class _Watched:
    def __init__(self, modules: Iterable[nn.Module]):
        self.modules = list(modules)
        self.classes = {type(m) for m in self.modules}
        self._seen = [
            (m, type(m), vars(m), m._modules, tuple(m._modules.values()), _padding(m))
            for m in self.modules
        ]

    def changed(self, foreign: set[type]) -> str | None:
        for module, cls, own, children, seen, padding in self._seen:
            if any(name in own and not own_forward(module, name) for name in _METHODS):
                return f"the forward of a {cls.__name__} was replaced"
            if type(module) is not cls:
                return f"a {cls.__name__} became a {type(module).__name__}"
            if own["_forward_hooks"] or own["_forward_pre_hooks"]:
                return f"a {cls.__name__} has hooks"
            if tuple(children.values()) != seen:
                return f"a part of a {cls.__name__} was replaced"
            if padding is not None and own["padding_mode"] != "zeros":
                return "tiling changes the padding of convolutions"
            if cls in foreign:
                return f"the class {cls.__name__} was patched"
        return None


def _padding(module: nn.Module) -> str | None:
    return getattr(module, "padding_mode", None)


def own_forward(module: nn.Module, name: str) -> bool:
    """Whether what stands there is ours, or the class's own again: many put the bound method back when they leave."""
    there = vars(module)[name]
    if _package(type(there)) == "lib_accel":
        return True
    return getattr(there, "__self__", None) is module and there.__func__ is getattr(
        type(module), name, None
    )


def networks_behind(function: object, but: nn.Module) -> list[nn.Module]:
    """Networks with a UNet's `input_blocks` that a function reaches through what it closes over: what drives `but` besides it."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    level = [function]
    for _ in range(_REACH):
        following: list[object] = []
        for thing in level:
            if id(thing) in seen or len(seen) > _MOST or _package(type(thing)) == "lib_accel":
                continue
            seen.add(id(thing))
            if isinstance(thing, nn.Module):
                found += [
                    m
                    for m in thing.modules()
                    if isinstance(vars(m)["_modules"].get("input_blocks"), nn.ModuleList)
                ]
            following += _held_by(thing)
        level = following
    return [m for m in dict.fromkeys(found) if m is not but]


_REACH, _MOST = (
    6,
    20_000,
)  # steps from the function, and objects looked at: its own state is near, the WebUI's is large


def _held_by(thing: object) -> Iterable[object]:
    if isinstance(thing, types.MethodType):
        return (thing.__func__, thing.__self__)
    if isinstance(thing, types.FunctionType):
        return [c.cell_contents for c in thing.__closure__ or () if _filled(c)]
    if isinstance(thing, (list, tuple, set)):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, (type, types.ModuleType, str, bytes, torch.Tensor)):
        return ()
    own = getattr(thing, "__dict__", {})
    if isinstance(
        thing, nn.Module
    ):  # its parts have been looked at; torch's own tables are thousands of objects
        return [value for name, value in own.items() if not name.startswith("_")]
    return own.values()


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  reading an empty one raises
    except ValueError:
        return False
    return True


def _home_made(cls: type) -> bool:
    return all(_at_home(getattr(cls, name)) for name in _METHODS if hasattr(cls, name))


def _at_home(function: Any) -> bool:
    """By the name it bears and by the file its code is in: `functools.wraps` hands the name on."""
    file = getattr(function, "__globals__", {}).get("__name__")
    return _package(function) in HOME and (file is None or file.partition(".")[0] in HOME)


def _package(function: object) -> str:
    return (getattr(function, "__module__", None) or "").partition(".")[0]


def summary(found: dict[str, str]) -> str:
    """One line for the status: what was found and in how many layers."""
    reasons = list(dict.fromkeys(found.values()))
    return f"{len(found)} layers run the WebUI's way: {'; '.join(reasons[:3])}"

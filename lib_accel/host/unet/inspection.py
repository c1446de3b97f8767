"""Finds what others have changed in a live network, by looking at the network itself.

It knows no extension by name. It only knows the packages whose code is the original (HOME), and
takes every forward from elsewhere for a change.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

HOME = ("ldm", "sgm", "modules", "torch", "networks", "lib_accel")
"""Packages whose forwards are original: model code, the WebUI, torch, the Lora extension, ours."""

_METHODS = ("forward", "_forward", "_conv_forward")
"""The methods that compute: of every module, of ldm's checkpointed blocks, of convolutions."""

_STEPS, _MOST = 6, 20_000
"""How far `control_networks_behind` goes: steps from the function, and objects in all.

An extension's own state is near its function; behind that lies the whole WebUI. Looking at 20,000
objects takes 0.1 s, once for each forward that is put on a UNet.
"""


class Inspector:
    """Finds layers of `network` whose code was patched, hooked or replaced.

    `network` is an ldm or sgm UNetModel or a ControlNet; `names` are those of its layers. Signs of
    a change: a forward on an instance, another class, hooks, a replaced part, a padding that is not
    zero, a forward of a class that was defined outside HOME.
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
        """Return (what was changed in which layer, what was changed around the layers or None).

        Around them means: in blocks, in how the decoder joins its inputs, in the network's class.
        Then the network's own forward has to run. Each call compares a cheap snapshot; only if
        it differs from the last one is every module examined, which is slow.
        """
        now = self._traces.take()
        if now != self._seen:
            self._seen, self._found = now, (self._changed_layers(), self._changed_frame())
        return self._found

    def _changed_layers(self) -> dict[str, str]:
        foreign = {c for w in self._layers.values() for c in w.classes if not _is_original(c)}
        found = {}
        for name, watched in self._layers.items():
            what = watched.changed(foreign)
            if what:
                found[name] = what
        return found

    def _changed_frame(self) -> str | None:
        cls = type(self._network)
        if not _from_home(self._traces.cat):
            return "how the decoder joins its inputs was patched"
        if not _is_original(cls):
            return f"the class {cls.__name__} was patched"
        if tuple(self._network.children()) != self._parts:
            return f"a part of a {cls.__name__} was replaced"
        return self._frame.changed({c for c in self._frame.classes if not _is_original(c)})


class _Traces:
    """All that an Inspector looks at, as lists that are compared in one go.

    They are made without a Python loop: 0.3 ms for a UNet of 1,000 modules.
    """

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
        """The `th.cat` with which the UNet's source file joins skip connections."""
        return getattr(getattr(self._file, "th", torch), "cat", None)

    def take(self) -> tuple[list[Any], ...]:
        """Return the state of all modules now."""

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
    """Some modules of a network, and what each was at first."""

    def __init__(self, modules: Iterable[nn.Module]):
        self.modules = list(modules)
        self.classes = {type(m) for m in self.modules}
        self._seen = [
            (m, type(m), vars(m), m._modules, tuple(m._modules.values()), _padding(m))
            for m in self.modules
        ]

    def changed(self, foreign: set[type]) -> str | None:
        """Return the first change, in words, or None. `foreign`: classes that were patched."""
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


def summary(found: dict[str, str]) -> str:
    """Return one line for the status: in how many layers, and what was found there."""
    what = "; ".join(list(dict.fromkeys(found.values()))[:3])
    if len(found) == 1:
        return f"1 layer is not accelerated: {what}"
    return f"{len(found)} layers are not accelerated: {what}"


def own_forward(module: nn.Module, name: str) -> bool:
    """Return whether the forward that stands on a module is ours or its class's own.

    Many extensions put the bound method of the class back when they leave.
    """
    there = vars(module)[name]
    if _package(type(there)) == "lib_accel":
        return True
    return getattr(there, "__self__", None) is module and there.__func__ is getattr(
        type(module), name, None
    )


def control_networks_behind(function: object, but: nn.Module) -> list[nn.Module]:
    """Return the networks with a UNet's `input_blocks` that a function reaches, except `but`.

    These are the control networks that drive `but`: the function holds them in its closure, its
    instance or their attributes.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    level = [function]
    for _ in range(_STEPS):
        following: list[object] = []
        for thing in level:
            if id(thing) in seen or len(seen) > _MOST or _package(type(thing)) == "lib_accel":
                continue
            seen.add(id(thing))
            if isinstance(thing, nn.Module):
                found += filter(_has_input_blocks, thing.modules())
            following += _held_by(thing)
        level = following
    return [m for m in dict.fromkeys(found) if m is not but]


def _has_input_blocks(module: nn.Module) -> bool:
    return isinstance(vars(module)["_modules"].get("input_blocks"), nn.ModuleList)


def _held_by(thing: object) -> Iterable[object]:
    if isinstance(thing, types.MethodType):
        return (thing.__func__, thing.__self__)
    if isinstance(thing, types.FunctionType):
        return [c.cell_contents for c in thing.__closure__ or () if _is_filled(c)]
    if isinstance(thing, (list, tuple, set)):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, (type, types.ModuleType, str, bytes, torch.Tensor)):
        return ()
    own = getattr(thing, "__dict__", {})
    if isinstance(thing, nn.Module):  # `modules()` led to its parts; torch's tables are large
        return [value for name, value in own.items() if not name.startswith("_")]
    return own.values()


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  reading an empty cell raises
    except ValueError:
        return False
    return True


def _padding(module: nn.Module) -> str | None:
    return getattr(module, "padding_mode", None)


def _is_original(cls: type) -> bool:
    return all(_from_home(getattr(cls, name)) for name in _METHODS if hasattr(cls, name))


def _from_home(function: Any) -> bool:
    """Return whether both the name and the code are from HOME: functools.wraps copies names."""
    file = getattr(function, "__globals__", {}).get("__name__")
    return _package(function) in HOME and (file is None or file.partition(".")[0] in HOME)


def _package(function: object) -> str:
    return (getattr(function, "__module__", None) or "").partition(".")[0]

"""Finds what others have changed in a live network, by looking at the network itself.

`blueprint.py` says what each module must be, and `class_code.py` which code is the original. All
that differs is foreign, whenever it came, and runs as the WebUI runs it.
"""

from __future__ import annotations

import functools
import itertools
import operator
import types
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _python_dispatch

from ...model.specs import Spec
from .blueprint import Blueprint, of_layer
from .class_code import ClassCode
from .functions import is_known

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_METHODS = ("forward", "_forward", "_conv_forward", "_call_impl")
_WEIGHTS = ("weight", "bias")
_TABLES = {dict, OrderedDict}  # torch 2.1 has ordered ones
_TORCHS = vars(nn.modules.module)


class _Place(NamedTuple):
    """A module where the blueprint has one. `layer` is None around the layers."""

    module: nn.Module
    blueprint: Blueprint
    path: str
    layer: str | None


class Inspector:
    """Finds layers of `network` that compute something else than our layers do.

    `network` is an ldm or sgm UNetModel, a ControlNet, or half a VAE; `layers` are the specs of its
    layers by name. With a blueprint of the `whole`, what is around the layers is looked at too.
    `version` rises whenever anything that is looked at has changed. It keeps the layers alive, not
    the network.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, Spec],
        whole: Blueprint | None = None,
    ):
        # compiled code has the weights of these, whatever stands in their places later
        self._first = {name: m for name, m in network.named_modules() if name}
        self._network = weakref.ref(network)
        self._layers = layers
        self._blueprints = {"": whole} if whole else {n: of_layer(s) for n, s in layers.items()}
        self._code = ClassCode()
        self._sight, self._seen = _Sight([]), None
        self._found: tuple[dict[str, str], str | None] = {}, None
        self.version = 0

    def look(self) -> tuple[dict[str, str], str | None]:
        """Return (what was changed in which layer, what was changed around the layers or None).

        Around them means: in blocks, in how the decoder joins its inputs, in the network's class.
        Then the network's own forward has to run. Each call compares a cheap snapshot; only if
        it differs from the last one is every module examined, which is slow.
        """
        try:
            return self._look()
        except Exception as error:  # noqa: BLE001  whatever anybody's property or comparison raises
            what = f"it cannot be looked at ({type(error).__name__})"
            found = dict.fromkeys(self._layers, what), what
            self.version += found != self._found
            self._seen, self._found = None, found
            return found

    def _look(self) -> tuple[dict[str, str], str | None]:
        now, patched = self._sight.take(), self._code.changed()
        if patched or not _equal(now, self._seen):
            # attributes that change nothing, as the Lora extension's, are only counted
            other = patched or not _equal(now and now[1:], self._seen and self._seen[1:])
            found = self._examine()
            self.version += other or found != self._found
            self._found = found
        return self._found

    def _examine(self) -> tuple[dict[str, str], str | None]:
        """Look at every module."""
        places: list[_Place] = []
        for name, blueprint in self._blueprints.items():
            module = self._first[name] if name else self._network()
            assert module is not None
            self._visit(_Place(module, blueprint, name, name or None), places)
        classes: dict[type, set[str]] = {}
        for module, blueprint, _, _ in places:
            classes.setdefault(type(module), set()).update(blueprint.attributes)
        patched = self._code.look(classes)
        self._sight = _Sight(places)
        self._seen = self._sight.take()
        found: dict[str | None, str] = {}
        if any(_hooks_of_all_modules()):
            found = dict.fromkeys([*self._layers, None], "hooks of all modules are set")
        if not all(is_known(mode.__module__) for mode in _modes()):
            found = dict.fromkeys([*self._layers, None], "a mode replaces torch's functions")
        for place in places:
            if place.layer not in found and (what := self._problem(place, patched)):
                found[place.layer] = what
        around = found.pop(None, None)
        return {name: what for name, what in found.items() if name is not None}, around

    def _visit(self, place: _Place, places: list[_Place]) -> None:
        places.append(place)
        if not _is_kind(place.module, place.blueprint):
            return
        children, prefix = vars(place.module)["_modules"], place.path and f"{place.path}."
        for name, part in place.blueprint.parts.items():
            path, child = f"{prefix}{name}", children.get(name)
            if child is not None and not self._is_other(child, part, path):
                layer = path if path in self._layers else place.layer
                self._visit(_Place(child, part, path, layer), places)

    def _is_other(self, child: nn.Module | None, part: Blueprint, path: str) -> bool:
        """Return whether a part is not the first one, nor one that computes the same."""
        if child is self._first.get(path):
            return False
        return part.weights or path in self._layers or not _is_kind(child, part)

    def _problem(self, place: _Place, patched: Mapping[type, str]) -> str | None:
        """Return the first thing in a module that is not as the blueprint has it, in words."""
        module, blueprint, path, _ = place
        own, cls = vars(module), type(module)
        if path and not self._code.methods(cls).isdisjoint(own):
            names = self._code.methods(cls) & own.keys()
            if not all(own_forward(module, name) for name in names):
                return f"the forward of a {cls.__name__} was replaced"
        if not _is_kind(module, blueprint):
            return f"a {blueprint.kinds[0]} became a {cls.__name__}"
        if path and (own["_forward_hooks"] or own["_forward_pre_hooks"]):
            return f"a {cls.__name__} has hooks"
        if self._has_other_parts(place):
            return f"a part of a {cls.__name__} was replaced"
        if setting := _wrong_setting(module, blueprint):
            if setting == "padding_mode":
                return "tiling changes the padding of convolutions"
            return f"the {setting} of a {cls.__name__} was changed"
        if path and own["_buffers"]:
            return f"a {cls.__name__} has buffers"
        return patched.get(cls)

    def _has_other_parts(self, place: _Place) -> bool:
        module, blueprint, path, _ = place
        own, parts = vars(module), blueprint.parts
        if not {type(own["_modules"]), type(own["_parameters"])} <= _TABLES:
            return True  # it may answer with others
        if blueprint.weights:  # an attribute of the name of a part or weight stands before it
            tables = own, own["_parameters"]  # Forge's layers have a None where they have no bias
            return any(n in own and any(t.get(n) is not None for t in tables) for n in _WEIGHTS)
        children, prefix = own["_modules"], path and f"{path}."
        if blueprint.container and list(children) != list(parts):
            return True
        return any(
            name in own or self._is_other(children.get(name), part, f"{prefix}{name}")
            for name, part in parts.items()
        )


class _Sight:
    """Everything that an Inspector looks at in modules, as lists that are compared in one go.

    They are made without a Python loop: a UNet has 1,000 to 2,000 modules.
    """

    def __init__(self, places: Collection[_Place]):
        self._modules = [p.module for p in places if p.path]
        self._networks = [weakref.ref(p.module) for p in places if not p.path]
        self._own = [vars(p.module) for p in places]
        self._parents = [vars(p.module) for p in places if p.blueprint.parts]
        self._weighted = [vars(p.module) for p in places if p.blueprint.weights]
        self._inner = [vars(p.module) for p in places if p.path]  # hooks of the network itself run
        self._settings: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for place, own in zip(places, self._own, strict=True):
            if names := tuple(filter(own.__contains__, place.blueprint.names)):
                self._settings.setdefault(names, []).append(own)
        # One more attribute is seen by the number of them. But layers with weights have marks of
        # the Lora extension, and a method may take the place of a mark.
        replaceable = [
            p.module
            for p in places
            if p.path and (p.blueprint.weights or not vars(p.module).keys().isdisjoint(_METHODS))
        ]
        self._methods = [
            (name, [vars(m) for m in replaceable if hasattr(type(m), name)]) for name in _METHODS
        ]

    def take(self) -> tuple[Any, ...] | None:
        """Return the state of all modules now; None where an attribute has gone.

        First comes the number of attributes of each module.
        """
        try:
            return (
                list(map(len, self._own)),
                all(map(operator.is_, map(_OWN, self._modules), self._inner)),
                list(map(type, self._modules)),
                [type(network()) for network in self._networks],
                [list(map(dict.get, own, itertools.repeat(name))) for name, own in self._methods],
                list(map(type, map(_PARTS, self._parents))),
                list(map(type, map(_PARAMETERS, self._weighted))),
                list(_chain(map(dict.values, map(_PARTS, self._parents)))),
                [_filled(map(names, self._inner)) for names in _CONTENTS],
                [list(map(operator.itemgetter(*n), own)) for n, own in self._settings.items()],
                _filled(_hooks_of_all_modules()),
                _modes(),
            )
        except KeyError:
            return None


_function_modes: Any = getattr(torch.overrides, "_get_current_function_mode_stack", list)
_dispatch_modes: Any = getattr(_python_dispatch, "_get_current_dispatch_mode_stack", list)
_chain = itertools.chain.from_iterable
_OWN = operator.attrgetter("__dict__")
_PARTS, _PARAMETERS = operator.itemgetter("_modules"), operator.itemgetter("_parameters")
_CONTENTS = [operator.itemgetter(name) for name in (*_HOOKS, "_buffers")]


def _hooks_of_all_modules() -> list[dict[Any, Any]]:
    return [_TORCHS[f"_global{name}"] for name in _HOOKS]


def _modes() -> list[type]:
    """Return the classes of the modes that are on: each may replace any of torch's functions."""
    return list(map(type, [*_function_modes(), *_dispatch_modes()]))


def _filled(tables: Iterable[Mapping[Any, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(table.items()) for table in filter(None, tables)]


def _equal(a: Any, b: Any) -> bool:
    """Compare; what cannot be compared, as tensors cannot, differs."""
    try:
        return bool(a == b)
    except Exception:  # noqa: BLE001  whatever anybody's comparison raises
        return False


def _is_kind(module: nn.Module | None, blueprint: Blueprint) -> bool:
    cls = type(module)
    if cls.__module__.startswith("torch.ao."):  # they quantize, under the names of others
        return False
    return not blueprint.kinds or cls.__name__ in blueprint.kinds


def _wrong_setting(module: nn.Module, blueprint: Blueprint) -> str | None:
    """Return the name of the first setting that the blueprint has otherwise, or None."""
    wrong: list[str] = []
    for alternative in blueprint.settings:
        names = [n for n, value in alternative.items() if not _has(module, n, value)]
        if not names:
            return None
        wrong += names
    return wrong[-1]


def _has(module: nn.Module, name: str, value: object) -> bool:
    there = getattr(module, name, value)
    return _equal(there, value)


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
    there, own = vars(module)[name], getattr(type(module), name, None)
    if type(there).__module__.partition(".")[0] == "lib_accel":
        return True
    if isinstance(there, functools.partial):
        return there.func is own and there.args == (module,) and not there.keywords
    is_method = isinstance(there, types.MethodType)
    return is_method and there.__self__ is module and there.__func__ is own

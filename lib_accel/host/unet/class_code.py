"""Finds what was replaced in the code that the classes of a network's modules run."""

from __future__ import annotations

import builtins
import functools
import inspect
import itertools
import operator
import types
from collections.abc import Collection, Mapping
from typing import Any

import torch

from .. import webui
from .functions import (
    DATA,
    WEBUI,
    answers_to,
    at_home,
    behind,
    content,
    equivalent,
    is_known,
    is_own,
    package,
    patched_by,
)

_BEGINNINGS = (
    *("forward", "__call__", "_wrapped_call_impl", "_call_impl", "_compiled_call_impl"),
    *("__getattr__", "__getattribute__", "__iter__", "__getitem__"),
)
"""The methods with which a module is called, finds its parts and goes through them."""

_MERGES = "network_"
"""How the names of the Lora extension's merging functions start; a patch of one is called."""

_TENSOR, _PARAMETER, _BUILTINS = map(vars, (torch.Tensor, torch.nn.Parameter, builtins))

_OPERATORS = (
    *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__"),
    *("__mul__", "__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__itruediv__"),
    *("__pow__", "__neg__", "__matmul__", "__rmatmul__", "__getitem__", "__setitem__"),
    "__torch_function__",
)
"""The methods of tensors that code calls without naming them."""


class ClassCode:
    """The functions that the methods of some classes reach, watched for replacements.

    A function reaches what its code names: methods of the class, globals of its file, and their
    attributes where they are modules (`F.interpolate`) or stand for one (the WebUI's `th`).
    """

    def __init__(self) -> None:
        self._walk = _Walk()
        self._seen: tuple[list[Any], list[Any]] = [], []

    def look(self, classes: Mapping[type, Collection[str]]) -> dict[type, str]:
        """Return what was replaced in the code of which class, and watch all of that code.

        `classes`: with the names of attributes that their instances must have for themselves.
        """
        self._walk = _Walk()
        found = {c: what for c, own in classes.items() if (what := self._walk.problem_of(c, own))}
        self._seen = self._walk.take()
        return found

    def changed(self) -> bool:
        """Return whether anything of it is another than at the last `look`."""
        (named, code), (seen, seen_code) = self._walk.take(), self._seen
        if not all(map(operator.is_, code, seen_code)):
            return True
        return not (all(map(operator.is_, named, seen)) or all(map(equivalent, named, seen)))

    def methods(self, cls: type) -> set[str]:
        """Return the names of the methods that calling an instance of `cls` may run."""
        return self._walk.methods[cls]


class _Walk:
    """One pass through the code of classes; collects every place where a function is found."""

    def __init__(self) -> None:
        self.methods: dict[type, set[str]] = {}
        self._places: dict[int, tuple[Mapping[str, Any], dict[str, None]]] = {}  # with names
        self._stand_ins: dict[tuple[int, str], Any] = {}  # objects that stand for modules
        self._cells: dict[int, types.CellType] = {}
        self._functions: dict[int, types.FunctionType] = {}
        self._cls: type = object
        self._followed: set[int] = set()
        self._problem: str | None = None

    def problem_of(self, cls: type, own: Collection[str]) -> str | None:
        """Return the first thing that is not original in the code of a class, or None."""
        self._cls, self._followed, self._problem = cls, set(), None
        self.methods[cls] = set()
        for name in _BEGINNINGS:
            self._method(name)
        for name in _OPERATORS:
            self._check(_TENSOR, name)
            self._check(_PARAMETER, name)
        for base in cls.__mro__[:-1]:
            for name in own:  # a property would stand before the attribute
                self._watch(base, name)
                if vars(base).get(name) is not None:
                    self._blame(f"the class {cls.__name__} was patched")
        return self._problem

    def take(self) -> tuple[list[Any], list[Any]]:
        """Return what stands now in all places that were found, and what makes up its code."""
        functions, places = self._functions.values(), self._places.values()
        named = [
            *itertools.chain.from_iterable(map(p.get, names) for p, names in places),
            *[_function_of(each, name) for (_, name), each in self._stand_ins.items()],
            *map(content, self._cells.values()),
        ]
        return named, [
            *map(operator.attrgetter("__mro__"), self.methods),
            *map(operator.attrgetter("__code__"), functions),
            *map(operator.attrgetter("__defaults__"), functions),
            *map(operator.attrgetter("__kwdefaults__"), functions),
        ]

    def _watch(self, owner: Any, name: str) -> None:
        # the id is the owner's: a class has no table of attributes that stays
        self._places.setdefault(id(owner), (vars(owner), {}))[1][name] = None

    def _blame(self, what: str) -> None:
        self._problem = self._problem or what

    def _method(self, name: str) -> None:
        if name in self.methods[self._cls]:
            return
        self.methods[self._cls].add(name)
        for base in self._cls.__mro__[:-1]:
            self._watch(base, name)
            there = vars(base).get(name)
            there = there.__func__ if isinstance(there, (staticmethod, classmethod)) else there
            if there is not None and not is_own(base, name, there):
                self._blame(patched_by(self._cls, there))
            self._follow(there)

    def _follow(self, function: Any) -> None:
        """Go on with all that a function closes over, and with all that its code names."""
        if id(function) in self._followed or not callable(function):
            return
        self._followed.add(id(function))
        function = getattr(function, "__func__", function)
        if isinstance(function, types.FunctionType):
            self._functions[id(function)] = function
            self._cells.update((id(cell), cell) for cell in function.__closure__ or ())
            if _is_read(function.__globals__.get("__name__", "")):
                self._read(function)
        elif package(type(function).__module__) in WEBUI:
            self._check(vars(type(function)), "__call__")
            for name in vars(function):
                self._watch(function, name)
        else:
            return
        for each in behind(function):
            self._follow(each)

    def _read(self, function: types.FunctionType) -> None:
        names = _names(function.__code__)
        self._look_up(names, function.__globals__)
        for name in names:
            if any(inspect.isroutine(vars(base).get(name)) for base in self._cls.__mro__[:-1]):
                self._method(name)
            self._check(_TENSOR, name)
            if name in _BUILTINS and name not in ("print", "open"):  # nothing is computed by these
                self._check(_BUILTINS, name)

    def _look_up(self, names: tuple[str, ...], place: Mapping[str, Any]) -> None:
        """Check what these names mean in a file, or in a module that is named there."""
        merges = place.get("__name__") == "networks"
        for name in names:
            if merges and name.startswith(_MERGES):
                continue
            value = self._check(place, name)
            if isinstance(value, types.ModuleType):
                # another library, as psutil, is known by its name
                if is_known(value.__name__) or value.__name__ != name:
                    others = tuple(n for n in names if n != name and n in vars(value))
                    self._look_up(others, vars(value))
            elif not isinstance(value, (*DATA, type, types.FunctionType)):
                self._stand_in(names, value)

    def _stand_in(self, names: tuple[str, ...], value: Any) -> None:
        for name in names:
            function = _function_of(value, name)
            if callable(function):
                self._stand_ins[id(value), name] = value
                if not at_home(function):
                    self._blame(_replaced(name))
                self._follow(function)

    def _check(self, place: Mapping[str, Any], name: str) -> Any:
        """Watch one name in one place, and return what stands there."""
        value = place.get(name)
        self._places.setdefault(id(place), (place, {}))[1][name] = None
        if callable(value) and not isinstance(value, types.ModuleType):
            if not (at_home(value) and answers_to(value, name)):
                self._blame(_replaced(name))
            if isinstance(value, type) and issubclass(value, torch.autograd.Function):
                self._class(value)
            self._follow(value)
        return value

    def _class(self, cls: type) -> None:
        """Check the functions of a class that differentiates, as ldm's CheckpointFunction."""
        for name, there in vars(cls).items():
            self._watch(cls, name)
            function = getattr(there, "__func__", there)
            if isinstance(function, types.FunctionType) and not at_home(function):
                self._blame(f"the class {cls.__name__} was patched")


def _replaced(name: str) -> str:
    if name == "cat":
        return "how the decoder joins its inputs was patched"
    return f"the function {name} was replaced"


def _function_of(stand_in: Any, name: str) -> Any:
    """Return the function of that name; of a bound method, which is new each time, its function."""
    try:
        function = getattr(stand_in, name, None)
    except Exception:  # noqa: BLE001  anybody's property; the code's own use of it will raise too
        return None
    return getattr(function, "__func__", function)


def _is_read(module: str) -> bool:
    """Return whether the code of a file is read for names; of torch's, only its layers' is."""
    if module.startswith(("torch.nn.modules.", "torch.nn.functional")):
        return module != "torch.nn.modules.module"
    return package(module) in (*webui.host.model_code, *WEBUI)


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(sorted({*code.co_names}.union(*map(_names, inner))))

"""Tells which functions are the original ones, by what they really run and not by their names.

It knows no extension by name. It knows the packages whose code is the original (`Host.home`). A
function counts with all that it closes over: the WebUI's CondFunc, for example, is at home itself,
and what it calls may come from anywhere.
"""

from __future__ import annotations

import operator
import sys
import types
from pathlib import Path
from typing import Any

import torch
from modules import sd_hijack
from modules.paths_internal import extensions_dir
from torch import nn

from .. import webui

_LIBRARIES = ("einops", "xformers", "numpy")
_KNOWN = {
    *webui.host.home,
    *webui.host.patching,
    *_LIBRARIES,
    "typing_extensions",
    *sys.stdlib_module_names,
}
"""Packages that the original code is in, or calls."""

WEBUI = webui.host.patching

DATA = (str, int, float, dict, list, tuple, torch.dtype, torch.Tensor, type(None))
"""Types of values that run nothing."""

_ATTENTION = ("CrossAttention", "MemoryEfficientCrossAttention")

_C_FUNCTIONS = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)
_contents = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")


def at_home(function: Any) -> bool:
    """Return whether a function and everything that it closes over is original code.

    A `functools.partial` is not: its arguments change what is computed.
    """
    return _at_home(function, set())


def runs_original(function: Any) -> bool:
    """Return whether a function is at home, and so are the functions that its code names."""
    if not at_home(function):
        return False
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    places = [function.__globals__]
    named = (function.__globals__.get(name) for name in code.co_names)
    places += [vars(module) for module in named if isinstance(module, types.ModuleType)]
    called = (place.get(name) for place in places for name in code.co_names)
    return all(at_home(f) for f in called if isinstance(f, types.FunctionType))


def _at_home(function: Any, seen: set[int]) -> bool:
    if id(function) in seen:
        return True
    seen.add(id(function))
    if isinstance(function, types.FunctionType):
        return _comes_from_home(function) and all(_at_home(f, seen) for f in behind(function))
    if isinstance(function, types.MethodType):
        owner = function.__self__
        cls = owner if isinstance(owner, type) else type(owner)
        return is_known(cls.__module__) and _at_home(function.__func__, seen)
    if isinstance(function, type):
        return is_known(function.__module__)
    if isinstance(function, _C_FUNCTIONS):
        module = getattr(function, "__module__", None)
        return not isinstance(module, str) or is_known(module)
    # an object that can be called, as a CondFunc
    at_home = package(type(function).__module__) in (*WEBUI, *_LIBRARIES)
    return at_home and all(_at_home(f, seen) for f in behind(function))


def _comes_from_home(function: types.FunctionType) -> bool:
    """Look at the code and where it stands: functools.wraps copies names, not these."""
    module = function.__globals__.get("__name__", "")
    if not is_known(module) or vars(sys.modules[module]) is not function.__globals__:
        return False
    if package(module) in sys.stdlib_module_names:  # partly frozen, without files
        return True
    return function.__code__.co_filename == function.__globals__.get("__file__")


def behind(function: Any) -> list[Any]:
    """Return what a function closes over, or an object holds, that can be called."""
    if isinstance(function, types.FunctionType):
        held = list(map(content, function.__closure__ or ()))
    else:
        held = list(getattr(function, "__dict__", {}).values())
    return [f for f in held if callable(f)]


def content(cell: types.CellType) -> Any:
    """Return what a cell of a closure holds; None where it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def package(module: str) -> str:
    """Return the package of a module's name."""
    return module.partition(".")[0]


def is_known(module: str) -> bool:
    """Return whether a module of that name is original code, or a library that this calls.

    A script file of an extension, as network.py, is a module of that name that nobody imports.
    """
    return package(module) in _KNOWN and module in sys.modules


def is_own(cls: type, name: str, function: Any) -> bool:
    """Return whether a method is the one that the class's own file defines, or the WebUI's."""
    if not isinstance(function, types.FunctionType):
        return isinstance(function, _C_FUNCTIONS)
    if not at_home(function):
        return False
    module = function.__globals__["__name__"]
    if cls is nn.Module or package(module) in WEBUI:
        return True
    own = name.removeprefix("org_")  # the WebUI's, while it casts by hand
    return (
        module == cls.__module__
        and function.__qualname__ == f"{cls.__qualname__}.{own}"
        and function.__code__.co_name == own
    )


def answers_to(function: Any, name: str) -> bool:
    """Return whether a function is the one of that name, and not another one of its package."""
    if name.startswith("_"):  # torch's files rename what they import for themselves
        return True
    if name == "nonlinearity" and function is nn.functional.silu:  # the WebUI's choice, in VAEs
        return True
    if isinstance(function, types.FunctionType):
        if package(function.__globals__["__name__"]) in WEBUI or webui.host.stands_for(
            name, function
        ):
            return True
        decorated = function.__closure__ and function.__name__ == name
        return bool(decorated) or function.__code__.co_name == name
    if isinstance(function, type) and issubclass(function, BaseException):
        return True
    own = getattr(function, "__name__", name)
    return own.strip("_") == name.strip("_")


def equivalent(a: Any, b: Any) -> bool:
    """Return whether two values run the same: also two closures of one function, made alike.

    The WebUI makes new ones for each call on cards that cannot autocast.
    """
    if a is b:
        return True
    if isinstance(a, types.FunctionType) and isinstance(b, types.FunctionType):
        inside = [list(map(content, f.__closure__ or ())) for f in (a, b)]
        return (
            _contents(a) == _contents(b)
            and len(inside[0]) == len(inside[1])
            and all(map(equivalent, *inside))
        )
    return isinstance(a, DATA) and isinstance(b, DATA)


def patched_by(cls: type, function: object) -> str:
    """Return that a class was patched with this function, and by which setting or extension."""
    optimizer: Any = getattr(sd_hijack, "current_optimizer", None)
    if cls.__name__ in _ATTENTION and not is_known(type(optimizer).__module__):
        return f"{optimizer.title()} computes attention (Settings, Optimizations)"
    for each in (function, *behind(function)):
        file = Path(getattr(getattr(each, "__code__", None), "co_filename", ""))
        if file.is_relative_to(extensions_dir):
            extension = file.relative_to(extensions_dir).parts[0]
            return f"the class {cls.__name__} was patched by the extension {extension}"
    return f"the class {cls.__name__} was patched"

"""Finds the control networks that a forward drives, by looking at what the forward holds."""

from __future__ import annotations

import types
from collections.abc import Iterable

import torch
from torch import nn

_STEPS, _MOST = 6, 20_000
"""How far `control_networks_behind` goes: steps from the function, and objects in all.

An extension's own state is near its function; behind that lies the whole WebUI. Looking at 20,000
objects takes 0.1 s, once for each forward that is put on a UNet.
"""


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
            if id(thing) in seen or len(seen) > _MOST or _is_ours(thing):
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


def _is_ours(thing: object) -> bool:
    return type(thing).__module__.partition(".")[0] == "lib_accel"

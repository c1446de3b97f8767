"""Copies of modules that choose themselves what a copy is made of, while ours stands on them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from lib_accel.runtime.attributes import put, take_away


class _Stateful(nn.Module):
    def __getstate__(self) -> dict[str, Any]:
        return {"training": self.training}


class _Named(nn.Module):
    def __reduce__(self) -> str:
        return "NAMED"


NAMED = _Named()


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda m: pickle.loads(pickle.dumps(m)),
]


@pytest.mark.parametrize("make", COPIES)
def test_a_module_may_choose_what_a_copy_is_made_of(make: Callable[[Any], Any]) -> None:
    for module in (_Stateful(), NAMED):
        bare, value = make(module), object()
        put(module, "ours", value)
        twin = make(module)
        take_away(vars(module), "ours", value)
        assert twin is module if module is NAMED else vars(twin) == vars(bare)

"""Puts attributes of ours on the modules of a live network, and takes them away exactly.

Copies of a module are bare: `copy`, `pickle` and `torch.save` see what stood there before us.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_COPIED_BY = "__reduce_ex__"
"""The attribute that tells `copy` and `pickle` what a module is made of."""


class Weakly:
    """An attribute that refers to a module without keeping it alive.

    Reading it raises ReferenceError where the module is gone.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}_reference"

    def __set__(self, instance: object, module: nn.Module) -> None:
        setattr(instance, self._name, weakref.ref(module))

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        module = getattr(instance, self._name)()
        if module is None:
            raise ReferenceError("this model has been discarded")
        return module


def put(module: nn.Module, name: str, value: object) -> None:
    """Put an attribute on a module, for `take_away`. Idempotent."""
    own = vars(module)
    ours = own.get(_COPIED_BY)
    if not isinstance(ours, _Ours):
        ours = own[_COPIED_BY] = _Ours(module)
    there = own.get(name)
    if not _same(there, value):
        ours.put[name] = value, None if isinstance(there, Forward) else there
        own[name] = value


def take_away(own: dict[str, Any], name: str, value: object) -> None:
    """Take what we have put on a module, given its `vars`, away again. Idempotent.

    What somebody else has put in its place stays.
    """
    ours = own.get(_COPIED_BY)
    put = ours.put if isinstance(ours, _Ours) else {}
    there, before = put.get(name, (None, None))
    if _same(own.get(name), value):
        _restore(own, name, before if _same(there, value) else None)
    if _same(there, value):
        del put[name]
        if not put:
            del own[_COPIED_BY]


def _same(there: object, value: object) -> bool:
    """Compare what stands somewhere with what we put; a bound method is made anew each time."""
    return type(there) is type(value) and there == value  # anybody else's may raise


def _restore(own: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        del own[name]
    else:
        own[name] = before


class _Ours:
    """What we have put on one module. It refers to the module weakly, as all that we put there."""

    module = Weakly()

    def __init__(self, module: nn.Module):
        self.module = module
        self.put: dict[str, tuple[object, Any]] = {}  # what we have put there, what was before

    def __call__(self, protocol: Any) -> Any:
        """Stand in for `object.__reduce_ex__` of the module."""
        cls: Any = type(self.module)
        reduced = cls.__reduce_ex__(self.module, protocol)
        if isinstance(reduced, str):  # the name of a global
            return reduced
        make, given, *rest = reduced
        if rest and isinstance(rest[0], dict):
            own = rest[0] = dict(rest[0])
            own.pop(_COPIED_BY, None)  # a class may choose what its state is
            for name, (value, before) in self.put.items():
                if _same(own.get(name), value):
                    _restore(own, name, before)
        return make, given, *rest


class Forward:
    """Stands as `forward` on a module, and answers as the module's own bound method does.

    Called, it calls the method `compute` with the same arguments, as long as its object lives.
    """

    __self__ = Weakly()

    def __init__(self, module: nn.Module, compute: Callable[..., Any]):
        self.__self__, self._compute = module, weakref.WeakMethod(compute)

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        compute = self._compute()
        if compute is None:  # it has gone, and somebody had kept this and put it back
            take_away(vars(self.__self__), "forward", self)
            compute = self.__wrapped__
        return compute(*given, **named)

    def __getattr__(self, name: str) -> Any:
        method = types.MethodType(type(self.__self__).forward, self.__self__)
        return method if name == "__wrapped__" else getattr(method, name)

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, "forward")

"""With which the WebUI patches functions, and others too: what it calls comes from anywhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


class CondFunc:
    """Puts `sub_func(original, ...)` in the place of a name, for calls that `cond_func` picks.

    The name ends in a module, a class and a method, or in a module and a function.
    """

    def __new__(cls, orig_func: str, sub_func: Any, cond_func: Any = None) -> Callable[..., Any]:
        self = super().__new__(cls)
        path = orig_func.split(".")
        owner: Any = importlib.import_module(".".join(path[:2]))
        for name in path[2:-1]:
            owner = getattr(owner, name)
        self.__init__(getattr(owner, path[-1]), sub_func, cond_func)
        setattr(owner, path[-1], lambda *args, **kwargs: self(*args, **kwargs))
        return lambda *args, **kwargs: self(*args, **kwargs)

    def __init__(self, orig_func: Any, sub_func: Any, cond_func: Any):
        self.__orig_func, self.__sub_func, self.__cond_func = orig_func, sub_func, cond_func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.__cond_func or self.__cond_func(self.__orig_func, *args, **kwargs):
            return self.__sub_func(self.__orig_func, *args, **kwargs)
        return self.__orig_func(*args, **kwargs)

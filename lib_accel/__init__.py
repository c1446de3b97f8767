"""Compiled code for diffusion UNets, made once for every checkpoint, LoRA and size.

    import lib_accel
    accelerated = lib_accel.accelerate(unet)
    with accelerated.lora([("style.safetensors", 0.8)]): ...
    accelerated.wait(); accelerated.status; accelerated.remove()

Importing this package imports nothing else, neither torch nor the WebUI: the names of `__all__` are
loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compile.session import Session
    from .config import Config
    from .errors import AccelError
    from .runtime.accelerated import Accelerated, accelerate
    from .runtime.status import Status

__version__ = "0.1.0"
__all__ = ["AccelError", "Accelerated", "Config", "Session", "Status", "accelerate"]

_HOMES = {
    "AccelError": "errors",
    "Accelerated": "runtime.accelerated",
    "Config": "config",
    "Session": "compile.session",
    "Status": "runtime.status",
    "accelerate": "runtime.accelerated",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)

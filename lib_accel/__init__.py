"""Compiled code for diffusion UNets, made once for every checkpoint, LoRA and size.

    import lib_accel
    accelerated = lib_accel.accelerate(unet)
    with accelerated.lora([("style.safetensors", 0.8)]): ...
    accelerated.wait(); accelerated.status; accelerated.remove()

Importing this package imports nothing else, neither torch nor the WebUI: the names of `__all__` are
loaded when they are first used.
"""

# Python versions that lib_accel.__main__ refuses must still read this file: no f-string here.
TYPE_CHECKING = False  # as in `typing`, whose import takes longer than all that runs here

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
        raise AttributeError("module 'lib_accel' has no attribute " + repr(name))
    import importlib

    return getattr(importlib.import_module("." + _HOMES[name], __name__), name)

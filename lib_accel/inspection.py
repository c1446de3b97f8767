"""What has been done to a live UNet by others: found by looking at it, never by knowing who did it."""

from __future__ import annotations

from torch import nn

from .architecture import Architecture

HOME = ("ldm", "sgm", "modules", "torch", "networks", "lib_accel")
"""Packages whose classes and class forwards are a UNet's own: the model code, the WebUI, its Lora extension."""


class Inspector:
    """Tells which layers of `unet` (an ldm or sgm UNetModel) no longer compute what its weights say.

    Signs: a forward set on an instance, another class, hooks, a replaced submodule, non-zero padding, a class forward that was
    defined outside of HOME.
    """

    def __init__(self, unet: nn.Module, architecture: Architecture):
        self._layers = {name: _Watched(unet.get_submodule(name)) for name, _ in architecture.layers()}
        self._classes = {type(m) for w in self._layers.values() for m in w.modules}

    def changed(self) -> dict[str, str]:
        """Layer names with what was found, for those that must run the host's way."""
        foreign = {c for c in self._classes if not _home_made(c)}
        found = {}
        for name, watched in self._layers.items():
            what = watched.changed(foreign)
            if what:
                found[name] = what
        return found


class _Watched:
    def __init__(self, layer: nn.Module):
        self.modules = list(layer.modules())
        self._seen = [(m, type(m), vars(m), m._modules, tuple(m._modules.values()), getattr(m, "padding_mode", None)) for m in self.modules]

    def changed(self, foreign: set[type]) -> str | None:
        for module, cls, own, children, seen, padding in self._seen:
            if "forward" in own or "_forward" in own:
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


def _home_made(cls: type) -> bool:
    return all(_package(getattr(cls, name, None)) in HOME for name in ("forward", "_forward") if hasattr(cls, name))


def _package(function: object) -> str:
    return (getattr(function, "__module__", None) or "").partition(".")[0]


def summary(found: dict[str, str]) -> str:
    """One line for the status: what was found and in how many layers."""
    reasons = list(dict.fromkeys(found.values()))
    return f"{len(found)} layers run the WebUI's way: {'; '.join(reasons[:3])}"

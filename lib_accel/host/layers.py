"""The layers of a live network, each of whose forwards is ours: so they keep their speed whoever calls them.

ControlNet and others put their own forward on the UNet and call its blocks themselves. What they call in the end are layers,
and those are what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..runtime.engine import CompiledLayer, Engine
from . import webui
from .inspection import own_forward


class HostLayer:
    """A layer that runs the WebUI's way, called as the clean UNet calls its layers."""

    def __init__(self, module: nn.Module):
        names = {c.__name__ for c in type(module).__mro__}
        self._module = module
        self._extra = (
            "emb"
            if "TimestepBlock" in names
            else "context"
            if "SpatialTransformer" in names
            else None
        )

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        with webui.autocast():
            side = () if self._extra is None else (emb if self._extra == "emb" else context,)
            out = self._module(h, *side)
        return out.to(h.dtype)


class Layers:
    """Takes over layers of `network` by name. `begin` is asked before the first of each pass which of them to compute compiled."""

    def __init__(
        self,
        network: nn.Module,
        names: list[str],
        engine: Engine,
        begin: Callable[[Tensor], Mapping[str, CompiledLayer]],
    ):
        self._engine, self._begin = engine, begin
        self._taken = [
            _TakenLayer(self, name, network.get_submodule(name), i) for i, name in enumerate(names)
        ]
        self._at = len(names)
        self._compiled: Mapping[str, CompiledLayer] = {}
        self.aside = False  # while true, every layer runs the WebUI's way

    def install(self) -> None:
        for layer in self._taken:
            there = vars(layer.module).get("forward")
            if there is not layer and (there is None or own_forward(layer.module, "forward")):
                layer.before, layer.module.forward = there, layer

    def remove(self) -> None:
        """Leave every layer as it was found."""
        self._compiled = {}
        for layer in self._taken:
            if vars(layer.module).get("forward") is layer:
                if layer.before is None or isinstance(layer.before, _TakenLayer):
                    del layer.module.forward
                else:
                    layer.module.forward = layer.before

    def run(self, taken: _TakenLayer, h: Tensor, side: Tensor | None) -> Tensor | None:
        """Compiled, or None where the layer must run the WebUI's way. A pass begins when the layers begin anew."""
        if self.aside:
            return None
        if taken.position <= self._at:
            self._compiled = self._begin(h)
        self._at = taken.position
        layer = self._compiled.get(taken.name)
        return None if layer is None else self._engine.run_layer(layer, h, side)


class _TakenLayer:
    """Stands as `forward` on one layer: `(h)`, `(h, emb)` or `(h, context)`."""

    def __init__(self, layers: Layers, name: str, module: nn.Module, position: int):
        self._layers, self.name, self.module, self.position = layers, name, module, position
        self.before: Any = None

    def __call__(self, h: Tensor, side: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        out = None if rest or named else self._layers.run(self, h, side)
        if out is not None:
            return out
        given = () if side is None else (side,)
        return type(self.module).forward(self.module, h, *given, *rest, **named)  # type: ignore[no-any-return]

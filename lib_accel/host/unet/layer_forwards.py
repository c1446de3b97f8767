"""The forwards of a live network's layers, ours while the network is accelerated.

ControlNet and others put a forward of their own on the UNet and call its blocks themselves. Those
call layers in the end, and a layer is what is compiled: so it stays fast whoever calls it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ...runtime.binding import CompiledLayer
from ...runtime.engine import Engine
from .. import webui
from .inspection import own_forward

BeginPass = Callable[[Tensor], Mapping[str, CompiledLayer]]
"""Given the first input of a pass, returns the layers that compiled code computes in it."""


class HostLayer:
    """A layer computed by the network's own module, called as the clean UNet calls its layers."""

    def __init__(self, module: nn.Module):
        names = {c.__name__ for c in type(module).__mro__}
        self._module = module
        self._takes_emb = "TimestepBlock" in names
        self._takes_context = "SpatialTransformer" in names

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        side = [emb] if self._takes_emb else [context] if self._takes_context else []
        with webui.autocast():
            return self._module(h, *side).to(h.dtype)


class LayerForwards:
    """Puts a forward of ours on layers of `network`, by name, and takes it away exactly."""

    def __init__(self, network: nn.Module, names: list[str], engine: Engine, begin_pass: BeginPass):
        self._engine, self._begin_pass = engine, begin_pass
        self._forwards = [
            _LayerForward(self, name, network.get_submodule(name), i)
            for i, name in enumerate(names)
        ]
        self._position = len(names)  # of the layer that ran last
        self._compiled: Mapping[str, CompiledLayer] = {}
        self._paused = False

    def install(self) -> None:
        """Put our forwards in place where nobody else's stand. Idempotent."""
        for forward in self._forwards:
            there = vars(forward.module).get("forward")
            if there is not forward and (there is None or own_forward(forward.module, "forward")):
                forward.before, forward.module.forward = there, forward

    def remove(self) -> None:
        """Leave every layer as it was found."""
        self._compiled = {}
        for forward in self._forwards:
            if vars(forward.module).get("forward") is not forward:
                continue
            if forward.before is None or isinstance(forward.before, _LayerForward):
                del forward.module.forward
            else:
                forward.module.forward = forward.before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the `with`, every layer runs its module's own code: a whole call is computed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def run(self, forward: _LayerForward, h: Tensor, side: Tensor | None) -> Tensor | None:
        """Compute a layer with compiled code; None where its module must.

        A layer that does not come after the last one that ran begins a new pass.
        """
        if self._paused:
            return None
        if forward.position <= self._position:
            self._compiled = self._begin_pass(h)
        self._position = forward.position
        layer = self._compiled.get(forward.name)
        return None if layer is None else self._engine.compute_layer(layer, h, side)


class _LayerForward:
    """Stands as `forward` on one layer: called with `(h)`, `(h, emb)` or `(h, context)`."""

    def __init__(self, owner: LayerForwards, name: str, module: nn.Module, position: int):
        self._owner, self.name, self.module, self.position = owner, name, module, position
        self.before: Any = None

    def __call__(self, h: Tensor, side: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        out = None if rest or named else self._owner.run(self, h, side)
        if out is None:
            given = () if side is None else (side,)
            out = type(self.module).forward(self.module, h, *given, *rest, **named)
        return out

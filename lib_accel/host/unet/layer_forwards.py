"""The forwards of a live network's layers, ours while the network is accelerated.

ControlNet and others put a forward of their own on the UNet and call its blocks themselves. Those
call layers in the end, and a layer is what is compiled: so it stays fast whoever calls it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...model.layers import LayerFn
from ...runtime.accelerated import is_plain, why_failed
from ...runtime.attributes import Forward, put, take_away
from ...runtime.bound.binding import CompiledLayer
from ...runtime.engine import Engine
from .. import webui
from .comparison import difference
from .inspection import own_forward

Both = Callable[[str, Callable[[], Tensor], Callable[[], Tensor]], Tensor]
"""Computes a layer the network's way and ours, given its name and both; returns what to use."""

BeginPass = Callable[..., tuple[Mapping[str, CompiledLayer], Both | None]]
"""Given the first inputs of a pass, returns the layers that compiled code computes in it.

Where the pass is witnessed, it returns what computes these layers both ways."""


class HostLayer:
    """A layer computed by the network's own module, called as the clean UNet calls its layers."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        if not h.is_contiguous():  # as the WebUI's is; whoever has the tensor still has this one
            h.data = h.contiguous()
        with webui.host.autocast():
            return self.module(h, *self.side(emb, context)).to(h.dtype)

    def side(self, emb: Tensor, context: Tensor) -> list[Tensor]:
        """Return what the layer takes beside `h`: somebody may have given it another class."""
        names = {c.__name__ for c in type(self.module).__mro__}
        if "TimestepBlock" in names:
            return [emb]
        return [context] if "SpatialTransformer" in names else []


class Recording:
    """Layers that answer what those of `hosts` have answered to somebody else, inside the `with`.

    `apart` is how far their inputs were from those of the others: what comes after such a layer
    no longer shows it.
    """

    def __init__(self, hosts: Mapping[str, HostLayer]):
        self.layers: dict[str, LayerFn] = {
            name: functools.partial(self._answer, name) for name in hosts
        }
        self.apart = 0.0
        self._hosts, self._heard = hosts, {}
        self._listening: list[Any] = []

    def __enter__(self) -> Recording:
        for name, host in self._hosts.items():
            self._listening += listen(host.module, functools.partial(self._record, name))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._listening:
            handle.remove()
        self._heard.clear()

    def _record(self, name: str, given: list[Tensor], out: Tensor) -> None:
        self._heard[name] = given, out.clone()  # what comes after the layer may write into it

    def _answer(self, name: str, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        host = self._hosts[name]
        if name not in self._heard:  # the others have not come to this layer: it runs for once
            return host(h, emb, context)
        given, out = self._heard[name]
        for ours, theirs in zip([h, *host.side(emb, context)], given, strict=False):
            self.apart = max(self.apart, difference(ours, theirs))
        return out.to(h.dtype)


def listen(module: nn.Module, heard: Callable[[list[Tensor], Tensor], object]) -> list[Any]:
    """Call `heard` with the inputs and the output of each call of a layer.

    The inputs are copies, made before anybody else's hooks: the layer may write into them. Returns
    handles, whose `remove` ends it.
    """
    given: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [t for t in (*args, *named.values()) if isinstance(t, Tensor)]
        given[:] = [t.clone() for t in tensors[:2]]

    def after(_: nn.Module, __: Any, out: Tensor) -> None:
        heard(list(given), out)
        given.clear()

    return [
        module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        module.register_forward_hook(after),
    ]


class LayerForwards:
    """Puts a forward of ours on layers of `network`, by name, and takes it away exactly.

    `begin_pass` and `explain`, which is told why a layer was not computed by us, are methods.
    """

    def __init__(
        self,
        network: nn.Module,
        names: list[str],
        engine: Engine,
        begin_pass: BeginPass,
        explain: Callable[[str], object],
    ):
        self._engine = engine
        self._begin_pass = weakref.WeakMethod(begin_pass)
        self._explain = weakref.WeakMethod(explain)
        self._forwards = [
            _LayerForward(self, name, network.get_submodule(name), i)
            for i, name in enumerate(names)
        ]
        self._position = len(names)  # of the layer that ran last
        self._wanted: object = None  # LoRAs
        self._compiled: Mapping[str, CompiledLayer] = {}
        self._both: Both | None = None
        self._paused = 0  # how many calls run the modules' own code: several threads may call
        self._removed = False

    def install(self) -> None:
        """Put our forwards in place where nobody else's stand. Idempotent."""
        for forward in self._forwards:
            if "forward" not in forward.own or own_forward(forward.__self__, "forward"):
                put(forward.__self__, "forward", forward)

    def remove(self) -> None:
        """Leave every layer as it was found. A forward that somebody keeps computes no more."""
        self._compiled, self._removed = {}, True
        for forward in self._forwards:
            take_away(forward.own, "forward", forward)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the `with`, every layer runs its module's own code: a whole call is computed."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def run(
        self,
        forward: _LayerForward,
        theirs: Callable[[], Tensor],
        h: Tensor,
        side: Tensor | None = None,
    ) -> Tensor | None:
        """Compute a layer with compiled code; None where its module must, as `theirs` does.

        A layer that does not come after the last one that ran begins a new pass, and so does one
        for which other LoRAs are wanted.
        """
        begin_pass, explain = self._begin_pass(), self._explain()
        if self._paused or self._removed or not (begin_pass and explain):
            return None
        wanted = webui.wanted_loras()
        if forward.position <= self._position or wanted != self._wanted:
            self._compiled, self._both = begin_pass(h, side)
            self._wanted = wanted
        self._position = forward.position
        layer = self._compiled.get(forward.name)
        if layer is None or layer.takes_side != (side is not None):
            return None
        try:
            if self._both is None:
                return self._engine.compute_layer(layer, h, side)
            ours = functools.partial(self._engine.compute_layer, layer, h.clone(), side)
            return self._both(forward.name, theirs, ours)
        except RuntimeError as error:
            reason = why_failed(error)
        explain(reason)
        return None


class _LayerForward(Forward):
    """Stands as `forward` on one layer. What a host's options change is left to its own code."""

    def __init__(self, owner: LayerForwards, name: str, module: nn.Module, position: int):
        super().__init__(module, owner.run)
        self.own, self.name, self.position = vars(module), name, position

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        """Compute the layer from `(h)`, `(h, emb)` or `(h, context)`, and perhaps options."""
        run = self._compute()
        if run is None:
            return super().__call__(*given, **named)
        inputs = self._positional(given, named)
        theirs = functools.partial(self.__wrapped__, *given, **named)
        out = run(self, theirs, *inputs) if inputs else None
        return theirs() if out is None else out

    def _positional(self, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """Return one or two tensors in their order; nothing where others are given."""
        if named:
            try:
                arguments = inspect.signature(self.__wrapped__).bind(*given, **named)
            except TypeError:  # the layer's own code raises that too
                return ()
            given = () if arguments.kwargs else arguments.args
        given = webui.host.layer_inputs(self.name, self.__self__, given)
        if not all(map(is_plain, given)) or len(given) > 2:
            return ()
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return ()
        return given

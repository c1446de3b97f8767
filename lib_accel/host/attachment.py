"""One loaded model's UNet, taken over: instance attributes `forward` that are put there and taken away exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..compile.session import Session
from ..config import Config
from ..errors import AccelError, UnsupportedArchitecture
from ..model.unet import LayerFn
from ..runtime.control import Companion
from ..runtime.engine import CompiledLayer, Counters, Engine
from ..runtime.lora_bases import Bases
from . import webui
from .inspection import Inspector, networks_behind, own_forward, summary
from .layers import HostLayer, Layers
from .lora import Loras

_KEY = (
    "_accel_attachment"  # on the network, so that what we did lives and dies with the model object
)


@dataclass
class Counts:
    """What one attachment has done. Outlives it, so that the sums of a process never fall."""

    engine: Counters
    host_calls: int = 0
    lora_merges: int = 0

    def to_dict(self) -> dict[str, int]:
        e = self.engine
        return {
            "compiles": e.compiles,
            "binds": e.binds,
            "lora_merges": self.lora_merges,
            "accelerated_calls": e.accelerated_calls,
            "host_calls": self.host_calls,
        }


class Attachment:
    """Raises AccelError when the UNet cannot be taken over at all."""

    def __init__(self, unet: nn.Module, config: Config, session: Session):
        self.unet = unet
        self.engine = Engine(unet, config, session=session, device=webui.device())
        names = [name for name, _ in self.engine.architecture.layers()]
        self._inspector = Inspector(unet, names)
        self._host_layers: dict[str, LayerFn] = {
            name: HostLayer(unet.get_submodule(name)) for name in names
        }
        compiled = [
            name for name, spec in self.engine.architecture.layers() if spec in self.engine.units
        ]
        self._layers = Layers(unet, compiled, self.engine, self._begin)
        self._loras = Loras(unet, Bases(config.lora_base, webui.say))
        self._driver: object = None  # somebody else's forward, where one stands on the UNet
        self._controls: WeakSet[nn.Module] = (
            WeakSet()
        )  # networks that drive the UNet, taken over as well
        self.counts = Counts(self.engine.counters)
        self.reason: str | None = None  # why the last call, or a part of it, was not accelerated
        self._said: set[str] = set()

    # -- coming and going

    def install(self) -> None:
        """Take the UNet over. Where somebody else's forward stands there, his comes first: he calls its layers, or ours in turn."""
        setattr(self.unet, _KEY, self)
        self.unet._apply = self._apply
        there = vars(self.unet).get("forward")
        if (
            there is None
            or isinstance(getattr(there, "__self__", None), Attachment)
            or own_forward(self.unet, "forward")
        ):
            self.unet.forward = self._forward
        self._layers.install()

    def remove(self, keep_compiling: bool = False) -> None:
        """Leave the UNet exactly as it was found."""
        self._remove_forward()
        self._layers.remove()
        vars(self.unet).pop("_apply", None)
        for network in list(self._controls):
            control = of(network)
            if isinstance(control, _Control):
                control.remove()
        vars(self.unet).pop(_KEY, None)
        self.engine.close(keep_compiling)

    def _remove_forward(self) -> None:
        if getattr(vars(self.unet).get("forward"), "__self__", None) is self:
            del self.unet.forward

    def _apply(self, *args: Any, **named: Any) -> nn.Module:
        """Stands in for `nn.Module._apply`, what `to` calls: a model that is thrown away goes to the meta device, its weights with it.

        We share them, and they would stay until the next model is complete.
        """
        type(self.unet)._apply(self.unet, *args, **named)
        if next(self.unet.parameters()).is_meta:
            self._loras.forget()
            self.remove(
                keep_compiling=True
            )  # base and refiner take turns: each would end the other's compiler for ever
        return self.unet

    def take_up(self) -> None:
        """Between images: install what the compiler has finished. "Compiling" is then no longer the reason."""
        if self.engine.take_up():
            self.reason = None

    # -- computing

    def _forward(
        self, x: Tensor, timesteps: Any = None, context: Any = None, *rest: Any, **named: Any
    ) -> Tensor:
        """Stands in for `UNetModel.forward`; shapes as there."""
        if (
            of(self.unet) is not self
        ):  # removed while somebody else kept our forward, who has put it back since
            self._remove_forward()
            return self._host_forward(x, timesteps, context, *rest, **named)
        y = rest[0] if rest else named.get("y")
        more = [
            *(type(value).__name__ for value in rest[1:]),
            *(name for name in named if name != "y"),
        ]
        reason = self._why_not_call(context, more) or self.why_not(x)
        if (
            reason is None
            and torch.is_grad_enabled()
            and (x.requires_grad or context.requires_grad)
        ):
            reason = "this call is differentiated"
        replaced, around = self._inspector.look() if reason is None else ({}, None)
        if around:
            return self._host_forward(
                x, timesteps, context, *rest, **named
            )  # which calls `_begin`, and our layers
        with self._layers_aside():
            if reason is None:
                self._merge()
                self._explain(summary(replaced) if replaced else None)
                try:
                    return self._compute(
                        x,
                        timesteps,
                        context,
                        y,
                        {name: self._host_layers[name] for name in replaced},
                    )
                except AccelError as e:
                    reason = str(e)
            self._explain(reason)
            self.counts.host_calls += 1
            return self._host_forward(x, timesteps, context, *rest, **named)

    def _compute(self, *given: Any) -> Tensor:
        try:
            return self.engine(*given)
        except torch.cuda.OutOfMemoryError:
            if not self.release_memory():
                raise
        return self.engine(*given)

    def release_memory(self) -> bool:
        """Give back the video memory that CUDA graphs and the bases of LoRAs hold, if they hold any."""
        return any([self.engine.release_graphs(), self._loras.park()])

    def _host_forward(self, *args: Any, **named: Any) -> Tensor:
        return type(self.unet).forward(self.unet, *args, **named)  # type: ignore[no-any-return]

    def _begin(self, h: Tensor) -> Mapping[str, CompiledLayer]:
        """Somebody else drives the UNet, or the WebUI's own forward does, and a pass begins: what compiled code computes in it."""
        reason = self.why_not(h)
        if reason is None:
            try:
                replaced, around = self._inspector.look()
                self._merge()
                compiled = self.engine.compiled_layers()
                self._take_over_controls()
                driven = around or "another extension drives the UNet"
                if compiled:
                    self._explain(
                        "; ".join(
                            [
                                f"{driven}: compiled layer by layer",
                                *([summary(replaced)] if replaced else []),
                            ]
                        )
                    )
                    self.engine.counters.accelerated_calls += 1
                    return {name: layer for name, layer in compiled.items() if name not in replaced}
                reason = f"{driven}: without compiled code its layers run the WebUI's way"
            except AccelError as e:
                reason = str(e)
        self._explain(reason)
        self.counts.host_calls += 1
        return {}

    @contextlib.contextmanager
    def _layers_aside(self) -> Iterator[None]:
        """For a whole call: the engine knows the layers better, and the WebUI's way is to be just that."""
        before, self._layers.aside = self._layers.aside, True
        try:
            yield
        finally:
            self._layers.aside = before

    def _merge(self) -> None:
        self.counts.lora_merges += self._loras.bring_up_to_date()

    def why_not(self, x: Tensor) -> str | None:
        """Why compiled code cannot serve now, or None."""
        if not webui.enabled():
            return "acceleration is switched off for this image"
        now = webui.why_not_now(self.unet)
        if now:
            return now
        weight = next(self.unet.parameters())
        if weight.device != x.device:
            return f"the weights are on {weight.device} and the image on {x.device} (--lowvram moves them piece by piece)"
        if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"the weights are stored as {weight.dtype}"
        return (
            "compiling; images are made without acceleration until then"
            if self.engine.job is not None
            else None
        )

    def _why_not_call(self, context: Any, more: list[str]) -> str | None:
        if more or not isinstance(context, torch.Tensor):
            return f"this call gives the UNet more than compiled code knows: {', '.join(more) or type(context).__name__}"
        return None

    def _explain(self, reason: str | None) -> None:
        """Remember it for the status, and say it in the console the first time."""
        self.reason = reason
        if reason and reason not in self._said:
            self._said.add(reason)
            webui.say(reason)

    # -- what drives the UNet

    @property
    def control_models(self) -> int:
        """Networks beside the UNet that our code computes."""
        return len(self._controls)

    def _take_over_controls(self) -> None:
        """Networks of a UNet's layers behind the forward that drives this UNet (ControlNets) get the same compiled code."""
        driver = vars(self.unet).get("forward")
        if driver is self._driver:
            return
        self._driver = driver
        for network in networks_behind(driver, but=self.unet):
            there = of(network)
            if isinstance(there, Attachment) or (there and there.engine is self.engine):
                continue
            if there:
                there.remove()
            try:
                _Control(network, self.engine).install()
            except UnsupportedArchitecture:
                continue
            self._controls.add(network)


class _Control:
    """A ControlNet or its like, run by the UNet's code. Raises UnsupportedArchitecture when it has none of a UNet's layers."""

    def __init__(self, network: nn.Module, engine: Engine):
        self.network, self.engine = network, engine
        self._companion = Companion(network)
        self._inspector = Inspector(network, self._companion.specs)
        self._layers = Layers(network, list(self._companion.specs), engine, self._begin)

    def install(self) -> None:
        setattr(self.network, _KEY, self)
        self._layers.install()

    def remove(self) -> None:
        self._layers.remove()
        vars(self.network).pop(_KEY, None)
        self._companion.close()

    def _begin(self, h: Tensor) -> Mapping[str, CompiledLayer]:
        if not webui.enabled() or webui.why_not_now(self.network):
            return {}
        compiled, changed = self._companion.compiled_layers(self.engine), self._inspector.look()[0]
        return {name: layer for name, layer in compiled.items() if name not in changed}


def of(network: nn.Module | None) -> Any:
    """What took a network over, if anything did."""
    return vars(network).get(_KEY) if network is not None else None

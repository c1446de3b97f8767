"""One loaded model's UNet, taken over: an instance attribute `forward` that is put there and taken away exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..engine import Counters, Engine
from ..errors import AccelError
from ..inspection import Inspector, summary
from ..unet import LayerFn
from . import webui

_KEY = "_accel_attachment"  # on the UNet, so that what we did lives and dies with the model object
_MERGED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


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


class HostLayer:
    """A layer that runs the WebUI's way, called as the clean UNet calls its layers."""

    def __init__(self, module: nn.Module):
        names = {c.__name__ for c in type(module).__mro__}
        self._module = module
        self._extra = "emb" if "TimestepBlock" in names else "context" if "SpatialTransformer" in names else None

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        with webui.autocast():
            side = () if self._extra is None else (emb if self._extra == "emb" else context,)
            out = self._module(h, *side)
        return out.to(h.dtype)


class Attachment:
    """Raises AccelError when the UNet cannot be taken over at all."""

    def __init__(self, unet: nn.Module, config: Config):
        self.unet = unet
        self.engine = Engine(unet, config, device=webui.device())
        self._inspector = Inspector(unet, self.engine.architecture)
        self._host_layers: dict[str, LayerFn] = {name: HostLayer(unet.get_submodule(name)) for name, _ in self.engine.architecture.layers()}
        self._merged = [m for m in unet.modules() if isinstance(m, _MERGED)]
        self.counts = Counts(self.engine.counters)
        self.reason: str | None = None  # why the last call, or a part of it, was not accelerated
        self._said: set[str] = set()

    # -- coming and going

    def install(self) -> bool:
        """Take the UNet over. False while somebody else's forward stands there: his comes first."""
        setattr(self.unet, _KEY, self)
        there = vars(self.unet).get("forward")
        if there is None:
            self.unet.forward = self._forward
        elif getattr(there, "__self__", None) is not self:
            self._explain("another extension has replaced the UNet's forward; its comes first")
            return False
        return True

    def remove(self) -> None:
        """Leave the UNet exactly as it was found."""
        if getattr(vars(self.unet).get("forward"), "__self__", None) is self:
            del self.unet.forward
        vars(self.unet).pop(_KEY, None)
        self.engine.close()

    def take_up(self) -> None:
        """Between images: install what the compiler has finished. "Compiling" is then no longer the reason."""
        if self.engine.take_up():
            self.reason = None

    # -- computing

    def _original(self) -> Callable[..., Tensor]:
        return type(self.unet).forward.__get__(self.unet)

    def _forward(self, x: Tensor, timesteps: Any = None, context: Any = None, *rest: Any, **named: Any) -> Tensor:
        """Stands in for `UNetModel.forward`; shapes as there."""
        y, more = (rest[0] if rest else named.get("y")), [*rest[1:], *(k for k in named if k != "y")]
        reason = self.why_not(x, context, more) or self._waiting()
        if reason is None:
            replaced = self._inspector.changed()
            self._explain(summary(replaced) if replaced else None)
            try:
                self.counts.lora_merges += bool(webui.merge_loras(self._merged))
                return self.engine(x, timesteps, context, y, {name: self._host_layers[name] for name in replaced})
            except AccelError as e:
                reason = str(e)
        self._explain(reason)
        self.counts.host_calls += 1
        return self._original()(x, timesteps, context, *rest, **named)

    def why_not(self, x: Tensor, context: Any, more: list[Any]) -> str | None:
        """Why this very call must go the WebUI's way, or None."""
        if not webui.enabled():
            return "acceleration is switched off for this image"
        now = webui.why_not_now(self.unet)
        if now:
            return now
        if more or not isinstance(context, torch.Tensor):
            return f"this call gives the UNet more than compiled code knows: {', '.join(map(str, more)) or type(context).__name__}"
        weight = next(self.unet.parameters())
        if weight.device != x.device:
            return f"the weights are on {weight.device} and the image on {x.device} (--lowvram moves them piece by piece)"
        if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"the weights are stored as {weight.dtype}"
        return None

    def _waiting(self) -> str | None:
        return "compiling; images are made without acceleration until then" if self.engine.job is not None else None

    def _explain(self, reason: str | None) -> None:
        """Remember it for the status, and say it in the console the first time."""
        self.reason = reason
        if reason and reason not in self._said:
            self._said.add(reason)
            webui.say(reason)


def of(unet: nn.Module | None) -> Attachment | None:
    """The attachment of a UNet, if it has one."""
    return vars(unet).get(_KEY) if unet is not None else None

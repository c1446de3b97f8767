"""Half of one loaded VAE in the WebUI, accelerated and given back exactly as it was."""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from typing import Any

import torch
from modules import shared
from torch import Tensor, nn

from ...compile.backends.jit import exporting
from ...compile.session import Session
from ...config import Config
from ...model.layers import LayerFn
from ...model.specs import VaeBlock
from ...model.vae.network import OUTPUT
from ...runtime.accelerated import accelerated, is_plain, set_owner, take_owner, why_failed
from ...runtime.attributes import Forward, Weakly, put, take_away
from ...runtime.status import Status
from ...runtime.vae import VaeEngine
from .. import webui
from ..unet.inspection import Inspector, own_forward, summary
from .blueprint import of_half


class VaeAttachment:
    """A `Decoder` or `Encoder` of the WebUI whose `forward` runs compiled code.

    A layer that somebody has changed runs as they have it; where something around the layers was
    changed, or somebody drives them one by one (tiled decoding), all run the WebUI's way. It does
    not keep the VAE alive. Raises AccelError where that cannot be accelerated.
    """

    half = Weakly()

    def __init__(self, half: nn.Module, config: Config, session: Session):
        self.half, self._own = half, vars(half)
        self.engine = VaeEngine(half, config, session, webui.device())
        specs = {name: spec for name, spec in self.engine.half.layers if name != OUTPUT}
        self._inspector = Inspector(half, specs, of_half(self.engine.half))
        # a residual block also takes the time embedding, which a VAE has not
        self._theirs = {
            name: functools.partial(_host_layer, half.get_submodule(name), isinstance(s, VaeBlock))
            for name, s in specs.items()
        }
        self.reason: str | None = None  # why the last call, or a part of it, was not accelerated
        self.host_calls = 0
        self._explained: set[str] = set()
        self._standing = Forward(half, self._forward)
        # previews are decoded in another thread than images
        self._lock = threading.RLock()
        self._at_the_end = weakref.finalize(half, self.remove, keep_compiling=True)
        self._at_the_end.atexit = False

    # -- coming and going

    def install(self) -> None:
        """Put our forward on the half where nobody else's stands. Idempotent."""
        set_owner(self.half, self)
        put(self.half, "_apply", self._apply)
        there = self._own.get("forward")
        if there is None or own_forward(self.half, "forward"):
            put(self.half, "forward", self._standing)
        else:
            name = getattr(there, "__module__", type(there).__name__)
            self._explain(f"another extension computes the VAE: {name}")

    def remove(self, keep_compiling: bool = False) -> None:
        """Leave the half exactly as it was found. Idempotent."""
        self._at_the_end.detach()
        with self._lock:
            take_away(self._own, "_apply", self._apply)
            take_away(self._own, "forward", self._standing)
            take_owner(self._own, self)
            self.engine.close(keep_compiling)

    def _apply(self, *args: Any, **named: Any) -> nn.Module:
        """Stand in for `nn.Module._apply`: weights that the WebUI discards must not live on."""
        type(self.half)._apply(self.half, *args, **named)
        if next(self.half.parameters()).is_meta:
            self.remove(keep_compiling=True)
        return self.half

    def take_up(self) -> bool:
        """Serve what the compiler has finished. Called between images. Return whether it was."""
        with self._lock:
            taken = self.engine.take_up()
        if taken:
            self.reason = None
        return taken

    @property
    def status(self) -> Status:
        """How things stand: state, backend, progress and reason."""
        status = self.engine.status
        reasons = filter(None, (self.reason, status.reason))
        return dataclasses.replace(status, reason="; ".join(reasons) or None)

    # -- computing

    def _forward(self, *given: Any, **named: Any) -> Tensor:
        """Stand on the half as its `forward`."""
        if accelerated(self.half) is not self:  # somebody has kept it, and put it back
            take_away(self._own, "forward", self._standing)
        if self._own.get("forward") is not self._standing:  # or calls it
            return self._standing.__wrapped__(*given, **named)
        with self._lock:
            reason = self._why_not(given, named)
            if reason is None:
                try:
                    return self._compute(given[0])
                except Exception as error:  # noqa: BLE001  the VAE's own code computes it, or raises
                    reason = why_failed(error)
            self._explain(reason)
            self.host_calls += 1
        return self._standing.__wrapped__(*given, **named)

    def _compute(self, x: Tensor) -> Tensor:
        found, _ = self._inspector.look()
        self._explain(summary(found) if found else None)
        replaced: dict[str, LayerFn] = {name: self._theirs[name] for name in found}
        return self.engine.compute(x, replaced)

    def _why_not(self, given: tuple[Any, ...], named: dict[str, Any]) -> str | None:
        """Return why the WebUI's own code computes this call, or None."""
        if not webui.vae_enabled():
            return "acceleration of the VAE is switched off for this image"
        if len(given) != 1 or named or not is_plain(given[0]) or given[0].ndim != 4:
            return "this call gives the VAE more than compiled code knows"
        x, weight = given[0], next(self.half.parameters())
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return "this call is differentiated"
        if exporting():
            return "the VAE is being exported"
        if weight.device != x.device:
            return f"the weights of the VAE are on {weight.device} and the image on {x.device}"
        if weight.dtype != x.dtype:
            return f"the weights of the VAE are {weight.dtype} and the image {x.dtype}"
        if why := _why_otherwise(weight):
            return why
        if self.engine.job is not None and not self.engine.units:
            return "compiling; the VAE runs without acceleration until then"
        if not self.engine.can_compute:
            return self.engine.status.reason
        found, around = self._inspector.look()
        if around or len(found) == len(self._theirs):
            return f"the VAE is not accelerated: {around or next(iter(found.values()))}"
        return None

    def _explain(self, reason: str | None) -> None:
        """Keep the reason for the status, and print it the first time."""
        self.reason = reason
        if reason and reason not in self._explained:
            self._explained.add(reason)
            webui.say(reason)


def _why_otherwise(weight: Tensor) -> str | None:
    """Return why the WebUI computes in another precision than the VAE's weights have, or None.

    It encodes images under autocast, and decodes latents without.
    """
    narrow = weight.dtype in (torch.float16, torch.bfloat16)
    if weight.device.type == "cuda" and torch.is_autocast_enabled() and not narrow:
        return "the WebUI encodes this image in half precision, with a VAE in float32"
    if shared.opts.upcast_attn and narrow:
        return "the WebUI computes attention in float32 (Settings: upcast cross attention layer)"
    return None


def _host_layer(module: nn.Module, embeds: bool, h: Tensor, *_: Tensor) -> Tensor:
    """Compute a layer by the VAE's own module, as the WebUI does: contiguous."""
    given = h.contiguous()
    return (module(given, None) if embeds else module(given)).to(h.dtype)

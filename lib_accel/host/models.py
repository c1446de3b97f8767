"""The UNets that the WebUI has loaded: which are accelerated, and why others are refused."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ..compile.machine import RESERVE
from ..compile.session import Session
from ..config import Config
from ..errors import AccelError
from ..runtime.accelerated import accelerated
from ..runtime.status import Counters
from . import webui
from .unet.attachment import Attachment
from .unet.comparison import AttachmentCounters, Tally

VAE_BYTES = 4 * 1024
"""What a VAE is taken to need: bytes for each pixel of the image and byte of its dtype.

In the laboratory SD1's decoder takes 1.7 KiB, and 3 KiB with what torch keeps between its layers.
"""


class Models:
    """Every UNet that was loaded, accelerated or not. It keeps none of them alive."""

    def __init__(self) -> None:
        self._seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._refused: weakref.WeakKeyDictionary[nn.Module, tuple[str, object]] = (
            weakref.WeakKeyDictionary()
        )
        self._vaes: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
        self.counts: list[AttachmentCounters] = []  # of all attachments there ever were

    def add(self, unet: nn.Module) -> None:
        """Note that a UNet was loaded."""
        self._seen.add(unet)

    def watch_vae(self, sd_model: Any) -> None:
        """Make room in video memory before the VAE of a model computes. Idempotent.

        It may at any time: at the end, for a preview, between two passes.
        """
        vae = webui.host.vae_of(sd_model)
        for name, scale in (("encoder", 1), ("decoder", 64)):
            part = getattr(vae, name, None)
            if isinstance(part, nn.Module) and part not in self._vaes:
                hook = functools.partial(self._before_vae, scale)
                self._vaes[part] = part.register_forward_pre_hook(hook)

    def leave_vaes(self) -> None:
        """Leave every VAE as it was found."""
        for hook in self._vaes.values():
            hook.remove()
        self._vaes.clear()

    def _before_vae(self, scale: int, _: nn.Module, given: tuple[Any, ...]) -> None:
        """Make room for a pass over `given[0]: [B, C, H, W]`, of `scale` pixels for each."""
        x, attachments = given[0] if given else None, self.attachments
        if not attachments or not isinstance(x, Tensor) or x.device.type != "cuda":
            return
        needed = scale * x[:, 0].numel() * x.element_size() * VAE_BYTES
        for each in attachments:
            each.engine.memory.make_room(needed)
        if torch.cuda.mem_get_info(x.device)[0] < needed + RESERVE:
            torch.cuda.empty_cache()  # pieces of memory that are too small for it add to the peak

    @property
    def unets(self) -> list[nn.Module]:
        """All of them."""
        return list(self._seen)

    @property
    def attachments(self) -> list[Attachment]:
        """What accelerates those that are accelerated."""
        return [each for each in map(accelerated, self.unets) if each is not None]

    def attach(self, unet: nn.Module, config: Config, session: Session, around: object) -> None:
        """Accelerate a UNet, or keep the reason why it is refused."""
        self._refused.pop(unet, None)
        here = None
        try:
            here = Attachment(unet, config, session)
            here.begin_image(around)
            here.install()
            here.engine.prepare()
        except AccelError as e:
            if here is not None:
                here.remove()
            self._refused[unet] = str(e), _parts(unet)
            webui.say(f"this model is not accelerated: {e}")
            return
        self.counts.append(here.counts)
        webui.say(here.engine.status.sentence)

    def sums(self) -> dict[str, int]:
        """Return the sum of each counter."""
        each = [c.to_dict() for c in (AttachmentCounters(Counters()), *self.counts)]
        return {name: sum(c[name] for c in each) for name in each[0]}

    def checking(self) -> float:
        """Return the seconds that have gone into checks of steps."""
        return sum(tally.seconds for tally in self.tallies)

    @property
    def tallies(self) -> list[Tally]:
        """What the witnesses of all attachments have found."""
        return [c.tally for c in self.counts]

    def measured(self) -> dict[str, float]:
        """Return sums that only the metrics show."""
        graphs = [each.engine.graphs for each in self.attachments]
        return {
            "compile_seconds": sum(c.engine.compile_seconds for c in self.counts),
            "compile_failures": sum(c.engine.compile_failures for c in self.counts),
            "graph_bytes": sum(each.bytes for each in graphs if each is not None),
        }

    def detach(self, unet: nn.Module, keep_compiling: bool = False) -> None:
        """Leave a UNet as it was found."""
        here = accelerated(unet)
        if here is not None:
            here.remove(keep_compiling)
            gc.collect()

    # -- those that could not be accelerated, for as long as they stay what they were

    def why_not(self, unet: nn.Module | None) -> str:
        """Return why a loaded UNet is not accelerated, or not yet; None: there is none."""
        if unet is None:
            return "no model is loaded yet"
        loaded = any(each is unet for each in self.unets)
        waits = "it begins with the next image" if loaded else "the model is being loaded"
        return self.refusal(unet) or waits

    def refusal(self, unet: nn.Module) -> str | None:
        """Return why a UNet was refused last, or None."""
        return self._refused.get(unet, (None,))[0]

    def stays_refused(self, unet: nn.Module) -> bool:
        """Return whether a UNet was refused as it is now.

        What was refused may have been the work of another extension, and only for one image.
        """
        return unet in self._refused and self._refused[unet][1] == _parts(unet)


def _parts(unet: nn.Module) -> object:
    named = unet.named_parameters()
    return [(name, p.shape, p.dtype, p.device) for name, p in named]

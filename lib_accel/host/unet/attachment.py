"""One loaded model's UNet in the WebUI: accelerated, and given back exactly as it was."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...compile.session import Session
from ...config import Config
from ...errors import UnsupportedArchitecture
from ...model.layers import LayerFn
from ...model.precision import without_autocast
from ...runtime.accelerated import Accelerated, Call, accelerated, set_owner, why_failed
from ...runtime.attributes import Weakly, put, take_away
from ...runtime.bound.binding import CompiledLayer
from ...runtime.lora.merging import BasePlacement
from ...runtime.status import Counters
from ...runtime.trial import Trial
from .. import webui
from .accelerated_control import AcceleratedControl
from .blueprint import of_unet
from .comparison import Tally
from .control_networks import control_networks_behind
from .inspection import Inspector, own_forward, summary
from .layer_forwards import Both, HostLayer, LayerForwards
from .lora.layers import Loras
from .witness import IMAGE, Witness


@dataclass
class AttachmentCounters:
    """What one attachment has done, kept after it is removed: totals never decrease."""

    engine: Counters
    host_calls: int = 0
    lora_merges: int = 0
    tally: Tally = field(default_factory=Tally)

    def to_dict(self) -> dict[str, int]:
        """Return the counters that the status shows."""
        e = self.engine
        return {
            "compiles": e.compiles,
            "binds": e.binds,
            "lora_merges": self.lora_merges,
            "accelerated_calls": e.accelerated_calls,
            "host_calls": self.host_calls,
        }


class Attachment(Accelerated):
    """A UNet of the WebUI, accelerated.

    Beside the UNet's forward it stands on the forward of every compiled layer, so that extensions
    which call the layers themselves (ControlNet) run compiled code too. Before each call it merges
    the wanted LoRAs and looks for what others have changed. It does not keep the UNet alive. Raises
    AccelError where the UNet cannot be accelerated at all.
    """

    unet = Weakly()

    def __init__(self, unet: nn.Module, config: Config, session: Session):
        super().__init__(unet, config, session, webui.device())
        specs = dict(self.engine.architecture.layers())
        self.inspector = Inspector(unet, specs, of_unet(self.engine.architecture))
        self._host_layers = {name: HostLayer(unet.get_submodule(name)) for name in specs}
        compiled = [name for name, spec in specs.items() if spec in self.engine.target.units]
        self._layers = LayerForwards(unet, compiled, self.engine, self._begin_pass, self._explain)
        self.loras = Loras(unet, BasePlacement(config.lora_base, webui.say))
        self.engine.memory.add(self.loras.leave_video_memory)
        # somebody else's forward, where one stands on the UNet; it may hold the UNet
        self._driver: Callable[[], object] = lambda: None
        self._controls: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # accelerated too
        self.counts = AttachmentCounters(self.engine.counters)
        trial = Trial(self.engine, session.speeds)
        self.witness = Witness(unet, self.inspector, self.counts.tally, trial)
        self._explained: set[str] = set()
        # what was put on its layers refers to us, and we to them
        self._at_the_end = weakref.finalize(unet, self.remove, keep_compiling=True)
        self._at_the_end.atexit = False

    # -- coming and going

    def install(self) -> None:
        """Put our forwards on the UNet and its layers. Idempotent.

        If another extension has put a forward on the UNet, it stays. It reaches compiled code
        through our layer forwards, or calls our forward.
        """
        set_owner(self.unet, self)
        put(self.unet, "_apply", self._apply)
        if "forward" not in self._own or own_forward(self.unet, "forward"):
            put(self.unet, "forward", self._standing)
        self._layers.install()

    def remove(self, keep_compiling: bool = False) -> None:
        """Leave the UNet and its control networks exactly as they were found. Idempotent."""
        self._at_the_end.detach()
        self._layers.remove()
        take_away(self._own, "_apply", self._apply)
        for network in list(self._controls):
            control = accelerated(network)
            if isinstance(control, AcceleratedControl):
                control.remove()
        super().remove(keep_compiling)

    def _apply(self, *args: Any, **named: Any) -> nn.Module:
        """Stand in for `nn.Module._apply`, which `to` calls.

        The WebUI discards a model by moving it to the meta device. We share its weights and would
        keep them alive until the next model is complete.
        """
        type(self.unet)._apply(self.unet, *args, **named)
        weight = next(self.unet.parameters())
        if weight.device != self.engine.device:  # as under --medvram, to make room
            self.engine.memory.give_up()
        if weight.is_meta:
            self.loras.forget()
            # base and refiner replace each other during an image: if each removal stopped the
            # compiler, neither would ever be compiled
            self.remove(keep_compiling=True)
        return self.unet

    def begin_image(self, around: object) -> None:
        """Follow a new image. `around`: see `webui.switched_on`."""
        self.engine.compiled.begin_image()
        self.witness.begin_image(around)
        for control in filter(None, map(accelerated, self._controls)):
            control.witness.begin_image(around)

    def take_up(self) -> bool:
        """Serve what the compiler has finished. Called between images. Return whether it was."""
        taken = self.engine.take_up()
        if taken:
            self.reason = None
        return taken

    # -- computing

    def why_not(self, call: Call) -> str | None:
        """Return why compiled code cannot serve this call, or None."""
        return self.why_not_layers(call.x) or super().why_not(call)

    def compute(self, call: Call) -> Tensor:
        """Compute a call that `why_not` has let pass."""
        replaced, around = self.inspector.look()
        # the UNet's own forward contains the change; its layers run compiled code, but not where
        # others of them may learn
        if around or (replaced and torch.is_grad_enabled()):
            return super().original(call)
        with self._layers.paused():
            self.counts.lora_merges += self.loras.bring_up_to_date()
            due = self._is_due(call.x, call.context) | self.witness.trial.is_due(call.x)
            replaced = {**self.witness.distrusted, **replaced}
            self._explain(summary(replaced) if replaced else None)
            hosts = {name: self._host_layers[name] for name in replaced}
            # to be compared, these keep what they have answered
            due = due and (not hosts or self.engine.memory.has_room_for_call(call.x))
            return self._witnessed(call, hosts) if due else self._ours(call, hosts)

    def _ours(self, call: Call, layers: Mapping[str, LayerFn]) -> Tensor:
        """Compute a call with compiled code, and `layers` by themselves."""
        return self.engine.compute(call.x, call.timesteps, call.context, call.y, layers)

    def _is_due(self, h: Tensor, side: Tensor | None) -> bool:
        return self.witness.is_due(self.loras.kinds, h, side, self.engine.units)

    def _witnessed(self, call: Call, hosts: Mapping[str, HostLayer]) -> Tensor:
        """Compute a call by the UNet's own code too, and with compiled code if that agrees."""
        self.witness.check_merges(self.loras)
        before = self.engine.counters.accelerated_calls
        out, ours = self.witness.step(call, super().original, self._ours, hosts)
        if not ours:
            self.engine.counters.accelerated_calls = before
            self.counts.host_calls += 1
        return out

    def fall_back(self, call: Call, reason: str) -> Tensor:
        """Compute a call with the UNet's own forward and layers, because of `reason`."""
        self._explain(reason)
        self.counts.host_calls += 1
        examined = self._unchanged() if reason == IMAGE else {}
        with self._layers.paused(), self.witness.examining(examined, self._layer):
            return self.original(call)

    def _unchanged(self) -> dict[str, nn.Module]:
        """Return the layers that are not known to compute something else than ours."""
        known = {**self.witness.distrusted, **self.inspector.look()[0]}
        return {n: host.module for n, host in self._host_layers.items() if n not in known}

    def _layer(self, name: str, h: Tensor, side: Tensor | None) -> Tensor:
        """Compute one layer with compiled code, or with the clean layer where there is none."""
        compiled = self.engine.compiled_layers().get(name)
        if compiled is not None:
            return self.engine.compute_layer(compiled, h, side)
        with torch.no_grad(), without_autocast(h.device):
            x, s = (t.to(self.engine.dtype) for t in (h, h if side is None else side))
            return self.engine.clean.layers[name](x, s, s).to(h.dtype)

    def _begin_pass(
        self, h: Tensor, side: Tensor | None
    ) -> tuple[Mapping[str, CompiledLayer], Both | None]:
        """Return the layers to compute with compiled code in the pass that begins with `h`.

        Asked when layers are called one by one: by ControlNet, or by the UNet's own forward
        because something around the layers was changed.
        """
        reason = self.why_not_layers(h)
        self.engine.memory.make_room_for_call(h, by_others=True)
        if reason is None:
            try:
                replaced, around = self.inspector.look()
                self.counts.lora_merges += self.loras.bring_up_to_date()
                compiled = self.engine.compiled_layers()
                self._accelerate_controls()
            except Exception as error:  # noqa: BLE001  the UNet's own layers need none of this
                reason = why_failed(error)
            else:
                both = None
                if compiled and self._is_due(h, side):
                    self.witness.check_merges(self.loras)
                    both = self.witness.layer_by_layer()
                replaced = {**self.witness.distrusted, **replaced}
                driven = around or "another extension drives the UNet"
                if compiled:
                    parts = [f"{driven}: compiled layer by layer"]
                    self._explain("; ".join(parts + ([summary(replaced)] if replaced else [])))
                    self.engine.counters.accelerated_calls += 1
                    compiled = {n: layer for n, layer in compiled.items() if n not in replaced}
                    return compiled, both
                reason = f"{driven}: without compiled code its layers run unaccelerated"
        self._explain(reason)
        self.counts.host_calls += 1
        return {}, None

    def why_not_layers(self, x: Tensor) -> str | None:
        """Return why the WebUI or the weights keep compiled code from serving now, or None."""
        if not webui.enabled():
            return "acceleration is switched off for this image"
        if why := webui.blocked_by(self.unet):
            return why
        weight = next(self.unet.parameters())
        if weight.device != x.device:
            return (
                f"the weights are on {weight.device} and the image on {x.device} "
                "(--lowvram moves them piece by piece)"
            )
        if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"the weights are stored as {weight.dtype}"
        if self.engine.job is not None and not self.engine.units:
            return "compiling; images are made without acceleration until then"
        return self.witness.why_not(x)

    def _explain(self, reason: str | None) -> None:
        """Keep the reason for the status, and print it the first time."""
        self.reason = reason
        if reason and reason not in self._explained:
            self._explained.add(reason)
            webui.say(reason)

    # -- control networks

    @property
    def control_models(self) -> int:
        """How many control networks run on this UNet's compiled code."""
        return len(self._controls)

    def _accelerate_controls(self) -> None:
        """Accelerate the control networks behind the forward that drives this UNet."""
        driver = vars(self.unet).get("forward")
        if driver is self._driver():
            return
        with contextlib.suppress(TypeError):  # it has no weak references: looked at in each pass
            self._driver = weakref.ref(driver)
        for network in control_networks_behind(driver, but=self.unet):
            if not set(self.unet.modules()).isdisjoint(network.modules()):
                continue  # it holds our layers, which are accelerated
            there = accelerated(network)
            if isinstance(there, Attachment) or (there and there.engine is self.engine):
                continue
            if there:
                there.remove()
            with contextlib.suppress(UnsupportedArchitecture):  # it has none of a UNet's layers
                AcceleratedControl(network, self.engine, self.witness).install()
                self._controls.add(network)

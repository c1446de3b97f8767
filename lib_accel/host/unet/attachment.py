"""One loaded model's UNet in the WebUI: accelerated, and given back exactly as it was."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...compile.session import Session
from ...config import Config
from ...errors import UnsupportedArchitecture
from ...model.layers import LayerFn
from ...model.precision import without_autocast
from ...model.unet import Control
from ...runtime.accelerated import Accelerated, Call, accelerated, set_owner, why_failed
from ...runtime.attributes import Weakly, put, take_away
from ...runtime.bound.binding import CompiledLayer
from ...runtime.lora.merging import BasePlacement
from ...runtime.trial import Trial
from .. import webui
from .accelerated_control import AcceleratedControl
from .blueprint import of_unet
from .comparison import AttachmentCounters
from .control_networks import control_networks_behind
from .inspection import Inspector, own_forward, summary
from .layer_forwards import Both, HostLayer, LayerForwards
from .lora.layers import Loras
from .witness import IMAGE, Witness


class Attachment(Accelerated):
    """A UNet of the WebUI, accelerated.

    Beside the UNet's forward it stands on the forward of every compiled layer, so that extensions
    which call the layers themselves (ControlNet) run compiled code too. Before each call it merges
    the wanted LoRAs and looks for what others have changed. It does not keep the UNet alive. Raises
    AccelError where the UNet cannot be accelerated at all.
    """

    unet = Weakly()

    def __init__(self, unet: nn.Module, config: Config, session: Session):
        dtype = webui.host.computation_dtype(unet)
        super().__init__(unet, config, session, webui.device(), dtype)
        self.engine.clean.resizes_first = webui.host.resizes_first
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
        self._led: str | None = None  # why the UNet's own forward leads the call that runs
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
        if why := self.why_not_layers(call.x):
            return why
        reading = webui.host.read(call)
        return reading.refused or super().why_not(reading.call)

    def compute(self, call: Call) -> Tensor:
        """Compute a call that `why_not` has let pass."""
        replaced, around = self.inspector.look()
        self._accelerate(webui.host.control_networks())
        reading = webui.host.read(call)
        led = around or reading.led
        # the UNet's own forward contains the change; its layers run compiled code, but not where
        # others of them may learn
        if led or (replaced and (torch.is_grad_enabled() or webui.host.passes_options)):
            return self._led_by_host(call, led)
        with self._layers.paused():
            self.counts.lora_merges += self.loras.bring_up_to_date()
            due = self._is_due(call.x, call.context) | self.witness.trial.is_due(call.x)
            replaced = {**self.witness.distrusted, **replaced}
            self._explain(summary(replaced) if replaced else None)
            hosts = {name: self._host_layers[name] for name in replaced}
            # to be compared, these keep what they have answered
            due = due and (not hosts or self.engine.memory.has_room_for_call(call.x))
            ours = functools.partial(self._ours, reading.control)
            return self._witnessed(call, ours, hosts) if due else ours(call, hosts)

    def _led_by_host(self, call: Call, why: str | None) -> Tensor:
        """Let the UNet's own forward go through its layers, which run compiled code."""
        self._led = why or "other code computes some layers"
        try:
            return super().original(call)
        finally:
            self._led = None

    def _ours(self, control: Control | None, call: Call, layers: Mapping[str, LayerFn]) -> Tensor:
        """Compute a call with compiled code, and `layers` by themselves."""
        return self.engine.compute(call.x, call.timesteps, call.context, call.y, layers, control)

    def _is_due(self, h: Tensor, side: Tensor | None) -> bool:
        return self.witness.is_due(self.loras.kinds, h, side, self.engine.units)

    def _witnessed(
        self, call: Call, ours: Callable[..., Tensor], hosts: Mapping[str, HostLayer]
    ) -> Tensor:
        """Compute a call by the UNet's own code too, and with compiled code if that agrees."""
        self.witness.check_merges(self.loras)
        before = self.engine.counters.accelerated_calls
        out, is_ours = self.witness.step(call, super().original, ours, hosts)
        if not is_ours:
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
                driven = self._led or around or "another extension drives the UNet"
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
        self._accelerate(control_networks_behind(driver, but=self.unet))

    def _accelerate(self, networks: Iterable[nn.Module]) -> None:
        """Accelerate these control networks, and keep to those that are."""
        for network in networks:
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

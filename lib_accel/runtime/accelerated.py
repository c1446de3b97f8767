"""The public door: accelerate a UNet, and undo it.

accelerated = lib_accel.accelerate(unet)
with accelerated.lora([("style.safetensors", 0.8)]):
    ...
accelerated.remove()
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compile.session import Session
from ..config import Config
from ..errors import AccelError
from .attributes import Forward, put, take_away
from .engine import Engine
from .lora.files import Merger, read_lora
from .status import Status

_log = logging.getLogger(__name__)

_KEY = "_accelerated"  # an attribute of the network: what we did lives and dies with it


class Call(NamedTuple):
    """The arguments of one call of a UNet's `forward`."""

    x: Tensor
    timesteps: Any
    context: Any
    rest: tuple[Any, ...]
    named: dict[str, Any]

    @property
    def y(self) -> Any:
        """The class or size conditioning, `[B, adm_channels]`."""
        return self.rest[0] if self.rest else self.named.get("y")

    @property
    def unknown(self) -> list[str]:
        """What is given beyond x, timesteps, context and y."""
        more = [type(value).__name__ for value in self.rest[1:]]
        return more + [name for name in self.named if name != "y"]


class Accelerated:
    """A UNet whose `forward` runs compiled code, from `install` to `remove`.

    A call that compiled code cannot serve runs the UNet's own forward, and `status.reason` says
    why. A subclass may refuse calls (`why_not`) and change how one is computed (`compute`).
    Changes that others make to single layers while the UNet is accelerated are not noticed.
    """

    def __init__(
        self,
        unet: nn.Module,
        config: Config | None = None,
        session: Session | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        """See Engine. Raises UnsupportedArchitecture or BadWeights where it cannot be done."""
        self.unet = unet
        self._own = vars(unet)
        self.engine = Engine(unet, config, session, device, dtype)
        self.reason: str | None = None  # why the last call, or a part of it, was not accelerated
        self._standing = Forward(unet, self._forward)
        self._forward_before: Any = None  # a forward that somebody else had put on the UNet
        self._loras: list[tuple[Any, float]] = []
        self._merger: Merger | None = None

    # -- coming and going

    def install(self) -> None:
        """Put our forward on the UNet. Idempotent."""
        set_owner(self.unet, self)
        if self._own.get("forward") is not self._standing:
            self._forward_before = self._own.get("forward")
            put(self.unet, "forward", self._standing)

    def remove(self, keep_compiling: bool = False) -> None:
        """Leave the UNet exactly as it was found: forward, weights and memory layout. Idempotent.

        `keep_compiling` lets a running job end its work, for another UNet of the same session.
        """
        if self._merger is not None:
            self._merger.set([])
            self._merger, self._loras = None, []
        take_away(self._own, "forward", self._standing)
        take_owner(self._own, self)
        self.engine.close(keep_compiling)

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    # -- what a user asks for

    def wait(self, timeout_s: float | None = None) -> Status:
        """Wait until compiled code serves, or cannot be made, and return the status."""
        if self.engine.job is not None:
            self.engine.job.wait(timeout_s)
        self.engine.take_up()
        return self.status

    @property
    def status(self) -> Status:
        """How things stand: state, backend, reason, progress and counters."""
        status = self.engine.status
        reasons = (self.reason, status.reason)
        return dataclasses.replace(status, reason="; ".join(filter(None, reasons)) or None)

    @contextlib.contextmanager
    def lora(self, files: Sequence[tuple[str | Path, float]]) -> Iterator[None]:
        """Merge LoRA files, each with its strength, into the weights for the length of a `with`.

        A `with` inside another adds its LoRAs. Afterwards the weights are what they were, to the
        bit. Nothing is compiled. Raises BadCheckpoint where a file is no plain LoRA of this UNet.
        """
        architecture = self.engine.architecture
        added = [(read_lora(Path(file), architecture), strength) for file, strength in files]
        if self._merger is None:
            parameters = dict(self.unet.named_parameters())
            self._merger = Merger(parameters, self.engine.config.lora_base)
            self.engine.memory.add(self._merger.leave_video_memory)
        before = self._loras
        self._loras = [*before, *added]
        try:
            self._merger.set(self._loras)
            yield
        finally:
            self._loras = before
            if self._merger is not None:  # None: removed inside the block
                self._merger.set(before)

    # -- computing

    def why_not(self, call: Call) -> str | None:
        """Return why compiled code cannot serve this call, or None."""
        if call.unknown or not isinstance(call.context, Tensor):
            given = ", ".join(call.unknown) or type(call.context).__name__
            return f"this call gives the UNet more than compiled code knows: {given}"
        given = [t for t in (call.x, call.context, call.y) if isinstance(t, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return "this call is differentiated"
        if not all(map(is_plain, given)):
            return "this call gives the UNet tensors of a class that computes in its own way"
        weight = next(self.unet.parameters())
        if weight.device != call.x.device:
            return f"the weights are on {weight.device} and the image on {call.x.device}"
        if not self.engine.can_compute:
            return self.engine.status.reason
        return None

    def compute(self, call: Call) -> Tensor:
        """Compute a call that `why_not` has let pass. Raises AccelError where that cannot be."""
        self.engine.take_up()
        self.reason = None
        return self.engine.compute(call.x, call.timesteps, call.context, call.y)

    def fall_back(self, call: Call, reason: str) -> Tensor:
        """Compute a call with the UNet's own forward, because of `reason`."""
        if reason != self.reason:
            _log.warning("the UNet runs without acceleration: %s", reason)
        self.reason = reason
        return self.original(call)

    def original(self, call: Call) -> Tensor:
        """Compute a call with the UNet's own forward."""
        self.engine.memory.make_room_for_call(call.x, by_others=True)
        forward = self._forward_before or self._standing.__wrapped__
        out: Tensor = forward(call.x, call.timesteps, call.context, *call.rest, **call.named)
        return out

    def _forward(
        self, x: Tensor, timesteps: Any = None, context: Any = None, *rest: Any, **named: Any
    ) -> Tensor:
        """Stand on the UNet as its `forward`, with its arguments and result."""
        call = Call(x, timesteps, context, rest, named)
        if accelerated(self.unet) is not self:  # somebody has kept our forward and put it back
            take_away(self._own, "forward", self._standing)
            return self.original(call)
        reason = self.why_not(call)
        if reason is None:
            try:
                return self.compute(call)
            except Exception as error:  # noqa: BLE001  raised again where the original fails too
                reason = why_failed(error)
        return self.fall_back(call, reason)


def accelerate(
    unet: nn.Module,
    config: Config | None = None,
    session: Session | None = None,
    device: torch.device | None = None,
) -> Accelerated:
    """Accelerate `unet`, in place and without a second copy of its weights.

    `unet` is any module with the parameter names and the call of the LDM UNet:
    `forward(x: [B, C, H, W], timesteps: [B], context: [B, L, D], y: [B, A] or None)`, in float32,
    float16 or bfloat16. Compiled code is taken from the store, or made in the background while the
    UNet answers without it (`wait` waits). UNets of one `session` share code and compile jobs.
    `device` is where images are computed; by default, where the weights are. Nothing is timed
    against the UNet's own forward: that is done in the WebUI alone.

    A UNet that is accelerated already is given back as it is, or accelerated again where `config`
    differs. Raises UnsupportedArchitecture or BadWeights where the UNet cannot be accelerated,
    ValueError where `config` names no known backend.
    """
    there = accelerated(unet)
    if there is not None:
        if config is None or config == there.engine.config:
            return there
        there.remove()
    new = Accelerated(unet, config, session, device)
    new.engine.prepare()
    new.install()
    return new


def accelerated(network: nn.Module | None) -> Any:
    """Return what accelerates `network`, or None."""
    return vars(network).get(_KEY) if network is not None else None


def set_owner(network: nn.Module, owner: object) -> None:
    """Record on `network` what accelerates it."""
    put(network, _KEY, owner)


def take_owner(own: dict[str, Any], owner: object) -> None:
    """Take that record away, from the `vars` of a network."""
    take_away(own, _KEY, owner)


def is_plain(t: object) -> bool:
    """Return whether this is a tensor that computes as tensors do; a subclass may do otherwise."""
    return type(t) in (Tensor, nn.Parameter)


def why_failed(error: Exception) -> str:
    """Return in one line why a call was not computed by us, for the status."""
    if isinstance(error, AccelError):
        return str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "memory ran out in accelerated code; the model's own code computed the call"
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"accelerated code failed, and the model's own code computed the call: {first_line}"

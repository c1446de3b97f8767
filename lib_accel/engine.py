"""One UNet, accelerated: binds compiled code to somebody else's weights and keeps doing so while they change.

`prepare` starts, `take_up` installs what a background job has finished (between images), a call computes. Nothing here
waits for a compiler unless the configuration says so, and nothing here makes an image fail that would have been made
without it: code that fails is dropped with a reason and the clean UNet goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, Layer
from .backends import Choice, choose
from .config import Config
from .environment import Machine, Target, default_store, probe
from .errors import AccelError, ArtifactRejected, BadWeights, CompileFailed, StoreError
from .graphs import GraphCache
from .jobs import Code, Job, Progress
from .store import ArtifactStore
from .unet import LayerFn, UNet
from .units import UnitFn, side_input, units_of
from .weights import Weights


@dataclass
class Counters:
    compiles: int = 0  # units compiled by this engine
    binds: int = 0  # times weights were found elsewhere and taken up
    accelerated_calls: int = 0  # UNet calls that ran compiled code


@dataclass(frozen=True)
class Status:
    state: str  # "eager" | "compiling" | "ready" | "fallback"
    reason: str | None  # why no better backend serves, or what failed
    backend: str
    architecture: str
    dtype: str
    device: str
    progress: Progress | None
    artifact: dict[str, Any] | None  # {"key", "bytes"}
    counters: Counters


class CompiledLayer:
    """A layer of the clean UNet, computed by compiled code from the layer's own parameters."""

    def __init__(self, fn: UnitFn, module: nn.Module, spec: Layer):
        self._fn, self._side = fn, side_input(spec)
        self._parameters = list(module.parameters())

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        inputs = [h.contiguous(memory_format=torch.channels_last)]
        if self._side is not None:
            inputs.append((emb if self._side == "emb" else context).contiguous())
        return self._fn(inputs + self._parameters)


@dataclass
class Engine:
    """Accelerates `donor`, a UNet with the LDM parameter names, whose Parameters it shares.

    Raises UnsupportedArchitecture or BadWeights from the constructor when the donor is not one it can serve.
    """

    donor: nn.Module
    config: Config = field(default_factory=Config)
    counters: Counters = field(default_factory=Counters)
    machine: Callable[[torch.device], Machine] = probe

    def __post_init__(self) -> None:
        self.architecture = Architecture.from_module(self.donor)
        self.units = units_of(self.architecture)
        self.unet = UNet(self.architecture)
        self.weights = Weights(self.donor)
        chosen = self.config.store != default_store()
        self.store = ArtifactStore(self.config.store, self.config.store_bytes, self.config.store_readonly, chosen=chosen)
        self.job: Job | None = None
        self._code: Code = {}
        self._artifact: dict[str, Any] | None = None  # of the store, where the code came from one
        self._choice: Choice | None = None
        self._failed: dict[str, str] = {}  # backends that failed, with the reason: never tried again by this engine
        self._graphs: GraphCache | None = None
        self._bind()

    # -- getting ready

    @property
    def target(self) -> Target:
        p = next(self.donor.parameters())
        return Target(self.units, p.dtype, p.device, self.machine(p.device))

    def prepare(self) -> None:
        """Take code that is at hand, else start making it. Returns at once unless the configuration is blocking."""
        target = self.target
        while True:
            self._choice = choose(target, self.store, self.config, self._failed)
            try:
                code = self._choice.backend.ready(target, self.store)
                if code is None:
                    self.job = self._choice.backend.start(target, self.store)
                    if self.config.blocking:
                        self.job.wait()
                        self.take_up()
                    return
            except (ArtifactRejected, StoreError) as e:
                self._reject(target, e)
                continue
            self._install(code)
            return

    def take_up(self) -> bool:
        """Install what the background job has made, if it has ended; call it between images. True when something changed."""
        if self.job is None or not self.job.done:
            return False
        job, self.job = self.job, None
        self.counters.compiles += getattr(job, "compiled", 0)
        assert self._choice is not None
        try:
            self._install(job.result())
        except (CompileFailed, ArtifactRejected, StoreError) as e:
            self._failed[self._choice.backend.name] = str(e)
            self.prepare()
        return True

    def close(self) -> None:
        """Stop compiling, forget graphs and code, give the donor its memory layout back."""
        if self.job is not None:
            self.job.cancel()
            self.job = None
        self._code = {}
        self._choice = None
        self._drop_graphs()
        self.weights.set_layout(compiled=False)

    def _reject(self, target: Target, error: AccelError) -> None:
        """A damaged artifact is removed once, so that a good one can be made; if that fails too, the backend is out."""
        assert self._choice is not None
        if isinstance(error, ArtifactRejected) and not self.store.readonly and self.store.contains(target.key):
            try:
                self.store.discard(target.key, str(error))
                return
            except StoreError as e:
                error = e
        self._failed[self._choice.backend.name] = str(error)

    def _install(self, code: Code) -> None:
        self._code = code
        entry = self.store.entry(self.target.key) if code else None
        self._artifact = {"key": entry.key, "bytes": entry.bytes} if entry else None
        self._bind()

    # -- weights

    def _bind(self) -> None:
        """Share the donor's parameters as they are now."""
        if self._code:
            self.weights.set_layout(compiled=True)
        self.unet.adopt(self.weights.accept())
        self.layers: dict[str, LayerFn] = dict(self.unet.layers)
        for name, spec in self.architecture.layers():
            if spec in self._code:
                self.layers[name] = CompiledLayer(self._code[spec], self.unet.get_submodule(name), spec)
        self._drop_graphs()
        self.counters.binds += 1

    def _follow(self) -> None:
        """Notice weights that have moved. Code for another dtype or device is set aside until `prepare` finds the right one."""
        if not self.weights.moved():
            return
        before = self.unet.dtype, next(self.unet.parameters()).device
        self._bind()
        if before != (self.unet.dtype, next(self.unet.parameters()).device):
            self._code = {}
            self._bind()
            self.prepare()

    def _drop_graphs(self) -> None:
        self._graphs = None

    # -- computing

    def __call__(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        """`x: [B, in_channels, H, W]`, `timesteps: [B]`, `context: [B, L, context_dim]`, `y: [B, adm]` -> `[B, out_channels, H, W]`.

        Raises BadWeights when the donor's weights cannot be used as they are.
        """
        self._follow()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            if not self._code:
                return self._plain(x, timesteps, context, y)
            try:
                out = self._plain(x, timesteps, context, y)
            except RuntimeError as e:
                if isinstance(e, torch.cuda.OutOfMemoryError):
                    raise  # the host has its own ways to make room, and would have run out too
                self._fail(e)
                return self._plain(x, timesteps, context, y)
            self.counters.accelerated_calls += 1
            return out

    def run_block(self, name: str, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """One block (`input_blocks.3`) at compiled speed, as ControlNet drives them. dtypes follow the weights, and h's comes back."""
        self._follow()
        with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
            dtype = self.unet.dtype
            return self.unet.run_block(name, h.to(dtype), emb.to(dtype), context.to(dtype), self.layers).to(h.dtype)

    def _plain(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None) -> Tensor:
        if x.device.type != "cuda" or not self.config.graphs:
            return self.unet(x, timesteps, context, y, self.layers)
        if self._graphs is None:
            layers = self.layers
            self._graphs = GraphCache(lambda *i: self.unet(*i, layers), self.config.graph_bytes)
        return self._graphs(x, timesteps, context, y)

    def _fail(self, error: RuntimeError) -> None:
        """Compiled code failed at run time: leave it for good, say why, go on without."""
        assert self._choice is not None
        self._failed[self._choice.backend.name] = f"it failed while computing: {str(error).strip().splitlines()[0]}"
        self._code = {}
        self._bind()
        self._choice = replace(self._choice, refused=tuple(self._failed.items()))

    # -- telling

    @property
    def status(self) -> Status:
        target = self.target
        compiling = self.job is not None and not self.job.done
        backend = self._choice.backend.name if self._choice else "none"
        if compiling:
            state = "compiling"
        elif self._failed:
            state = "fallback"
        else:
            state = "ready" if self._code else "eager"
        return Status(
            state=state,
            reason=self._choice.reason if self._choice else None,
            backend=backend if self._code or compiling else "eager",
            architecture=self.architecture.name,
            dtype=str(target.dtype).removeprefix("torch."),
            device=target.machine.device_name,
            progress=self.job.progress() if self.job and compiling else None,
            artifact=self._artifact if self._code else None,
            counters=self.counters,
        )


__all__ = ["BadWeights", "CompiledLayer", "Counters", "Engine", "Status"]

"""One accelerated UNet: follows its weights, computes its calls, and does without code that fails.

Nothing here waits for a compiler unless the configuration says so, and no image fails that the
UNet's own forward would have made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..compile.jobs import CompiledUnits, Job
from ..compile.machine import Machine, probe
from ..compile.session import Session
from ..compile.target import Target
from ..compile.toolchain import NO_CUDNN
from ..compile.units import units_of
from ..config import Config
from ..errors import BadWeights
from ..model.architecture import Architecture
from ..model.layers import LayerFn
from ..model.precision import without_autocast
from ..model.unet import UNet
from .bound.binding import Binding, CompiledLayer
from .bound.compiled_unet import CompiledUNet
from .graphs.cache import GraphCache
from .graphs.memory import KeptMemory
from .provider import NO_BACKEND, Provider
from .status import Counters, Status

Inputs = tuple[Tensor, Tensor, Tensor, "Tensor | None"]  # x, timesteps, context, y


class Engine:
    """Computes the calls of `network`, a UNet with the LDM parameter names, from its own weights.

    Images are computed on `device`, by default where the weights are. Calls must come from one
    thread at a time. Raises UnsupportedArchitecture or BadWeights for networks it cannot serve.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config | None = None,
        session: Session | None = None,
        device: torch.device | None = None,
        machine: Callable[[torch.device], Machine] = probe,
    ):
        self.config, self._machine = config or Config(), machine
        self.device = device or next(network.parameters()).device
        self.architecture = Architecture.from_module(network)
        self.counters = Counters()
        self._units = units_of(self.architecture)
        session = session or Session()
        self._provider = Provider(self.config, session)
        self.clean = UNet(self.architecture)
        self.compiled = CompiledUNet(self.clean)
        self.binding = Binding(network, self.clean, dict(self.architecture.layers()), self.device)
        self.graphs: GraphCache | None = None
        if self.device.type == "cuda" and self.config.graphs:
            size = self.config.graph_bytes
            self.graphs = GraphCache(self.compiled, size, session.streams)
        self.memory = KeptMemory(self.device, self.architecture, self.graphs)
        self.memory.add(self.compiled.prompts.forget)
        self.memory.add(self._provider.give_up_memory)
        self._bound: CompiledUnits = {}
        self._bind()

    # -- getting compiled code

    @property
    def target(self) -> Target:
        """What has to be compiled for this network, as its weights are now."""
        a, machine = self.architecture, self._machine(self.device)
        return Target(self._units, self.binding.dtype, self.device, machine, a.name, a)

    @property
    def job(self) -> Job | None:
        """The job that makes this network's units, while there is one."""
        return self._provider.job

    @property
    def units(self) -> CompiledUnits:
        """The compiled units that serve; empty while there are none."""
        return self._provider.units

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that activations are computed in."""
        return self.binding.dtype

    @property
    def channels_last(self) -> bool:
        """Whether the units that serve read weights of convolutions channels-last on a GPU."""
        return self._provider.channels_last

    def prepare(self) -> None:
        """Load compiled units from the store, else start making them. Raises BadWeights."""
        if self.binding.moved():
            self._bind()
        self._provider.prepare(self.target)
        self._bind_new_units()

    def take_up(self) -> bool:
        """Begin to serve what a finished job has made. Call it between images.

        Returns whether anything changed.
        """
        if not self._provider.finished:
            return False
        try:
            self._follow()  # weights of another dtype need another job
        except BadWeights:
            return False  # the model is unloaded or half moved; the next call says so
        self._provider.collect()
        for name in ("compiles", "compile_seconds", "compile_failures"):
            setattr(self.counters, name, getattr(self._provider, name))
        self._bind_new_units()
        return True

    def close(self, keep_compiling: bool = False) -> None:
        """Restore the network's memory layout and hold none of its weights; a call binds again.

        `keep_compiling` leaves a running job to the next network of this architecture.
        """
        self._provider.close(keep_compiling)
        if self.graphs is not None:
            self.graphs.clear()
        self.compiled.release()
        self.binding.release()

    # -- following the weights

    def _bind(self) -> None:
        """Bind to the weights as they are now. Raises BadWeights."""
        if self.graphs is not None:
            self.graphs.clear(other_code=self._bound is not self._provider.units)
        self._bound = self._provider.units
        self.compiled.release()
        self.binding.bind(
            self._bound, self._provider.dtype, self.channels_last, clean_computes=True
        )
        self.compiled.bind(self.binding.compiled, self._bound, self.dtype)
        self.counters.binds = self.binding.count

    def _bind_new_units(self) -> None:
        if self._provider.units is not self._bound:
            self._bind()

    def _follow(self) -> None:
        """Bind again where weights have moved, and prepare again where they have another dtype."""
        if self.units and self.device.type == "cuda" and not torch.backends.cudnn.enabled:
            self._provider.drop(NO_CUDNN)  # somebody has switched it off since
            self._bind()
        if not self.binding.moved():
            return
        before = self.binding.dtype
        self._bind()
        if self._provider.prepared and self.binding.dtype != before:
            self.prepare()

    # -- computing

    def compute(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        replaced: Mapping[str, LayerFn] | None = None,
    ) -> Tensor:
        """Compute one call of the UNet.

        `x: [B, in_channels, H, W]`, `timesteps: [B]`, `context: [B, L, context_dim]`,
        `y: [B, adm_channels]` -> `[B, out_channels, H, W]` in x's dtype. `replaced` are layers by
        name that run instead of ours. Raises BadWeights where the weights cannot be used.
        """
        self._follow()
        self.memory.make_room_for_call(x)
        inputs = (x, timesteps, context, y)
        with torch.no_grad(), without_autocast(x.device):
            layers = {**self.clean.layers, **(replaced or {})}
            clean = functools.partial(self.clean.forward, *inputs, layers)
            out = self._guard(functools.partial(self._run, replaced, inputs), clean)
        if self.binding.compiled:
            self.counters.accelerated_calls += 1
        return out

    def compiled_layers(self) -> Mapping[str, CompiledLayer]:
        """Return the compiled layers by name, for whoever calls a UNet's layers one by one.

        Ask before every pass, because weights may move. Raises BadWeights.
        """
        self._follow()
        return self.binding.compiled

    def compute_layer(self, layer: CompiledLayer, h: Tensor, side: Tensor | None = None) -> Tensor:
        """Compute one of `compiled_layers`: `h: [B, C, H, W]` -> `[B, C', H', W']` in h's dtype.

        `side` is its `emb: [B, emb_channels]` or `context: [B, L, context_dim]`, of any dtype.
        """
        with torch.no_grad(), without_autocast(h.device):
            x, s = (t.to(layer.dtype) for t in (h, h if side is None else side))
            compiled = functools.partial(layer, x, s, s)
            return self._guard(compiled, functools.partial(layer.module, x, s, s)).to(h.dtype)

    def _run(self, replaced: Mapping[str, LayerFn] | None, inputs: Inputs) -> Tensor:
        if replaced:  # unknown code: a graph may not be able to record it
            layers = {**self.clean.layers, **self.binding.compiled, **replaced}
            return self.clean.forward(*inputs, layers)
        kept = self.compiled.keys_and_values(inputs[2])
        if self.graphs is None or inputs[0].device.type != "cuda":
            return self.compiled(*inputs, kept)
        if self.units and self._provider.backend == "aoti" and not self.target.machine.recordable:
            waits = f"torch {torch.__version__} waits inside compiled code"
            self.graphs.refuse(f"{waits}; that needs torch 2.7 or later")
        return self.graphs(*inputs, kept)

    def _guard(self, compiled: Callable[[], Tensor], clean: Callable[[], Tensor]) -> Tensor:
        """Return `compiled()`; if it fails and `clean()` works, stop using compiled code."""
        for again in (False, True):  # once more, without what is kept for speed
            try:
                return compiled()
            except RuntimeError as e:
                error = e.with_traceback(None)  # its frames hold the activations of the whole call
            out_of_memory = self.memory.ran_out(error)
            if again or not (out_of_memory and self.memory.give_up()):
                break
        if isinstance(error, torch.cuda.OutOfMemoryError):
            try:
                raise error  # the host has its own ways to free memory
            finally:
                del error  # it refers to this frame
        out = clean()
        if self.units and not (out_of_memory or self.memory.ran_out()):
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._provider.drop(f"it failed while computing: {first_line}")
            self._bind()
        return out

    # -- status

    @property
    def is_stored(self) -> bool:
        """Whether compiled code serves and the store has it: there is nothing to build."""
        return self._provider.kept_bytes is not None and not self._provider.is_superseded

    @property
    def awaited(self) -> Job | None:
        """The job without whose code the chosen backend does not serve."""
        return self.job if self._provider.is_superseded or not self.units else None

    @property
    def can_compute(self) -> bool:
        """Whether any backend serves this device; elsewhere the network's own forward must."""
        return not self._provider.prepared or self._provider.backend != NO_BACKEND

    @property
    def status(self) -> Status:
        """How things stand now. Safe to read from any thread."""
        provider, target = self._provider, self.target
        job = provider.job  # read once: another thread may clear it
        compiling = job is not None and not job.done
        if provider.units:
            state = "ready"  # also where a better backend failed; the reason names it
        elif compiling:
            state = "compiling"
        elif provider.failures or not self.can_compute:
            state = "fallback"
        else:
            state = "eager"
        chosen = provider.units or compiling or not self.can_compute
        refused = self.graphs.refused if self.graphs else None
        reasons = (provider.reason, self.compiled.left, refused)
        return Status(
            state=state,
            reason="; ".join(filter(None, reasons)) or None,
            backend=provider.backend if chosen else "eager",
            architecture=self.architecture.name,
            dtype=str(target.dtype).removeprefix("torch."),
            device=target.machine.device_name,
            progress=job.progress() if job and compiling else None,
            artifact=provider.artifact,
            counters=self.counters,
        )

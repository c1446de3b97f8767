"""One accelerated UNet: follows its weights, and computes its calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..compile.machine import Machine, probe
from ..compile.session import Session
from ..compile.target import Target
from ..compile.units import units_of, upsamplings_among
from ..config import Config
from ..model.architecture import Architecture
from ..model.layers import LayerFn
from ..model.precision import without_autocast
from ..model.unet import Control, UNet
from .bound.binding import CompiledLayer
from .bound.compiled_unet import CompiledUNet
from .bound.network import BoundNetwork
from .graphs.cache import GraphCache
from .graphs.memory import KeptMemory
from .status import Status

Inputs = tuple[Tensor, Tensor, Tensor, "Tensor | None"]  # x, timesteps, context, y


class Engine(BoundNetwork):
    """Computes the calls of `network`, a UNet with the LDM parameter names, from its own weights.

    Images are computed on `device`, by default where the weights are, and in `dtype`, by default
    that of the weights, or float32 on a CPU that is faster in it. Calls must come from one thread
    at a time. Raises UnsupportedArchitecture or BadWeights for networks it cannot serve.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config | None = None,
        session: Session | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        machine: Callable[[torch.device], Machine] = probe,
    ):
        self.architecture = Architecture.from_module(network)
        self._units = units_of(self.architecture)
        self._upsamplings = upsamplings_among(spec for _, spec in self.architecture.layers())
        self.clean = UNet(self.architecture)
        session, specs = session or Session(), dict(self.architecture.layers())
        super().__init__(network, self.clean, specs, config, session, device, dtype, machine)
        self.compiled = CompiledUNet(self.clean)
        self.graphs: GraphCache | None = None
        if self.device.type == "cuda" and self.config.graphs:
            size = self.config.graph_bytes
            self.graphs = GraphCache(self.compiled, size, session.streams)
        self.memory = KeptMemory(self.device, self.architecture, self.graphs)
        self.memory.add(self.compiled.give_up)
        self.memory.add(self.compiled.prompts.forget)
        self.memory.add(self._provider.give_up_memory)
        self._code_settled = True
        self._bind()

    @property
    def target(self) -> Target:
        """What has to be compiled for this network, as its weights are now."""
        a, machine = self.architecture, self._machine(self.device)
        given = self._units, self.binding.dtype, self.device, machine, a.name, a
        return Target(*given, self._upsamplings)

    def close(self, keep_compiling: bool = False) -> None:
        """Restore the network's memory layout and hold none of its weights; a call binds again.

        `keep_compiling` leaves a running job to the next network of this architecture.
        """
        if self.graphs is not None:
            self.graphs.clear()
        self.compiled.release()
        super().close(keep_compiling)

    def _bind(self) -> None:
        """Bind to the weights as they are now. Raises BadWeights."""
        if self.graphs is not None:
            self.graphs.clear(other_code=self._bound is not self._provider.units)
        self.compiled.release()
        super()._bind()
        self.compiled.bind(self.binding.compiled, self._bound, self.dtype)

    # -- computing

    def compute(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        replaced: Mapping[str, LayerFn] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        """Compute one call of the UNet.

        `x: [B, in_channels, H, W]`, `timesteps: [B]`, `context: [B, L, context_dim]`,
        `y: [B, adm_channels]` -> `[B, out_channels, H, W]` in x's dtype. `replaced` are layers by
        name that run instead of ours, `control` what a ControlNet adds.
        Raises BadWeights where the weights cannot be used.
        """
        self._follow()
        self.memory.make_room_for_call(x)
        inputs = (x, timesteps, context, y)
        with torch.no_grad(), without_autocast(x.device):
            layers = {**self.clean.layers, **(replaced or {})}
            residuals = self.clean.arranged(control) if control else ()
            clean = functools.partial(self.clean.forward, *inputs, layers, residuals)
            out = self._guard(functools.partial(self._run, replaced, inputs, residuals), clean)
        if self.binding.compiled:
            self.counters.accelerated_calls += 1
        else:
            self.counters.eager_calls += 1
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

    def _run(
        self,
        replaced: Mapping[str, LayerFn] | None,
        inputs: Inputs,
        residuals: Sequence[Tensor | None],
    ) -> Tensor:
        if replaced:  # unknown code: a graph may not be able to record it
            layers = {**self.clean.layers, **self.binding.compiled, **replaced}
            return self.clean.forward(*inputs, layers, residuals)
        kept = self.compiled.keys_and_values(inputs[2])
        self._code_settled = self.compiled.settled(*inputs)
        if self.graphs is None or inputs[0].device.type != "cuda" or not self._code_settled:
            return self.compiled(*inputs, kept, *residuals)
        if self.units and self._provider.backend == "aoti" and not self.target.machine.recordable:
            waits = f"torch {torch.__version__} waits inside compiled code"
            self.graphs.refuse(f"{waits}; that needs torch 2.7 or later")
        return self.graphs(*inputs, kept, *residuals)

    # -- status

    @property
    def settled(self) -> bool:
        """Whether the last call ran as the next ones of its size will."""
        return self._code_settled and (self.graphs is None or self.graphs.settled)

    @property
    def status(self) -> Status:
        """How things stand now. Safe to read from any thread."""
        return replace(super().status, kept_bytes=self.compiled.kept_bytes)

    def _reasons(self) -> tuple[str | None, ...]:
        return self.compiled.left, self.graphs.refused if self.graphs else None

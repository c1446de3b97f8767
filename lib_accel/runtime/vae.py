"""One half of a VAE, accelerated: follows its weights, and computes its calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..compile.machine import Machine, probe
from ..compile.session import Session
from ..compile.target import Target
from ..config import Config
from ..model.layers import LayerFn
from ..model.precision import without_autocast
from ..model.vae.network import Half, Network
from .bound.network import BoundNetwork
from .graphs.memory import KeptMemory


class VaeEngine(BoundNetwork):
    """Computes the calls of `network`, a `Decoder` or `Encoder` with the LDM parameter names.

    Raises UnsupportedArchitecture or BadWeights for networks that it cannot serve.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config | None = None,
        session: Session | None = None,
        device: torch.device | None = None,
        machine: Callable[[torch.device], Machine] = probe,
    ):
        self.half = Half.from_module(network)
        self.clean, specs = Network(self.half), dict(self.half.layers)
        super().__init__(network, self.clean, specs, config, session, device, None, machine)
        self.memory = KeptMemory(self.device)
        self.memory.add(self._provider.give_up_memory)
        self._bind()

    @property
    def target(self) -> Target:
        """What has to be compiled for this network, as its weights are now."""
        layers = dict(self.half.layers).values()
        where = self.binding.dtype, self.device, self._machine(self.device)
        return Target.of_layers(self.half.name, layers, *where)

    def compute(self, x: Tensor, replaced: Mapping[str, LayerFn] | None = None) -> Tensor:
        """Compute a latent or an image, `x: [B, C, H, W]`; see `Network.run`.

        `replaced` are layers by name that run instead of ours. Raises BadWeights where the weights
        cannot be used.
        """
        self._follow()
        with torch.no_grad(), without_autocast(x.device):
            clean = {**self.clean.layers, **(replaced or {})}
            compiled = {**clean, **self.binding.compiled, **(replaced or {})}
            run = functools.partial(self.clean.run, x)
            out = self._guard(functools.partial(run, compiled), functools.partial(run, clean))
        if self.binding.compiled:
            self.counters.accelerated_calls += 1
        return out

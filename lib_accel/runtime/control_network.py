"""Control networks: other networks that are built of a UNet's layers and run on its compiled units.

A ControlNet is the encoder of a UNet with weights of its own. Compiled units take weights as
inputs, so those of the UNet compute it as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import UnsupportedArchitecture
from ..model.layers import LayerFn, build_layer
from ..model.parts.modules import set_parameter
from ..model.reading import layers_in
from ..model.specs import Spec
from ..model.unet import Parameters
from .bound.binding import Binding, CompiledLayer
from .engine import Engine


class ControlLayers:
    """The residual blocks and transformers of a control network, built again without weights."""

    def __init__(self, specs: Mapping[str, Spec]):
        self._specs = specs
        self.extra_biases: set[str] = set()
        self.compute_dtype: torch.dtype | None = None
        self.release()

    def adopt(self, parameters: Parameters) -> None:
        """Share these Parameter objects, by the network's names for them."""
        for name, layer in self._modules.items():
            for own, _ in list(layer.named_parameters(remove_duplicate=False)):
                set_parameter(layer, own, parameters[f"{name}.{own}"])

    def release(self) -> None:
        """Hold no parameter of anybody."""
        self._modules = {name: build_layer(spec) for name, spec in self._specs.items()}
        self.layers: Mapping[str, LayerFn] = self._modules


class ControlNetwork:
    """A control network on the compiled units of `engine`.

    Raises UnsupportedArchitecture when `network` holds no layer of a UNet.
    """

    def __init__(self, network: nn.Module, engine: Engine):
        self.specs = layers_in(network)
        if not self.specs:
            kind = type(network).__name__
            raise UnsupportedArchitecture(
                f"a {kind} holds no residual block and no transformer of a UNet"
            )
        self._engine = engine
        layers, dtype = ControlLayers(self.specs), engine.wanted_dtype
        self._binding = Binding(network, layers, self.specs, engine.device, dtype)
        self._bound: object = None

    def compiled_layers(self) -> Mapping[str, CompiledLayer]:
        """Return by name the layers that the engine has compiled units for.

        There are none while the weights lie elsewhere, or in another dtype than the UNet's.
        Raises BadWeights.
        """
        if self._engine.units is not self._bound or self._binding.moved():
            self._bound = self._engine.units
            engine = self._engine
            self._binding.bind(engine.units, engine.dtype, engine.channels_last)
        same_dtype = self._binding.weight_dtype == self._engine.binding.weight_dtype
        return self._binding.compiled if same_dtype else {}

    def close(self) -> None:
        """Give the network its memory layout back and hold none of its weights."""
        self._bound = None
        self._binding.release()

"""Another network built of a UNet's layers (a ControlNet is its encoder): run by the UNet's compiled code with weights of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from torch import nn

from ..compile.jobs import Code
from ..errors import BadWeights, UnsupportedArchitecture
from ..model.architecture import layers_in
from ..model.unet import build_layer, set_parameter
from .engine import CompiledLayer, Engine
from .weights import Weights


class Companion:
    """Raises UnsupportedArchitecture when `donor` holds no layer of a UNet."""

    def __init__(self, donor: nn.Module):
        self.specs = layers_in(donor)
        if not self.specs:
            raise UnsupportedArchitecture(
                f"a {type(donor).__name__} holds no residual block and no transformer of a UNet"
            )
        self._weights = Weights(donor)
        self._code: Code | None = None
        self._layers: dict[str, CompiledLayer] = {}

    def compiled_layers(self, engine: Engine) -> Mapping[str, CompiledLayer]:
        """By name, those for which `engine` has code; none while the weights lie elsewhere or are of another dtype than the UNet's."""
        if engine.code is not self._code or self._weights.moved():
            self._code, self._layers = engine.code, {}
            with contextlib.suppress(
                BadWeights
            ):  # mixed or unloaded: its own code computes it, or says what is wrong
                self._bind(engine)
        return self._layers

    def _bind(self, engine: Engine) -> None:
        named = self._weights.accept()
        first = next(iter(named.values()))
        if (
            not engine.code
            or first.device != engine.device
            or first.dtype != next(engine.donor.parameters()).dtype
        ):
            return
        self._weights.set_layout(compiled=True)
        self._weights.accept()
        for name, spec in self.specs.items():
            if spec in engine.code:
                layer = build_layer(spec)
                for own, _ in list(layer.named_parameters()):
                    set_parameter(layer, own, named[f"{name}.{own}"])
                self._layers[name] = CompiledLayer(
                    engine.code[spec], layer, spec, engine.unet.dtype
                )

    def close(self) -> None:
        self._layers, self._code = {}, None
        self._weights.forget()
        if not any(p.is_meta for p in self._weights.parameters()):
            self._weights.set_layout(compiled=False)

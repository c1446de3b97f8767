"""A UNet whose layers are called one by one, with or without control networks beside it.

The ControlNet extension (sd-webui-controlnet) drives the WebUI's UNet in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...model.parts.modules import Conv2d, set_parameter
from ...model.random_weights import random_weights
from ...model.specs import SpatialTransformer
from ...model.unet import UNet, join
from ...runtime.bound.binding import CompiledLayer
from ...runtime.control_network import ControlNetwork
from ...runtime.engine import Engine
from .measure import Call, Inputs

RunLayer = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""Calls the layer of that name: `(name, h, emb, context) -> h`."""


class Control(nn.Module):
    """A ControlNet of random weights: a UNet's encoder, and a 1x1 convolution after each block.

    Zhang et al. 2023 ("Adding Conditional Control to Text-to-Image Diffusion Models"), figure 3.
    """

    def __init__(self, engine: Engine):
        super().__init__()
        a, like = engine.architecture, next(engine.clean.parameters())
        parameters = {
            name: nn.Parameter(p.to(like.device), requires_grad=False)
            for name, p in random_weights(a, like.dtype, 1).items()
        }
        unet = UNet(a).adopt(parameters)
        self.input_blocks, self.middle_block = unet.input_blocks, unet.middle_block
        unet.output_blocks = nn.ModuleList()
        self._unet = (unet,)  # in a tuple: only its blocks are sub-modules of this one
        self.zero = nn.ModuleList(_point(_width(block[-1]), like) for block in a.input_blocks)
        self.zero.append(_point(_width(a.input_blocks[-1][-1]), like))
        self._engine, self._control = engine, ControlNetwork(self, engine)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None
    ) -> list[Tensor]:
        """Return what to add to each skip tensor and, last, to the middle block's output."""
        compiled = self._control.compiled_layers()
        names = {name for name, _ in self._engine.architecture.layers()}
        (unet,) = self._unet
        run = runner(self._engine, unet, {name: compiled[name] for name in compiled.keys() & names})
        emb = unet.embed(timesteps, y)
        h, out = x.contiguous(memory_format=torch.channels_last), []
        for i, zero in enumerate(list(self.zero)[:-1]):
            layers = len(self.input_blocks[i])  # type: ignore[arg-type]
            h = _block(run, f"input_blocks.{i}", layers, h, emb, context)
            out.append(zero(h))
        h = _block(run, "middle_block", len(self.middle_block), h, emb, context)
        return [*out, self.zero[-1](h)]


def _width(layer: object) -> int:
    """The channels that a layer returns."""
    return layer.channels if isinstance(layer, SpatialTransformer) else layer.out_channels  # type: ignore[attr-defined]


def _point(width: int, like: Tensor) -> nn.Module:
    """A 1x1 convolution of small random weights, in the dtype and on the device of `like`."""
    conv = Conv2d(width, width, kernel=1)
    for name, p in list(conv.named_parameters()):
        value = 0.05 * torch.randn(p.shape) * (width**-0.5 if p.ndim > 1 else 0)
        parameter = nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)
        set_parameter(conv, name, parameter)
    return conv


def runner(engine: Engine, unet: UNet, compiled: Mapping[str, CompiledLayer]) -> RunLayer:
    """Return what calls a layer by its name: compiled where it is in `compiled`, else `unet`'s."""

    def run(name: str, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        layer = compiled.get(name)
        if layer is None:
            return unet.layers[name](h, emb, context)
        return engine.compute_layer(layer, h, emb if layer.takes_emb else context)

    return run


def _block(
    run: RunLayer, name: str, layers: int, h: Tensor, emb: Tensor, context: Tensor
) -> Tensor:
    for i in range(layers):
        h = run(f"{name}.{i}", h, emb, context)
    return h


def driven(engine: Engine, inputs: Inputs, controls: int) -> Call:
    """Return a call of the UNet layer by layer, with that many control networks beside it."""
    networks = [Control(engine) for _ in range(controls)]
    unet, a = engine.clean, engine.architecture

    def call() -> Tensor:
        x, timesteps, context, y = inputs
        added = [network(x, timesteps, context, y) for network in networks]
        run = runner(engine, unet, engine.compiled_layers())
        emb = unet.embed(timesteps, y)
        h, skips = x.contiguous(memory_format=torch.channels_last), []
        for i, block in enumerate(a.input_blocks):
            h = _block(run, f"input_blocks.{i}", len(block), h, emb, context)
            skips.append(h)
        h = _block(run, "middle_block", len(a.middle_block), h, emb, context)
        for control in added:
            h = h + control[-1]
            skips = [skip + more for skip, more in zip(skips, control, strict=False)]
        for i, block in enumerate(a.output_blocks):
            h = _block(run, f"output_blocks.{i}", len(block), join(h, skips.pop()), emb, context)
        return run("out", h, emb, context)

    return call

"""A UNet driven block by block with a control network beside it, as sd-webui-controlnet does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...model.layers import Conv2d, set_parameter
from ...model.specs import SpatialTransformer
from ...model.unet import UNet, join
from ...runtime.binding import CompiledLayer
from ...runtime.control import ControlNetwork
from ...runtime.engine import Engine
from ..checkpoint import random_weights
from .measure import Call

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]
Run = Callable[[str, Tensor, Tensor, Tensor], Tensor]  # a layer by its name, on h, emb, context


class Control(nn.Module):
    """A UNet's encoder with random weights, and a 1x1 convolution after each of its blocks (Zhang et al. 2023, figure 3)."""

    def __init__(self, engine: Engine):
        super().__init__()
        a, like = engine.architecture, next(engine.network.parameters())
        weights = random_weights(a, like.dtype, 1)
        unet = UNet(a).adopt(
            {
                name: nn.Parameter(p.to(like.device), requires_grad=False)
                for name, p in weights.items()
            }
        )
        self.input_blocks, self.middle_block = unet.input_blocks, unet.middle_block
        unet.output_blocks = nn.ModuleList()
        self._unet = (unet,)  # no part of ours: its blocks are
        last = [block[-1] for block in a.input_blocks]
        widths = [
            layer.channels if isinstance(layer, SpatialTransformer) else layer.out_channels
            for layer in last
        ]
        self.zero = nn.ModuleList(_point(width, like) for width in [*widths, widths[-1]])
        self._engine, self._control = engine, ControlNetwork(self, engine)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None
    ) -> list[Tensor]:
        """-> what to add to the middle block's output (last) and to each skip."""
        compiled = self._control.compiled_layers()
        names = {name for name, _ in self._engine.architecture.layers()}
        unet = self._unet[0]
        run = runner(self._engine, unet, {name: compiled[name] for name in compiled.keys() & names})
        emb = unet.embed(timesteps, y)
        h, out = x.contiguous(memory_format=torch.channels_last), []
        for i in range(len(self.input_blocks)):
            h = _block(run, f"input_blocks.{i}", len(self.input_blocks[i]), h, emb, context)  # type: ignore[arg-type]
            out.append(self.zero[i](h))
        h = _block(run, "middle_block", len(self.middle_block), h, emb, context)
        return [*out, self.zero[-1](h)]


def _point(width: int, like: Tensor) -> nn.Module:
    conv = Conv2d(width, width, kernel=1)
    for name, p in list(conv.named_parameters()):
        value = 0.05 * torch.randn(p.shape) * (width**-0.5 if p.ndim > 1 else 0)
        set_parameter(
            conv, name, nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)
        )
    return conv


def runner(engine: Engine, unet: UNet, compiled: dict[str, CompiledLayer]) -> Run:
    """Compiled layers one at a time, as others call them; the rest as torch does it."""

    def run(name: str, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        layer = compiled.get(name)
        return (
            unet.layers[name](h, emb, context)
            if layer is None
            else engine.compute_layer(layer, h, emb if layer.takes_emb else context)
        )

    return run


def _block(run: Run, name: str, layers: int, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    for i in range(layers):
        h = run(f"{name}.{i}", h, emb, context)
    return h


def driven(engine: Engine, inputs: Inputs, controls: int) -> Call:
    """A call of the UNet block by block, with that many control networks."""
    networks = [Control(engine) for _ in range(controls)]
    unet, a = engine.clean, engine.architecture

    def call() -> Tensor:
        x, timesteps, context, y = inputs
        added = [network(x, timesteps, context, y) for network in networks]
        run = runner(engine, unet, dict(engine.compiled_layers()))
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

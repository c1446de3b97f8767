"""Another extension that drives the UNet: like sd-webui-controlnet, it calls the blocks itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Unit:
    """What a user has set for one control model."""

    control_model: nn.Module
    weight: float = 1.0


class ControlNet(nn.Module):
    """The encoder of a UNet; each of its blocks returns a tensor to add to the UNet's."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.input_blocks, self.middle_block = encoder.input_blocks, encoder.middle_block

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> list[Tensor]:
        h, out = x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            out.append(h * 0.1)
        return [*out, self.middle_block(h, emb, context) * 0.1]


def drive(unet: Any, units: Sequence[Unit] = ()) -> Callable[[], None]:
    """Put a forward on the UNet that calls its blocks. Returns a function that removes it."""
    code = sys.modules[type(unet).__module__]

    def forward(self: Any, x: Tensor, timesteps: Tensor, context: Tensor, **kwargs: Any) -> Tensor:
        emb = self.time_embed(code.timestep_embedding(timesteps, self.model_channels))
        more: list[Tensor] | None = None
        for unit in units:
            answer = [t * unit.weight for t in unit.control_model(x, emb, context)]
            more = answer if more is None else [a + b for a, b in zip(more, answer, strict=True)]
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        h = h if more is None else h + more.pop()
        for block in self.output_blocks:
            skip = skips.pop() if more is None else skips.pop() + more.pop()
            h = block(code.th.cat([h, skip], dim=1), emb, context)
        return self.out(h)

    unet._original_forward = unet.forward
    unet.forward = forward.__get__(unet, type(unet))

    def leave() -> None:
        unet.forward = unet._original_forward
        del unet._original_forward

    return leave

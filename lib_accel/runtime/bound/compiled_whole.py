"""A UNet that compiled code computes at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ...compile.jobs import WholeFn
from ...model.unet import UNet
from .binding import UnitWeights


class CompiledWhole:
    """A UNet that is compiled as a whole, and its weights."""

    def __init__(self, fn: WholeFn, unet: UNet, dtype: torch.dtype):
        self.fn, self._dtype = fn, dtype
        # a weight that stands in two places counts twice
        named = unet.named_parameters(remove_duplicate=False)
        self._weights = UnitWeights((weight for _, weight in named), dtype)
        self._takes_y = unet.architecture.adm_channels is not None

    def __call__(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None
    ) -> Tensor | str:
        """Compute a call as `UNet.forward` does, or return why that is left to the layers."""
        given = [x.to(self._dtype), timesteps.float(), context.to(self._dtype)]
        if self._takes_y:
            if y is None:
                return "y is missing"
            given.append(y.to(self._dtype))
        if any(t.device != self._weights.device for t in given):
            return f"the inputs are not on {self._weights.device}"
        if why := self.fn.why_not(given):
            return why
        return self.fn([*map(Tensor.contiguous, given), *self._weights()]).to(x.dtype)

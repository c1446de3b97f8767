"""Linear layers, convolutions and norms that own no weights, and what handles their parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..specs import NORM_GROUPS
from . import cpu_operators
from .group_norm import LARGE, channels_last_norm, fused_group_norm


def set_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Make this very object, not a copy, the parameter of that (dotted) name."""
    home, _, own = name.rpartition(".")
    setattr(module.get_submodule(home), own, parameter)


def empty_parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Return a parameter without storage (on the meta device), to be replaced by a real one."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def like(weight: Tensor, x: Tensor) -> Tensor:
    """Return the weight in the dtype of `x`.

    Where `x` is wider than the weights, one layer's weights at a time exist in the wide dtype.
    """
    return weight if weight.dtype == x.dtype else weight.to(x.dtype)


class Linear(nn.Module):
    """Linear layer: `x: [..., inputs] -> [..., outputs]`.

    With `conv` the weight has the shape of a 1x1 convolution, [outputs, inputs, 1, 1].
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, conv: bool = False):
        super().__init__()
        self.weight = empty_parameter(outputs, inputs, *([1, 1] if conv else []))
        self.bias = empty_parameter(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else like(self.bias, x)
        return F.linear(x, like(self.weight, x).flatten(1), bias)


class Conv2d(nn.Module):
    """Zero-padded convolution: `x: [B, inputs, H, W] -> [B, outputs, H/stride, W/stride]`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
    ):
        super().__init__()
        cpu_operators.register()
        self.weight = empty_parameter(outputs, inputs, kernel, kernel)
        self.bias = empty_parameter(outputs)
        self.stride = stride
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """Ignores `emb` and `context`, which every layer of a block is given."""
        weight, bias = like(self.weight, x), like(self.bias, x)
        if cpu_operators.applies(x):
            return cpu_operators.conv2d(x, weight, bias, self.stride, self.padding)
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def of_doubled(self, x: Tensor) -> Tensor:
        """Convolve `x: [B, inputs, H, W]` in twice its height and width (nearest), by a 3x3 kernel.

        Returns `[B, outputs, 2H, 2W]`.
        """
        if cpu_operators.doubles_faster(x, self.weight):
            weight, bias = like(self.weight, x), like(self.bias, x)
            return cpu_operators.conv2d_of_doubled(x, weight, bias)
        return self(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def of_parts(self, parts: list[Tensor]) -> Tensor:
        """Convolve, by a 1x1 kernel, the concatenation of `parts` along the channels.

        Each is multiplied by its columns of the weight, so that nothing need be concatenated.
        """
        weight, bias = like(self.weight, parts[0]).flatten(1), like(self.bias, parts[0])
        columns = weight.split([part.shape[1] for part in parts], dim=1)
        products = [F.linear(t.permute(0, 2, 3, 1), w) for t, w in zip(parts, columns, strict=True)]
        return (sum(products[1:], products[0]) + bias).permute(0, 3, 1, 2)


class GroupNorm(nn.Module):
    """Group normalisation with 32 groups (Wu and He 2018): `[B, C, H, W] -> [B, C, H, W]`.

    `eps` is 1e-5 in residual blocks and the output layer, 1e-6 in transformers, as in the LDM code.
    `in_unit`: a compiler traces it, or compares with it what it has made. With `fused_for` it is
    written out for a compiler that fuses elementwise operations, and for images of about this
    height.
    """

    in_unit = False

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = empty_parameter(channels), empty_parameter(channels)
        self.eps = eps
        self.fused_for = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_for:
            return self.tokens(x).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        weight, bias = like(self.weight, x), like(self.bias, x)
        torchs = self.in_unit or x.device.type != "cuda" or torch.is_grad_enabled()
        if not (torchs or x.is_contiguous()):
            return channels_last_norm(x, weight, bias, self.eps)
        return F.group_norm(x, NORM_GROUPS, weight, bias, self.eps)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the result as `[B, H*W, C]`: a view where it is channels-last, else a copy."""
        if self.fused_for:
            weight, bias = like(self.weight, x), like(self.bias, x)
            by_rows = self.fused_for**2 * x.shape[1] // NORM_GROUPS > LARGE
            return fused_group_norm(x, weight, bias, self.eps, by_rows)
        return self.forward(x).permute(0, 2, 3, 1).flatten(1, 2)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels (Ba et al. 2016): `[B, N, C] -> [B, N, C]`."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = empty_parameter(channels), empty_parameter(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), like(self.weight, x), like(self.bias, x), 1e-5)

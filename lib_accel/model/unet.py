"""A clean UNet with the LDM parameter names that owns no weights.

It is built without storage from an `Architecture` and takes the very Parameter objects of another UNet (`adopt`), so there
is one copy of the weights and an in-place change or a move to another device is seen here at once. Its leaf layers are
its own: the WebUI patches the forwards of torch's classes, and none of that may reach code that is to be compiled.

Layout: activations are channels-last between blocks, as the fast convolutions of every device want them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadWeights
from . import architecture as arch
from . import cpu_operators

Parameters = Mapping[str, nn.Parameter]


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


def _like(weight: Tensor, x: Tensor) -> Tensor:
    """The weight in the precision of the activations, which may be wider: then one layer at a time is widened, for one call."""
    return weight if weight.dtype == x.dtype else weight.to(x.dtype)


class Linear(nn.Module):
    """`x: [..., inputs] -> [..., outputs]`; a weight of [outputs, inputs, 1, 1] (a 1x1 convolution's) does the same."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, conv: bool = False):
        super().__init__()
        self.weight = _empty(outputs, inputs, *([1, 1] if conv else []))
        self.bias = _empty(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else _like(self.bias, x)
        return F.linear(x, _like(self.weight, x).flatten(1), bias)


class Conv2d(nn.Module):
    """`x: [B, inputs, H, W] -> [B, outputs, H/stride, W/stride]`, zero padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        self.weight = _empty(outputs, inputs, kernel, kernel)
        self.bias = _empty(outputs)
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """Ignores `emb` and `context`, which every layer of a block is given."""
        if cpu_operators.applies(x):
            return cpu_operators.conv2d(
                x, _like(self.weight, x), _like(self.bias, x), self.stride, self.padding
            )
        return F.conv2d(x, _like(self.weight, x), _like(self.bias, x), self.stride, self.padding)


class GroupNorm(nn.Module):
    """32 groups. `eps` is 1e-5 in residual blocks and 1e-6 in transformers, as in the LDM code."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = _empty(channels), _empty(channels), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(
            x, arch.NORM_GROUPS, _like(self.weight, x), _like(self.bias, x), self.eps
        )


class LayerNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = _empty(channels), _empty(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), _like(self.weight, x), _like(self.bias, x), 1e-5)


class ResBlock(nn.Module):
    def __init__(self, spec: arch.ResBlock):
        super().__init__()
        c, o = spec.in_channels, spec.out_channels
        # the numbers are those of the checkpoint's names; activations and dropout fill the gaps
        self.in_layers = nn.ModuleDict({"0": GroupNorm(c), "2": Conv2d(c, o)})
        self.emb_layers = nn.ModuleDict({"1": Linear(spec.emb_channels, o)})
        self.out_layers = nn.ModuleDict({"0": GroupNorm(o), "3": Conv2d(o, o)})
        self.skip_connection = Conv2d(c, o, kernel=1) if c != o else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        h = self.in_layers["2"](F.silu(self.in_layers["0"](x)))
        h = h + self.emb_layers["1"](F.silu(emb))[:, :, None, None]
        h = self.out_layers["3"](F.silu(self.out_layers["0"](h)))
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """`x: [B, N, C]` attends to `context: [B, L, context_dim]`."""

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim, channels, bias=False)
        self.to_v = Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleDict({"0": Linear(channels, channels)})

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, C/heads]
        return self.to_out["0"](out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.ModuleDict({"0": GEGLU(channels), "2": Linear(4 * channels, channels)})

    def forward(self, x: Tensor) -> Tensor:
        if cpu_operators.applies(x):
            return cpu_operators.feed_forward(
                x, *(p.to(x.dtype) for p in self.parameters())
            )  # in name order: in, its bias, out, its bias
        return self.net["2"](self.net["0"](x))


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1 = Attention(channels, channels, heads)
        self.attn2 = Attention(channels, context_dim, heads)
        self.ff = FeedForward(channels)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        n = self.norm1(x)
        x = self.attn1(n, n) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, spec: arch.SpatialTransformer):
        super().__init__()
        c = spec.channels
        self.norm = GroupNorm(c, eps=1e-6)
        self.proj_in = Linear(c, c, conv=not spec.linear)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(c, spec.context_dim, spec.heads) for _ in range(spec.depth)
        )
        self.proj_out = Linear(c, c, conv=not spec.linear)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        t = (
            self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        )  # [B, H*W, C]: a view of channels-last memory
        t = self.proj_in(t)
        for block in self.transformer_blocks:
            t = block(t, context)
        t = self.proj_out(t)
        return t.unflatten(1, (height, width)).permute(0, 3, 1, 2) + x


class Downsample(nn.Module):
    def __init__(self, spec: arch.Downsample):
        super().__init__()
        self.op = Conv2d(spec.in_channels, spec.out_channels, stride=2)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, spec: arch.Upsample):
        super().__init__()
        self.conv = Conv2d(spec.in_channels, spec.out_channels)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Output(nn.ModuleDict):
    def __init__(self, spec: arch.Output):
        super().__init__(
            {"0": GroupNorm(spec.in_channels), "2": Conv2d(spec.in_channels, spec.out_channels)}
        )

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self["2"](F.silu(self["0"](x)))


_LAYERS: dict[type, Callable[..., nn.Module]] = {
    arch.Conv: lambda spec: Conv2d(spec.in_channels, spec.out_channels),
    arch.Downsample: Downsample,
    arch.Upsample: Upsample,
    arch.ResBlock: ResBlock,
    arch.SpatialTransformer: SpatialTransformer,
    arch.Output: Output,
}


def build_layer(spec: arch.Layer) -> nn.Module:
    """The module of one layer, without storage, called as `layer(h, emb, context)`.

    It maps `h: [B, C, H, W]`, `emb: [B, emb_channels]`, `context: [B, L, context_dim]` to `[B, C', H', W']`. Its parameter
    names are those of the checkpoint after the layer's own name.
    """
    return _LAYERS[type(spec)](spec)


def set_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Make this very object the parameter of that (dotted) name."""
    home, _, own = name.rpartition(".")
    setattr(module.get_submodule(home), own, parameter)


LayerFn = Callable[[Tensor, Tensor, Tensor], Tensor]


class UNet(nn.Module):
    """`x: [B, in_channels, H, W]` latents, `timesteps: [B]`, `context: [B, L, context_dim]`, `y: [B, adm_channels]`.

    The ControlNet extension drives a UNet block by block, others patch single layers; so the unit of everything here is the
    layer, and both ways in, whole and by block, run the same ones (`layers`, by the checkpoint's names).
    """

    def __init__(self, architecture: arch.Architecture):
        super().__init__()
        self.architecture = a = architecture
        self.compute_dtype: torch.dtype | None = None
        emb = a.emb_channels
        self.time_embed = nn.ModuleDict({"0": Linear(a.model_channels, emb), "2": Linear(emb, emb)})
        if a.adm_channels is not None:
            self.label_emb = nn.ModuleList(
                [nn.ModuleDict({"0": Linear(a.adm_channels, emb), "2": Linear(emb, emb)})]
            )
        self.input_blocks = nn.ModuleList(_build_block(b) for b in a.input_blocks)
        self.middle_block = _build_block(a.middle_block)
        self.output_blocks = nn.ModuleList(_build_block(b) for b in a.output_blocks)
        self.out = Output(a.output)
        self.layers: dict[str, LayerFn] = {name: self.get_submodule(name) for name, _ in a.layers()}
        self._shapes = {
            name: p.shape for name, p in self.named_parameters()
        }  # what adopted ones become later does not count
        self.extra_biases: set[str] = (
            set()
        )  # parameters that this architecture does not have, and that were adopted all the same

    def adopt(self, parameters: Parameters) -> UNet:
        """Take these Parameter objects as our own: no copy, and whatever happens to them happens here.

        A linear layer may have been given a bias (some LoRA types do that); it is in `extra_biases` then.
        Raises BadWeights where a name is missing or unknown, or a shape differs.
        """
        extra = parameters.keys() - self._shapes.keys()
        if unknown := sorted(
            name for name in extra if not self._may_be_given(name, parameters[name].shape)
        ):
            raise BadWeights(
                f"{unknown[0]}: this UNet has no such parameter; expected those of {self.architecture.name} alone"
            )
        for name in self.extra_biases - extra:
            set_parameter(self, name, None)
        for name in extra:
            set_parameter(self, name, parameters[name])
        self.extra_biases = extra
        for name, shape in self._shapes.items():
            theirs = parameters.get(name)
            if theirs is None or theirs.shape != shape:
                got = "nothing" if theirs is None else f"the shape {list(theirs.shape)}"
                raise BadWeights(f"{name}: got {got}, expected the shape {list(shape)}")
            set_parameter(self, name, theirs)
        return self

    def release(self) -> None:
        """Hold no adopted parameter: every one becomes a fresh one without storage."""
        for name in self.extra_biases:
            set_parameter(self, name, None)
        self.extra_biases = set()
        for name, shape in self._shapes.items():
            set_parameter(self, name, _empty(*shape))

    def _may_be_given(self, name: str, shape: torch.Size) -> bool:
        home, _, own = name.rpartition(".")
        weight = self._shapes.get(f"{home}.weight")
        return (
            own == "bias"
            and weight is not None
            and isinstance(self.get_submodule(home), Linear)
            and shape == weight[:1]
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision of activations: that of the weights, unless a wider one was asked for."""
        return self.compute_dtype or next(self.parameters()).dtype

    def embed(self, timesteps: Tensor, y: Tensor | None) -> Tensor:
        """-> `emb: [B, emb_channels]`. The sinusoids are computed in float32, as the WebUI does at every precision."""
        t = timestep_embedding(timesteps, self.architecture.model_channels).to(self.dtype)
        emb = self.time_embed["2"](F.silu(self.time_embed["0"](t)))
        if self.architecture.adm_channels is not None:
            if y is None:
                raise ValueError(
                    f"this UNet needs y: [B, {self.architecture.adm_channels}]; got none"
                )
            label = self.get_submodule("label_emb.0")
            emb = emb + label.get_submodule("2")(F.silu(label.get_submodule("0")(y.to(self.dtype))))
        return emb

    def run_block(
        self,
        name: str,
        h: Tensor,
        emb: Tensor,
        context: Tensor,
        layers: Mapping[str, LayerFn] | None = None,
    ) -> Tensor:
        """One input, middle or output block; `layers` replaces some or all of our own layers by name."""
        run = self.layers if layers is None else layers
        for i in range(len(self.get_submodule(name))):  # type: ignore[arg-type]
            h = run[f"{name}.{i}"](h, emb, context)
        return h

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        layers: Mapping[str, LayerFn] | None = None,
    ) -> Tensor:
        """-> `[B, out_channels, H, W]` in x's dtype. `layers` is how compiled layers come in (all names, ours or others')."""
        emb, context = self.embed(timesteps, y), context.to(self.dtype)
        h = x.to(self.dtype, memory_format=torch.channels_last)
        skips = []
        for i in range(len(self.input_blocks)):
            h = self.run_block(f"input_blocks.{i}", h, emb, context, layers)
            skips.append(h)
        h = self.run_block("middle_block", h, emb, context, layers)
        for i in range(len(self.output_blocks)):
            h = self.run_block(f"output_blocks.{i}", join(h, skips.pop()), emb, context, layers)
        return (layers or self.layers)["out"](h, emb, context).to(x.dtype)


def _build_block(spec: arch.Block) -> nn.ModuleList:
    return nn.ModuleList(build_layer(layer) for layer in spec)


def join(h: Tensor, skip: Tensor) -> Tensor:
    """Concatenate channels. Where a side of the latent is no multiple of the deepest level's step, going down rounds up
    and coming back is one too large: the WebUI then resizes the decoder's tensor to the skip's (nearest), and so do we."""
    if h.shape[-2:] != skip.shape[-2:]:
        h = F.interpolate(h, skip.shape[-2:], mode="nearest")
    return torch.cat([h, skip], dim=1)


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """`timesteps: [B]` -> `[B, channels]` float32: cosines, then sines, at frequencies from 1 to 1/10,000 radians a timestep."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    )
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)

"""A clean UNet with the LDM parameter names that owns no weights.

Memory layout of activations: on a CPU channels-last; elsewhere that of the convolutions' weights,
from the first layer to the last, so that nothing is copied for its layout alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadWeights
from .architecture import Architecture
from .layers import JoiningLayer, LayerFn, Output, Upsample, build_layer
from .parts.embedding import Perceptron, timestep_embedding
from .parts.modules import Linear, empty_parameter, set_parameter
from .specs import Block, Downsample, ResBlock


class Control(NamedTuple):
    """What a ControlNet adds: to input blocks, the middle block, skips; the first to the first."""

    input: tuple[Tensor | None, ...] = ()
    middle: tuple[Tensor | None, ...] = ()
    output: tuple[Tensor | None, ...] = ()


Parameters = Mapping[str, nn.Parameter]
"""Parameter objects by name in the LDM layout."""


class UNet(nn.Module):
    """The UNet of an `Architecture`, built without storage, that computes with a donor's weights.

    The *donor* is the module whose weights these are: the WebUI's UNet, or any other with the LDM
    parameter names. To *adopt* its parameters is to make the same Parameter objects parameters of
    this UNet, so there is one copy of the weights, and an in-place change or a move to another
    device is seen by the next call.

    Every layer can be computed by other code: compiled code, or code of an extension that has
    patched a layer of the donor. `forward` takes such replacements by name. `layers` holds this
    UNet's own layers by the checkpoint's names, for callers that run a UNet layer by layer, as the
    ControlNet extension does.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = a = architecture
        # The dtype of activations where it is not the weights' own.
        self.compute_dtype: torch.dtype | None = None
        # Whether an upsampling layer resizes to the size of the next skip tensor before its
        # convolution, as Forge does, and not after it, as AUTOMATIC1111's WebUI does.
        self.resizes_first = False
        # Names of adopted biases of linear layers that have none in this architecture.
        self.extra_biases: set[str] = set()
        emb = a.emb_channels
        self.time_embed = Perceptron(a.model_channels, emb)
        if a.adm_channels is not None:
            self.label_emb = nn.ModuleList([Perceptron(a.adm_channels, emb)])
        self.input_blocks = nn.ModuleList(_build_block(b) for b in a.input_blocks)
        self.middle_block = _build_block(a.middle_block)
        self.output_blocks = nn.ModuleList(_build_block(b) for b in a.output_blocks)
        self.out = Output(a.output)
        self.layers: dict[str, LayerFn] = {name: self.get_submodule(name) for name, _ in a.layers()}
        self._input_names = _layer_names("input_blocks", a.input_blocks)
        self._middle_names = [f"middle_block.{i}" for i in range(len(a.middle_block))]
        self._output_names = _layer_names("output_blocks", a.output_blocks)
        # The architecture's own: somebody may give an adopted parameter another shape later.
        self._shapes = {name: p.shape for name, p in self.named_parameters()}

    def adopt(self, parameters: Parameters) -> UNet:
        """Make these Parameter objects the UNet's own, without a copy, and return the UNet.

        `parameters`: by name in the LDM layout, all of one dtype and on one device. A linear layer
        without a bias may have been given one (some LoRA types do that): see `extra_biases`.
        Raises BadWeights where a name is missing or unknown, or a shape differs.
        """
        extra = parameters.keys() - self._shapes.keys()
        if unknown := sorted(n for n in extra if not self._may_be_extra(n, parameters[n].shape)):
            raise BadWeights(
                f"{unknown[0]}: this UNet has no such parameter; "
                f"expected those of {self.architecture.name} alone"
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
        """Let the donor's parameters go: all of ours are without storage again, in the same dtype.

        The donor is left alone. `nn.Module.to("meta")` would not always do that: torch has a mode
        in which it changes Parameter objects in place, and these are the donor's.
        """
        for name, p in list(self.named_parameters()):
            shape = self._shapes.get(name)
            empty = None if shape is None else empty_parameter(*shape, dtype=p.dtype)
            set_parameter(self, name, empty)
        self.extra_biases = set()

    def _may_be_extra(self, name: str, shape: torch.Size) -> bool:
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
        """The dtype of activations: `compute_dtype` where it is set, else that of the weights."""
        return self.compute_dtype or next(self.parameters()).dtype

    def embed(self, timesteps: Tensor, y: Tensor | None) -> Tensor:
        """Return `emb: [B, emb_channels]` in the UNet's dtype.

        `timesteps: [B]`, `y: [B, adm_channels]` or None where the architecture takes none. The
        sinusoids are computed in float32 at every precision, as the WebUI does.
        Raises ValueError where `y` is needed and missing.
        """
        t = timestep_embedding(timesteps, self.architecture.model_channels).to(self.dtype)
        emb = self.time_embed(t)
        if self.architecture.adm_channels is not None:
            if y is None:
                raise ValueError(
                    f"this UNet needs y: [B, {self.architecture.adm_channels}]; got none"
                )
            emb = emb + self.label_emb[0](y.to(self.dtype))
        return emb

    def embedding_weights(self) -> list[nn.Parameter]:
        """Return the weights of `embed` and of the residual blocks' projections.

        They are in the order of `Embedding`, which computes them together.
        """
        architecture = self.architecture
        homes = ["time_embed"] if architecture.adm_channels is None else ["time_embed", "label_emb"]
        blocks = [name for name, spec in architecture.layers() if isinstance(spec, ResBlock)]
        homes += [f"{name}.emb_layers" for name in blocks]
        return [p for home in homes for p in self.get_submodule(home).parameters()]

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        layers: Mapping[str, LayerFn] | None = None,
        residuals: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Return the prediction, `[B, out_channels, H, W]`, in the dtype of `x`.

        `x: [B, in_channels, H, W]` (H and W in latents), `timesteps: [B]` of any dtype,
        `context: [B, L, context_dim]`, `y: [B, adm_channels]` where the architecture takes it.
        `layers`: what to compute every layer with, by name; by default the UNet's own `layers`.
        `residuals`: see `arranged`.
        Raises ValueError where `y` is needed and missing.
        """
        layers = self.layers if layers is None else layers
        return self.run(x, self.embed(timesteps, y), context, layers, residuals)

    def arranged(self, control: Control) -> tuple[Tensor | None, ...]:
        """Return the tensors of a ControlNet in the order in which they are added.

        That is to what each input block and the middle block return, and to what each output block
        takes through its skip connection.
        """
        counts = len(self._input_names), 1, len(self._output_names)
        given = zip((control.input, control.middle, control.output), counts, strict=True)
        return tuple(t for each, n in given for t in (*each[:n], *[None] * (n - len(each))))

    def run(
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor,
        layers: Mapping[str, LayerFn],
        residuals: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Compute all but the embedding, which is `emb: [B, emb_channels]`; see `forward`."""
        more = iter(residuals)
        context = context.to(self.dtype)
        h = x.to(self.dtype, memory_format=self._layout(x.device))
        skips = []
        for names in self._input_names:
            for name in names:
                h = layers[name](h, emb, context)
            h = _plus(h, next(more, None))
            skips.append(h)
        for name in self._middle_names:
            h = layers[name](h, emb, context)
        h = _plus(h, next(more, None))
        for names in self._output_names:
            first, skip = layers[names[0]], _plus(skips.pop(), next(more, None))
            if isinstance(first, JoiningLayer):
                h = first.join(_resized(h, skip), skip, emb, context)
            else:
                h = first(join(h, skip), emb, context)
            for name in names[1:]:
                own, size = self.layers[name], skips[-1].shape[-2:] if skips else None
                if self.resizes_first and isinstance(own, Upsample) and size != _doubled(h):
                    h = own.conv(F.interpolate(h, size, mode="nearest"))
                else:
                    h = layers[name](h, emb, context)
        return layers["out"](h, emb, context).to(x.dtype)

    def fits(self, x: Tensor) -> bool:
        """Return whether nothing is resized for `x: [B, C, H, W]` but by factors of two."""
        levels = (isinstance(s, Downsample) for _, s in self.architecture.layers())
        step = 2 ** sum(levels)
        return all(side % step == 0 for side in x.shape[-2:])

    def _layout(self, device: torch.device) -> torch.memory_format:
        """Return the layout of activations: that of the convolutions' weights, except on a CPU."""
        weight = self.get_parameter("input_blocks.0.0.weight")
        if device.type == "cpu" or weight.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        return torch.contiguous_format


def _build_block(block: Block) -> nn.ModuleList:
    return nn.ModuleList(build_layer(spec) for spec in block)


def _layer_names(group: str, blocks: tuple[Block, ...]) -> list[list[str]]:
    return [[f"{group}.{i}.{j}" for j in range(len(block))] for i, block in enumerate(blocks)]


def _plus(h: Tensor, residual: Tensor | None) -> Tensor:
    return h if residual is None else (h + residual).to(h.dtype)


def _doubled(h: Tensor) -> torch.Size:
    return torch.Size(2 * side for side in h.shape[-2:])


def join(h: Tensor, skip: Tensor) -> Tensor:
    """Concatenate `h: [B, C, H', W']` and `skip: [B, D, H, W]` to `[B, C+D, H, W]`."""
    return torch.cat([_resized(h, skip), skip], dim=1)


def _resized(h: Tensor, skip: Tensor) -> Tensor:
    """Return `h: [B, C, H', W']` in the height and width of `skip: [B, D, H, W]`.

    Downsampling rounds up. So where a side of the latent is no multiple of the deepest level's
    step, `h` comes back one pixel larger than `skip`; it is resized (nearest) to the skip's size,
    as the WebUI does (`modules/sd_hijack_unet.py`).
    """
    if h.shape[-2:] == skip.shape[-2:]:
        return h
    return F.interpolate(h, skip.shape[-2:], mode="nearest")

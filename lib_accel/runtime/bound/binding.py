"""Compiled units and the live weights of a network, brought together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ...compile.jobs import CompiledUnits
from ...compile.units import UnitFn, image_widths, side_widths, weights_of, widest
from ...errors import BadWeights
from ...model import precision
from ...model.layers import LayerFn
from ...model.specs import ResBlock, SpatialTransformer, Spec
from ...model.unet import Parameters
from .weights import Weights, fastest_channels_last

INT32_LIMIT = 2**31
"""Inductor's GPU code counts elements in 32 bits; torch's own kernels change to 64 where needed."""


class UnitWeights:
    """Live weights as a unit takes them: in the dtype that it computes in."""

    def __init__(self, weights: Iterable[Tensor], dtype: torch.dtype):
        self._weights, self._dtype = list(weights), dtype
        # asked once: `to` on each of SD1's 686 weights takes 0.7 ms even where it does nothing
        self._widen = any(w.dtype != dtype for w in self._weights)

    @property
    def device(self) -> torch.device:
        """Where they are now: somebody may move them."""
        return self._weights[0].device

    def __call__(self) -> list[Tensor]:
        """Return the weights, widened where they are narrower."""
        return [w.to(self._dtype) for w in self._weights] if self._widen else self._weights


class CompiledLayer:
    """One layer of a network, computed by its compiled unit from the layer's own weights.

    Compiled code checks nothing and would read past the end of tensors it was not made for. Inputs
    that do not fit go to the clean layer: it broadcasts one `emb` for a whole batch, handles more
    than 2^31 elements (SD1 at 4096x4096, two images), and raises torch's errors for wrong shapes.
    """

    def __init__(self, unit: UnitFn, module: nn.Module, spec: Spec, dtype: torch.dtype):
        self.unit, self.module, self.dtype = unit, module, dtype
        self._why_not = getattr(unit, "why_not", None)  # of units that have limits of their own
        self.takes_emb = isinstance(spec, ResBlock)
        self.takes_context = isinstance(spec, SpatialTransformer)
        own = weights_of(module)
        self._weights = UnitWeights(own.values(), dtype)
        # those that `prepare` uses: projections of the time embedding or of the context
        named = module.named_parameters(remove_duplicate=False)
        self.preparing = [p for name, p in named if name not in own]
        self._images = image_widths(spec, self._weights.device)
        self._side, self._widest = side_widths(spec), widest(spec)

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Compute `h: [B, C, H, W]`, `emb: [B, emb]`, `context: [B, L, D]` -> `[B, C', H', W']`."""
        return self._prepared(emb, context)(h, emb, context)

    def join(self, h: Tensor, skip: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Compute the layer from `h: [B, C1, H, W]` and `skip: [B, C2, H, W]`: see JoiningLayer."""
        return self._prepared(emb, context).join(h, skip, emb, context)

    def _prepared(self, emb: Tensor, context: Tensor) -> PreparedLayer:
        return self.given(*self.module.prepare(emb, context))  # type: ignore[operator]

    @property
    def takes_side(self) -> bool:
        """Whether the layer has a second input."""
        return self.takes_emb or self.takes_context

    def given(self, *side: Tensor) -> PreparedLayer:
        """Return this layer with what its module's `prepare` returns, so that it need not run.

        `emb` and `context` then serve the clean layer alone.
        """
        return PreparedLayer(self, side)

    def compute(self, images: Sequence[Tensor], side: tuple[Tensor, ...]) -> Tensor | None:
        """Compute the unit; return None where it was not made for such tensors.

        `images` are what it takes, or one tensor of these concatenated along the channels.
        """
        widths = self._images
        if [t.ndim for t in images] == [4] and images[0].shape[1] == sum(widths):
            images = images[0].split(widths, dim=1)
        if not self.fits([*images, *side]):
            return None
        inputs = [t.contiguous(memory_format=torch.channels_last) for t in images]
        inputs += [t.contiguous() for t in side]
        if self._why_not is not None and self._why_not(inputs):
            return None
        return self.unit(inputs + self._weights())

    def fits(self, inputs: list[Tensor]) -> bool:
        """Whether the unit was made for tensors like `inputs`: images, and what `given` took."""
        count, device = len(self._images), self._weights.device
        h, images, side = inputs[0], inputs[:count], inputs[count:]
        if any(t.ndim != 4 or t.shape[2:] != h.shape[2:] for t in images):
            return False
        widths = tuple(t.shape[1] for t in images), tuple(t.shape[-1] for t in side)
        if widths != (self._images, self._side):
            return False
        elements = h.numel() // h.shape[1] * self._widest
        if h.device.type != "cpu" and elements >= INT32_LIMIT:
            return False
        return all(
            t.shape[0] == h.shape[0] and t.numel() and t.dtype == self.dtype and t.device == device
            for t in inputs
        )


@dataclass(frozen=True)
class PreparedLayer:
    """A compiled layer with what is prepared for it: a LayerFn, and a JoiningLayer."""

    layer: CompiledLayer
    side: tuple[Tensor, ...]

    def __call__(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Compute the layer from `h: [B, C, H, W]`."""
        out = self.layer.compute([h], self.side)
        return self.layer.module(h, emb, context) if out is None else out

    def join(self, h: Tensor, skip: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Compute the layer from `h: [B, C1, H, W]` and `skip: [B, C2, H, W]`."""
        out = self.layer.compute([h, skip], self.side)
        return self(torch.cat([h, skip], dim=1), emb, context) if out is None else out


class Borrower(Protocol):
    """Clean layers without weights of their own: a `UNet`, or a ControlNet's `ControlLayers`."""

    @property
    def layers(self) -> Mapping[str, LayerFn]:
        """The clean layers by name."""
        ...

    extra_biases: set[str]
    compute_dtype: torch.dtype | None

    def adopt(self, parameters: Parameters) -> object:
        """Share these Parameter objects, by name. Raises BadWeights where one does not fit."""
        ...

    def release(self) -> None:
        """Hold no parameter of anybody."""
        ...


class Binding:
    """Keeps the clean layers and the compiled layers of one network on the network's live weights.

    It is the one owner of every reference to those weights: `release` ends all of them.
    """

    def __init__(
        self,
        network: nn.Module,
        clean: Borrower,
        specs: Mapping[str, Spec],
        device: torch.device,
        dtype: torch.dtype | None = None,
    ):
        """`dtype`: that of activations; by default the weights' own, or what a CPU is faster in."""
        self._weights, self._clean, self._specs = Weights(network), clean, specs
        self._device, self._wanted_dtype = device, dtype
        self.compiled: dict[str, CompiledLayer] = {}
        self.count = 0  # how often the weights were bound

    def bind(
        self,
        units: CompiledUnits,
        dtype: torch.dtype | None,
        channels_last: bool = True,
        clean_computes: bool = False,
    ) -> None:
        """Bind to the weights as they are now; `units` were made for `dtype`.

        `channels_last`: the layout in which they read the weights of convolutions on a GPU. They
        are left unused if the weights need another dtype or are on another device (medvram).
        `clean_computes`: the clean layers then compute, and not the network's own.
        Raises BadWeights if nothing can be computed with the weights.
        """
        self.compiled = {}
        try:
            named = self._weights.accept()
            self._clean.adopt(named)
        except BadWeights:
            self._weights.forget()  # so that the next call looks again
            raise
        weight = next(iter(named.values()))
        self.weight_dtype, self.weight_device = weight.dtype, weight.device
        self.dtype = self._wanted_dtype or weight.dtype
        if self._wanted_dtype is None and self._device.type == "cpu":
            self.dtype = precision.fastest_cpu_dtype(weight.dtype)
        self._clean.compute_dtype = self.dtype
        if weight.device == self._device:
            serving = units if self.dtype == dtype else {}
            if serving or (clean_computes and fastest_channels_last(weight)):
                self._weights.set_layout(True, channels_last or not serving)
                self._weights.accept()  # the new layout may have moved some
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()  # the old places are too small for images
            self._bind_units(serving)
        self.count += 1

    def _bind_units(self, units: CompiledUnits) -> None:
        for name, spec in self._specs.items():
            extra = any(bias.startswith(f"{name}.") for bias in self._clean.extra_biases)
            if spec in units and not extra:
                layer = self._clean.layers[name]
                assert isinstance(layer, nn.Module)
                self.compiled[name] = CompiledLayer(units[spec], layer, spec, self.dtype)

    def moved(self) -> bool:
        """Whether a weight has been moved, replaced or retyped since `bind`."""
        return self._weights.moved()

    def release(self) -> None:
        """Give the weights back their memory layout and hold none of them; `bind` begins again."""
        self.compiled = {}
        self._weights.set_layout(compiled=False)
        self._weights.forget()
        self._clean.release()

"""The time embedding and its projections: small products that share three launches."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from ....errors import BadWeights
from .geometry import ceil_div
from .launching import Operands

MOST = 48
"""Layers of a launch, as in cuda/embedding.cu."""

THREADS = 256
_LAYER = struct.Struct("@8P2i0P")
_LAYERS = struct.Struct("@P2if0P")
"""The structs Layer and, before its layers, Layers of cuda/embedding.cu."""


class Layer(NamedTuple):
    """One linear layer; `out` and `active` are where its result and SiLU of it go."""

    x: Tensor | None  # [B, inputs]; None: the sinusoids
    weight: Tensor
    bias: Tensor
    out: Tensor
    x2: Tensor | None = None  # of a second product, that is added
    weight2: Tensor | None = None
    added: Tensor | None = None
    active: Tensor | None = None


class Embedding:
    """The layers for `timesteps: [B]`."""

    def __init__(self, operands: Operands, timesteps: Tensor) -> None:
        if timesteps.ndim != 1 or timesteps.device != operands.device:
            raise BadWeights(
                f"timesteps: got the shape {list(timesteps.shape)} on {timesteps.device}, "
                f"expected [B] on {operands.device}"
            )
        self._operands = operands
        self._timesteps = timesteps.float().contiguous()
        self._rows = len(timesteps)

    def compute(self, y: Tensor | None, weights: list[Tensor]) -> Tensor:
        """Compute `Kernels.embedding`."""
        own, projections = (weights[:4], weights[4:]) if y is None else (weights[:8], weights[8:])
        if len(own) < (4 if y is None else 8) or len(projections) % 2:
            raise BadWeights(f"got {len(weights)} weights; expected those of embedding_weights")
        biases = [own[3], *projections[1::2]]
        flat, (emb, *outs) = self._new(*map(len, biases))
        active = self._emb(y, own, emb)
        parts = zip(projections[::2], projections[1::2], outs, strict=True)
        layers = [Layer(active, *part) for part in parts]
        for first in range(0, len(layers), MOST):
            self._launch(layers[first : first + MOST])
        return flat

    def _emb(self, y: Tensor | None, own: list[Tensor], emb: Tensor) -> Tensor:
        """Compute `emb`; return SiLU of it."""
        if own[0].shape[-1] % 2:
            raise BadWeights(f"{own[0].shape[-1]} sinusoids; expected as many cosines as sines")
        _, (hidden, hidden2, active) = self._new(len(own[1]), len(own[-3]), len(own[3]))
        first = [Layer(None, own[0], own[1], hidden)]
        second = Layer(hidden, own[2], own[3], emb)
        if y is not None:
            first.append(Layer(y, own[4], own[5], hidden2))
            second = second._replace(x2=hidden2, weight2=own[6], added=own[7])
        self._launch(first, silu=True)
        self._launch([second._replace(active=active)])
        return active

    def _new(self, *widths: int) -> tuple[Tensor, list[Tensor]]:
        """Return an empty tensor, and it in parts that are `[B, width]` each."""
        sizes = [self._rows * width for width in widths]
        space = torch.empty(sum(sizes), dtype=self._operands.dtype, device=self._operands.device)
        parts = zip(space.split(sizes), widths, strict=True)
        return space, [t.view(self._rows, width) for t, width in parts]

    def _launch(self, layers: list[Layer], silu: bool = False) -> None:
        layers = [self._checked(layer) for layer in layers]
        if not layers or not self._rows:
            return
        inputs = [layer.weight.shape[1] for layer in layers]
        read = [t for layer in layers for t in (layer.x, layer.weight, layer.x2, layer.weight2)]
        wide = self._operands.width(inputs, *read)
        pointers = self._operands.pointers
        packed = [
            _LAYER.pack(
                *pointers(t.x, t.weight, t.bias, t.x2, t.weight2, t.added, t.out, t.active),
                *reversed(t.weight.shape),
            )
            for t in layers
        ]
        step = -math.log(10000) / max(1, inputs[0] // 2)
        head = _LAYERS.pack(*pointers(self._timesteps), self._rows, silu, step)
        arguments = head + b"".join(packed).ljust(MOST * _LAYER.size, b"\0")
        most = max(layer.weight.shape[0] for layer in layers)
        grid = ceil_div(most, THREADS // 32), len(layers), 1
        self._operands.launch("embedding", wide, grid, THREADS, arguments)

    def _checked(self, layer: Layer) -> Layer:
        """Return the layer with its tensors contiguous. Raises BadWeights where they do not fit."""
        tensor, shape = self._operands.tensor, layer.weight.shape
        if len(shape) != 2:
            raise BadWeights(f"a weight has the shape {list(shape)}, expected [outputs, inputs]")
        outputs, inputs = shape

        def of(t: Tensor | None, name: str, *sizes: int) -> Tensor | None:
            return None if t is None else tensor(t, name, sizes)

        return layer._replace(
            x=of(layer.x, "x of a layer", self._rows, inputs),
            weight=tensor(layer.weight, "weight"),
            bias=tensor(layer.bias, "bias", (outputs,)),
            x2=of(layer.x2, "x of a second layer", self._rows, inputs),
            weight2=of(layer.weight2, "weight of a second layer", outputs, inputs),
            added=of(layer.added, "bias to add", outputs),
        )

"""Writes a network of TensorRT from a list of operations, with weights as inputs.

`trt` is the module `tensorrt_rtx`, or `tensorrt`, whose layer API is the same. Networks are
strongly typed: TensorRT chooses no precision, every tensor has the one that is written here.
Activations and weights have one dtype. Statistics of norms are computed in float32, and so are the
sinusoids; the softmax of TensorRT's attention is as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from .network import Network

MAXIMAL_PERIOD = 10000  # of the sinusoids, as in model/unet.py: timestep_embedding


class Writer:
    """Writes `network` into `target`, an empty strongly typed `INetworkDefinition`.

    `dtype` is "float16", "bfloat16" or "float32". `channels_last` asks for activations in and out
    in that layout, where TensorRT has a format for it: with a multiple of eight channels.
    `constants`: the address of each weight, to be built in instead of becoming an input.
    """

    def __init__(
        self,
        trt: ModuleType,
        target: Any,
        network: Network,
        dtype: str,
        channels_last: bool,
        constants: Mapping[str, int] | None = None,
    ):
        self._constants = constants or {}
        self._trt, self._target, self._network = trt, target, network
        names = {"float16": "HALF", "bfloat16": "BF16", "float32": "FLOAT"}
        self._dtype = getattr(trt.DataType, names[dtype])
        self._values: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        self._channels_last = channels_last and dtype != "float32"

    def write(self) -> None:
        """Add every input, operation and the output."""
        for name, shape in self._network.activations.items():
            dtype = self._trt.float32 if name == "timesteps" else self._dtype
            sizes = [n if isinstance(n, int) else -1 for n in shape]
            self._values[name] = self._laid_out(self._target.add_input(name, dtype, sizes))
        for name, shape in self._network.weights.items():
            self._values[name] = self._weight(name, shape)
        for operation in self._network.operations:
            inputs = [self._values[name] for name in operation.inputs]
            out = _WRITE[operation.kind](self, *inputs, **operation.settings)
            out.name = operation.output
            self._values[operation.output] = out
        out = self._values[self._network.output]
        out.name = OUTPUT
        self._target.mark_output(out)
        self._laid_out(out)

    def _weight(self, name: str, shape: tuple[int, ...]) -> Any:
        if name not in self._constants:
            return self._target.add_input(name, self._dtype, shape)
        values = self._trt.Weights(self._dtype, self._constants[name], math.prod(shape))
        return self._target.add_constant(shape, values).get_output(0)

    def _laid_out(self, tensor: Any) -> Any:
        shape = tuple(tensor.shape)
        if self._channels_last and len(shape) == 4 and shape[1] % 8 == 0:
            tensor.allowed_formats = 1 << int(self._trt.TensorFormat.HWC8)
        return tensor

    # -- pieces

    def _constant(self, values: Any) -> Any:
        array = np.ascontiguousarray(values)
        return self._target.add_constant(array.shape, self._trt.Weights(array)).get_output(0)

    def _cast(self, x: Any, dtype: Any) -> Any:
        return x if x.dtype == dtype else self._target.add_cast(x, dtype).get_output(0)

    def _reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """0 keeps a size, -1 is what is left."""
        layer = self._target.add_shuffle(x)
        layer.reshape_dims = shape
        return layer.get_output(0)

    def _size(self, x: Any, axis: int) -> Any:
        """The size of one dimension, as a tensor of one int64."""
        shape = self._target.add_shape(x).get_output(0)
        return self._target.add_slice(shape, (axis,), (1,), (1,)).get_output(0)

    def _sizes(self, *sizes: Any) -> Any:
        """A shape from numbers and tensors of one int64."""
        given = [
            self._constant(np.array([n], np.int64)) if isinstance(n, int) else n for n in sizes
        ]
        return self._target.add_concatenation(given).get_output(0)

    def _elementwise(self, x: Any, y: Any, what: str) -> Any:
        kind = getattr(self._trt.ElementWiseOperation, what)
        return self._target.add_elementwise(x, y, kind).get_output(0)

    def _unary(self, x: Any, what: str) -> Any:
        return self._target.add_unary(x, getattr(self._trt.UnaryOperation, what)).get_output(0)

    # -- operations

    def sinusoids(self, t: Any, channels: int) -> Any:
        half = channels // 2
        steps = np.arange(half, dtype=np.float32)
        frequencies = np.exp(np.float32(-math.log(MAXIMAL_PERIOD) / half) * steps)
        angles = self._elementwise(
            self._reshape(t, (-1, 1)), self._constant(frequencies[None]), "PROD"
        )
        both = [self._unary(angles, "COS"), self._unary(angles, "SIN")]
        layer = self._target.add_concatenation(both)
        layer.axis = 1
        return self._cast(layer.get_output(0), self._dtype)

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        rank, (outputs, inputs) = len(x.shape), tuple(weight.shape)[:2]
        ones = (1,) * (rank - 2)
        matrix = self._reshape(weight, (*ones, outputs, inputs))
        plain, transposed = self._trt.MatrixOperation.NONE, self._trt.MatrixOperation.TRANSPOSE
        out = self._target.add_matrix_multiply(x, plain, matrix, transposed).get_output(0)
        if bias is None:
            return out
        return self._elementwise(out, self._reshape(bias, (*ones, 1, outputs)), "SUM")

    def convolution(self, x: Any, weight: Any, bias: Any, stride: int) -> Any:
        outputs, _, *kernel = tuple(weight.shape)
        empty = self._trt.Weights()
        layer = self._target.add_convolution_nd(x, outputs, kernel, empty, empty)
        layer.set_input(1, weight)
        layer.set_input(2, bias)
        layer.stride_nd, layer.padding_nd = (stride, stride), (kernel[0] // 2, kernel[1] // 2)
        return layer.get_output(0)

    def group_norm(self, x: Any, weight: Any, bias: Any, groups: int, eps: float) -> Any:
        (channels,) = weight.shape
        return self._norm(x, weight, bias, (1, channels, 1, 1), (2, 3), eps, groups)

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        (channels,) = weight.shape
        return self._norm(x, weight, bias, (1, 1, channels), (2,), eps)

    def _norm(
        self,
        x: Any,
        weight: Any,
        bias: Any,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        eps: float,
        groups: int = 1,
    ) -> Any:
        float32 = self._trt.float32
        x, weight, bias = (self._cast(t, float32) for t in (x, weight, bias))
        weight, bias = (self._reshape(t, shape) for t in (weight, bias))
        mask = sum(1 << axis for axis in axes)
        layer = self._target.add_normalization_v2(x, weight, bias, mask)
        layer.epsilon, layer.num_groups = eps, groups
        return self._cast(layer.get_output(0), self._dtype)

    def silu(self, x: Any) -> Any:
        sigmoid = self._target.add_activation(x, self._trt.ActivationType.SIGMOID)
        return self._elementwise(x, sigmoid.get_output(0), "PROD")

    def geglu(self, x: Any) -> Any:
        width = tuple(x.shape)[2] // 2
        shape = self._sizes(self._size(x, 0), self._size(x, 1), width)
        halves = []
        for start in (0, width):
            layer = self._target.add_slice(x, (0, 0, start), (0, 0, width), (1, 1, 1))
            layer.set_input(2, shape)
            halves.append(layer.get_output(0))
        gate = self._target.add_activation(halves[1], self._trt.ActivationType.GELU_ERF)
        return self._elementwise(halves[0], gate.get_output(0), "PROD")

    def attention(self, q: Any, k: Any, v: Any, heads: int) -> Any:
        width = tuple(q.shape)[2] // heads
        q, k, v = (self._heads(t, heads, width) for t in (q, k, v))
        scale = self._constant(np.full((1, 1, 1, 1), width**-0.5, np.float32))
        q = self._elementwise(q, self._cast(scale, self._dtype), "PROD")
        softmax, causal = self._trt.AttentionNormalizationOp.SOFTMAX, False
        layer = self._target.add_attention(q, k, v, softmax, causal)
        layer.decomposable = True  # where a card has no fused kernel of these widths
        back = self._target.add_shuffle(layer.get_output(0))
        back.first_transpose = (0, 2, 1, 3)
        back.reshape_dims = (0, 0, heads * width)
        return back.get_output(0)

    def _heads(self, t: Any, heads: int, width: int) -> Any:
        """[B, N, heads * width] -> [B, heads, N, width]."""
        layer = self._target.add_shuffle(t)
        layer.reshape_dims = (0, 0, heads, width)
        layer.second_transpose = (0, 2, 1, 3)
        return layer.get_output(0)

    def add(self, x: Any, y: Any) -> Any:
        return self._elementwise(x, y, "SUM")

    def add_per_channel(self, x: Any, y: Any) -> Any:
        return self._elementwise(x, self._reshape(y, (0, 0, 1, 1)), "SUM")

    def tokens(self, x: Any) -> Any:
        layer = self._target.add_shuffle(x)
        layer.first_transpose = (0, 2, 3, 1)
        layer.reshape_dims = (0, -1, tuple(x.shape)[1])
        return layer.get_output(0)

    def pixels(self, x: Any, like: Any) -> Any:
        layer = self._target.add_shuffle(x)
        sizes = (self._size(like, axis) for axis in (0, 2, 3))
        layer.set_input(1, self._sizes(*sizes, tuple(x.shape)[2]))
        layer.second_transpose = (0, 3, 1, 2)
        return layer.get_output(0)

    def upsample(self, x: Any) -> Any:
        layer = self._target.add_resize(x)
        layer.resize_mode = self._trt.InterpolationMode.NEAREST
        layer.coordinate_transformation = self._trt.ResizeCoordinateTransformation.ASYMMETRIC
        layer.nearest_rounding = self._trt.ResizeRoundMode.FLOOR
        layer.scales = (1.0, 1.0, 2.0, 2.0)
        return layer.get_output(0)

    def join(self, h: Any, skip: Any) -> Any:
        """Cut `h`, which may be a pixel larger, to the size of `skip`, and join the channels.

        To cut the last row is what nearest-neighbour resizing from 2n to 2n - 1 rows does.
        """
        channels = tuple(h.shape)[1]
        sizes = [self._size(skip, axis) for axis in (0, 2, 3)]
        layer = self._target.add_slice(h, (0,) * 4, (0, channels, 0, 0), (1,) * 4)
        layer.set_input(2, self._sizes(sizes[0], channels, *sizes[1:]))
        joined = self._target.add_concatenation([layer.get_output(0), skip])
        joined.axis = 1
        return joined.get_output(0)


OUTPUT = "out"
"""The name of the network's output."""

_WRITE: dict[str, Callable[..., Any]] = {
    "sinusoids": Writer.sinusoids,
    "linear": Writer.linear,
    "convolution": Writer.convolution,
    "group_norm": Writer.group_norm,
    "layer_norm": Writer.layer_norm,
    "silu": Writer.silu,
    "geglu": Writer.geglu,
    "attention": Writer.attention,
    "add": Writer.add,
    "add_per_channel": Writer.add_per_channel,
    "tokens": Writer.tokens,
    "pixels": Writer.pixels,
    "upsample": Writer.upsample,
    "join": Writer.join,
}

"""What TensorRT must compute at least, from the operations that it is given.

What it launches cannot be counted without a card: it makes its kernels there. The floor is its
convolutions, matrix products and attention, one launch each, which read their inputs and write
their output once; all else is taken to be fused into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from ...compile.backends.tensorrt.network import Network, Operation
from .launches import Launch

Shape = tuple[int, ...]


def launches(network: Network, activations: Mapping[str, Shape], item: int) -> list[Launch]:
    """Return the floor of a call of `network` with `activations`, for dtypes of `item` bytes."""
    shapes: dict[str, Shape] = {**network.weights, **activations}
    found = []
    for operation in network.operations:
        given = [shapes[name] for name in operation.inputs]
        out = shapes[operation.output] = _SHAPES[operation.kind](operation, *given)
        if operation.kind in _COMPUTING:
            kind, flops = _COMPUTING[operation.kind]
            traffic = item * sum(map(prod, [*given, out]))
            found.append(Launch(operation.output, kind, traffic, flops(out, *given)))
    return found


def _convolution(of: Operation, x: Shape, weight: Shape, *_: Shape) -> Shape:
    pad, stride = weight[-1] // 2, int(of.settings["stride"])
    return (x[0], weight[0], *((n + 2 * pad - weight[-1]) // stride + 1 for n in x[2:]))


def _same(_: Operation, x: Shape, *__: Shape) -> Shape:
    return x


_SHAPES: dict[str, Callable[..., Shape]] = {
    "sinusoids": lambda of, t: (*t, int(of.settings["channels"])),
    "linear": lambda _, x, weight, *bias: (*x[:-1], weight[0]),
    "convolution": _convolution,
    "group_norm": _same,
    "layer_norm": _same,
    "silu": _same,
    "geglu": lambda _, x: (*x[:-1], x[-1] // 2),
    "attention": _same,
    "add": _same,
    "add_per_channel": _same,
    "tokens": lambda _, x: (x[0], prod(x[2:]), x[1]),
    "pixels": lambda _, x, like: (x[0], x[2], *like[2:]),
    "upsample": lambda _, x: (*x[:2], 2 * x[2], 2 * x[3]),
    "join": lambda _, h, skip: (h[0], h[1] + skip[1], *skip[2:]),
}

_COMPUTING: dict[str, tuple[str, Callable[..., int]]] = {
    "linear": ("matrix product", lambda out, x, *_: 2 * prod(out) * x[-1]),
    "convolution": ("convolution", lambda out, x, weight, *_: 2 * prod(out) * prod(weight[1:])),
    "attention": ("attention", lambda out, q, k, v: 4 * prod(q) * k[1]),
}
"""The class of each kind (launches.py: CLASSES), and its operations."""

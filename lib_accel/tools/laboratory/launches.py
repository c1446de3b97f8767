"""Count what a call launches on the pretend card, with the bytes and the operations of each launch.

The bytes are those of the tensors that a launch is given, each once: what is read, and what is
written. That is the traffic of a kernel that uses each number once and finds nothing in a cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

CLASSES = (
    "group norm statistics",
    "group norm apply",
    "layer norm",
    "GEGLU",
    "residual/bias",
    "activation",
    "softmax",
    "layout copies",
    "cat",
    "upsample",
    "embedding",
    "other",
    "convolution",
    "matrix product",
    "attention",
)
"""The classes of kernels. Operations bound the last three, traffic of memory bounds the others.

Copies to another precision are among those to another layout.
"""

COMPUTING = CLASSES[-3:]

MOST_IMAGES = 32
"""A matrix of no more rows has one for each image of the batch, not one for each token."""


@dataclass(frozen=True)
class Launch:
    """One launch: what it is called, its class, bytes of memory traffic, and operations."""

    name: str
    kind: str
    bytes: int = 0
    flops: int = 0


class Counter(TorchDispatchMode):
    """Collects `launches` while it is active: those of torch's operators, and those it is told of.

    How many kernels an operator launches is read from the driver's log. A kernel there that neither
    an operator nor `launched` accounts for counts without bytes, as "other". Convolutions are not
    computed, as cuDNN cannot be pretended: each counts as one kernel, and what torch launches
    around it (copies to another layout, the sum with the bias) is launched.
    """

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        log.touch()  # the driver makes it at the first launch
        self._log, self._read = log, 0

    def __enter__(self) -> Counter:
        self._logged()  # what was launched before
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._account_for_others()

    def launched(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Count the launch of a generated kernel: its parameters tell what is read and written."""
        read = [t for to, t in tensors.items() if to.startswith("in_")]
        written = [t for to, t in tensors.items() if re.match("(in_)?out_", to)]
        kind = kind_of_generated(name, read, written)
        self.launches.append(Launch(name, kind, _bytes(read) + _bytes(written)))

    def operation(self, name: str, read: list[Tensor], written: list[Tensor]) -> None:
        """Count what an operation of the backend `kernels` has launched.

        All of its launches together read and write each tensor once, but for a group norm, whose
        first launch reads the images and whose second one reads them again.
        """
        kernels = self._logged()
        for number, kernel in enumerate(kernels):
            kind, total = _FUSED[name], 0
            if name == "group_norm" and number == 0:
                kind, total = "group norm statistics", _bytes(t for t in read if t.ndim == 4)
            elif number == len(kernels) - 1:
                total = _bytes([*read, *written])
            self.launches.append(Launch(f"{name}: {kernel}", kind, total))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._account_for_others()
        if func is torch.ops.aten.convolution.default:
            return self._convolution(*args)
        return self._counted(func, args, kwargs or {})

    def _counted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        kernels = self._logged()
        if not kernels:
            return result
        name = func.overloadpacket.__name__
        read, written = tensors_in(args), tensors_in(result)
        if name == "equal":
            result = True  # a step with the same prompt as the one before
        total = _bytes(read) + _bytes(written)
        if name == "native_group_norm":
            self._group_norm(kernels, _bytes(read), total)
            return result
        kind, flops = kind_of_operator(name, read, written), _flops(name, read)
        self.launches.append(Launch(name, kind, total, flops))
        self.launches += [Launch(f"{name}: {kernel}", kind) for kernel in kernels[1:]]
        return result

    def _account_for_others(self) -> None:
        self.launches += [Launch(kernel, "other") for kernel in self._logged()]

    def _group_norm(self, kernels: list[str], read: int, total: int) -> None:
        statistics, *small, _ = kernels
        kind = "group norm statistics"
        self.launches.append(Launch(f"native_group_norm: {statistics}", kind, read))
        self.launches += [Launch(f"native_group_norm: {kernel}", kind) for kernel in small]
        self.launches.append(Launch("native_group_norm", "group norm apply", total))

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        """Stand in for `at::_convolution` with cuDNN (ATen/native/Convolution.cpp)."""
        stride, padding, dilation, *_ = rest
        channels_last = any(_is_channels_last(t) for t in (x, weight))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        with self:
            x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
        sizes = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
            )
        ]
        out = torch.empty(
            (x.shape[0], weight.shape[0], *sizes),
            dtype=x.dtype,
            device=x.device,
            memory_format=layout,
        )
        flops = 2 * out.numel() * prod(weight.shape[1:])
        self.launches.append(Launch("convolution", "convolution", _bytes([x, weight, out]), flops))
        if bias is not None:
            with self:
                out.add_(bias.view(1, -1, 1, 1))
        return out

    def _logged(self) -> list[str]:
        """Return the kernels in the driver's log since the last time."""
        with self._log.open(encoding="utf-8") as log:
            log.seek(self._read)
            lines = log.read().splitlines()
            self._read = log.tell()
        return [line for line in lines if LAUNCH.match(line)]


LAUNCH = re.compile(r"kernel |torch |product |convolution |copy .*kind=3|set ")
"""The lines of the driver's log that are launches: all but copies from and to the host."""


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in arguments or results."""
    return [t for t in tree_flatten(tree)[0] if isinstance(t, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors on the card; what is expanded counts once."""
    total = 0
    for t in tensors:
        if t.device.type != "cpu":
            sizes = (n for n, step in zip(t.shape, t.stride(), strict=True) if step)
            total += prod(sizes) * t.element_size()
    return total


def _is_channels_last(t: Tensor) -> bool:
    """Whether torch takes the tensor to be channels-last and not, as 1x1 ones may, contiguous."""
    if t.is_contiguous():
        return False
    return t.is_contiguous(memory_format=torch.channels_last)


def _flops(name: str, read: list[Tensor]) -> int:
    if name in ("mm", "bmm"):
        return 2 * read[0].numel() * read[1].shape[-1]
    if name in ("addmm", "addmm_", "baddbmm"):
        return 2 * read[1].numel() * read[2].shape[-1]
    if name.startswith("_scaled_dot_product"):
        return 4 * read[0].numel() * read[1].shape[-2]
    return 0


_OPERATORS = {
    "native_layer_norm": "layer norm",
    "gelu": "GEGLU",
    "mul": "GEGLU",
    "add": "residual/bias",
    "add_": "residual/bias",
    "silu": "activation",
    "_softmax": "softmax",
    "clone": "layout copies",
    "copy_": "layout copies",
    "_to_copy": "layout copies",
    "contiguous": "layout copies",
    "cat": "cat",
    "upsample_nearest2d": "upsample",
    **dict.fromkeys(("mm", "bmm", "addmm", "addmm_", "baddbmm"), "matrix product"),
}


_FUSED = {
    "group_norm": "group norm apply",
    "layer_norm": "layer norm",
    "geglu": "GEGLU",
    "add": "residual/bias",
    "upsample": "upsample",
    "embedding": "embedding",
}


_WORDS = {
    "norm|var_mean": "group norm apply",
    "_cat_": "cat",
    "upsample": "upsample",
}
"""The classes of generated kernels by what is in their names: the first one found counts."""


def kind_of_operator(name: str, read: list[Tensor], written: list[Tensor]) -> str:
    """Return the class of an operator of torch, by its name and its tensors."""
    if name.startswith("_scaled_dot_product"):
        return "attention"
    kind = _OPERATORS.get(name, "other")
    if kind in (*COMPUTING, "layout copies") or not _of_embedding(read, written):
        return kind
    return "embedding"


def kind_of_generated(name: str, read: list[Tensor], written: list[Tensor]) -> str:
    """Return the class of a generated kernel, by the operators in its name and its tensors."""
    if "layer_norm" in name:
        return "layer norm"
    if "gelu" in name:
        return "GEGLU"
    if _of_embedding(read, written):
        # a product with a few rows, written as a sum
        return "matrix product" if re.search("_mul_.*sum", name) else "embedding"
    largest = max(map(torch.numel, read), default=0)
    if not name.startswith("triton_poi_") and 4 * sum(map(torch.numel, written)) <= largest:
        return "group norm statistics"
    for words, kind in _WORDS.items():
        if re.search(words, name):
            return kind
    if len(read) == len(written) == 1 and read[0].numel() == written[0].numel():
        return "activation" if read[0].stride() == written[0].stride() else "layout copies"
    return "residual/bias" if re.search("add|convolution", name) else "other"


def _of_embedding(read: list[Tensor], written: list[Tensor]) -> bool:
    """Whether vectors are computed, one for each image: the time embedding and its projections."""
    few = all(t.ndim < 2 or t.shape[0] <= MOST_IMAGES for t in written)
    return few and all(t.ndim <= 2 for t in [*read, *written])

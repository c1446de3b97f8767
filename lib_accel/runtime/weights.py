"""The host's parameters, looked at and never copied."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..compile.units import in_layout
from ..errors import BadWeights

COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_dtype, _bytes = operator.attrgetter("dtype"), operator.attrgetter("nbytes")


class Weights:
    """Notices when a parameter of `module` is another object, at another address, or of another dtype or size than at `accept`.

    An in-place change is none of these: compiled code reads the same memory and sees it.
    """

    def __init__(self, module: nn.Module):
        slots = [(m._parameters, name) for m in module.modules() for name in m._parameters]
        self._homes, self._names = [home for home, _ in slots], [name for _, name in slots]
        self._module = module
        self._channels_last = {
            name for name, p in module.named_parameters() if p.ndim == 4 and not p.is_contiguous()
        }  # the host's wish
        self._seen: list[nn.Parameter | None] | None = None
        self._all: list[nn.Parameter] = []
        self._matrices: list[nn.Parameter] = []
        self._state: tuple[list[Any], ...] = ()

    def forget(self) -> None:
        """Hold no parameter: they count as moved until they are accepted again."""
        self._seen, self._all, self._matrices, self._state = None, [], [], ()

    def moved(self) -> bool:
        """Under 0.2 ms for the 686 parameters of SD1, called before every use: so no Python loop."""
        if self._seen is None or not all(
            map(operator.is_, map(dict.get, self._homes, self._names), self._seen)
        ):
            return True
        return self._state != self._look()

    def accept(self) -> dict[str, nn.Parameter]:
        """Remember the parameters as they are and return them by name.

        Raises BadWeights unless all have one dtype that can be computed in and one device, and storage behind them.
        """
        named = dict(self._module.named_parameters())
        stored = next((name for name, p in named.items() if p.dtype not in COMPUTE_DTYPES), None)
        if stored is not None:
            kept = str(named[stored].dtype).removeprefix("torch.")
            raise BadWeights(
                f"{stored} is stored as {kept}, which nothing computes in; keep weights in 16 bits to accelerate this model"
            )
        name, first = next(iter(named.items()))
        for other, p in named.items():
            if p.dtype != first.dtype or p.device != first.device:
                raise BadWeights(
                    f"{other} is {p.dtype} on {p.device} but {name} is {first.dtype} on {first.device}; expected one dtype and one device"
                )
        if first.device.type == "meta":
            raise BadWeights(
                f"{name} is on the meta device: the model has been unloaded; load it again"
            )
        self._seen = list(map(dict.get, self._homes, self._names))
        self._all = [p for p in self._seen if p is not None]
        self._matrices = [p for p in self._all if p.ndim > 1]
        self._state = self._look()
        return named

    def _look(self) -> tuple[list[Any], ...]:
        """Addresses, bytes and dtypes.

        Not shapes: as many bytes at the same address are the same numbers to compiled code. And dtypes of
        matrices alone: a conversion of vectors only would have to keep address and size to go unseen.
        """
        return (
            list(map(Tensor.data_ptr, self._all)),
            list(map(_bytes, self._all)),
            list(map(_dtype, self._matrices)),
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._module.parameters()

    def set_layout(self, compiled: bool) -> None:
        """Give weights the memory layout compiled code expects, or back the one they came in. In place: same values, one copy."""
        for name, p in self._module.named_parameters():
            data = p.data
            if compiled:
                wanted = in_layout(data)
            else:
                plain = (
                    torch.channels_last if name in self._channels_last else torch.contiguous_format
                )
                wanted = data.contiguous(memory_format=plain)
            if wanted is not data:
                p.data = wanted

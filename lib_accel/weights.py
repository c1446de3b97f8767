"""The host's parameters, looked at and never copied."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .errors import BadWeights
from .units import in_layout


class Weights:
    """Notices when a parameter of `module` is another object, at another address, or of another dtype or shape than at `accept`.

    An in-place change is none of these: compiled code reads the same memory and sees it.
    """

    def __init__(self, module: nn.Module):
        self._slots = [(m._parameters, name) for m in module.modules() for name in m._parameters]
        self._module = module
        self._seen: list[tuple[nn.Parameter | None, int, torch.dtype | None, torch.Size | None]] = []

    def moved(self) -> bool:
        """About 0.1 ms for the 686 parameters of SD1: called before every use."""
        if len(self._seen) != len(self._slots):
            return True
        for (parameters, name), (seen, address, dtype, shape) in zip(self._slots, self._seen, strict=True):
            now = parameters.get(name)
            if now is not seen:
                return True
            if now is not None and (now.data_ptr() != address or now.dtype != dtype or now.shape != shape):
                return True
        return False

    def accept(self) -> dict[str, nn.Parameter]:
        """Remember the parameters as they are and return them by name.

        Raises BadWeights unless all have one dtype and one device, and storage behind them.
        """
        named = dict(self._module.named_parameters())
        name, first = next(iter(named.items()))
        for other, p in named.items():
            if p.dtype != first.dtype or p.device != first.device:
                raise BadWeights(
                    f"{other} is {p.dtype} on {p.device} but {name} is {first.dtype} on {first.device}; expected one dtype and one device"
                )
        if first.device.type == "meta":
            raise BadWeights(f"{name} is on the meta device: the model has been unloaded; load it again")
        self._seen = [_state(parameters.get(name)) for parameters, name in self._slots]
        return named

    def set_layout(self, compiled: bool) -> None:
        """Give convolution weights the memory layout compiled code expects, or the plain one back. In place: same values, one copy."""
        for p in self._conv_weights():
            wanted = in_layout(p.data) if compiled else p.data.contiguous()
            if wanted is not p.data:
                p.data = wanted

    def _conv_weights(self) -> Iterator[nn.Parameter]:
        return (p for p in self._module.parameters() if p.ndim == 4)


def _state(p: nn.Parameter | None) -> tuple[nn.Parameter | None, int, torch.dtype | None, torch.Size | None]:
    return (p, p.data_ptr(), p.dtype, p.shape) if p is not None else (None, 0, None, None)

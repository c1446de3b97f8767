"""The host's parameters: watched for moves, never copied."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...compile.units import to_unit_layout
from ...errors import BadWeights

COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_parameters = operator.attrgetter("_parameters")  # read anew: somebody may put another dict there
_dtype, _bytes = operator.attrgetter("dtype"), operator.attrgetter("nbytes")


def fastest_channels_last(weight: Tensor) -> bool:
    """Return whether torch's own convolutions want channels-last weights of this kind.

    Tensor cores take nothing else: cuDNN transposes the input, the weight and the result of a
    contiguous convolution in half precision, at every call. cuDNN has no such kernels for cards
    before compute capability 7.0, and AMD's MIOpen would copy what is channels-last.
    """
    return (
        weight.device.type == "cuda"
        and weight.dtype in (torch.float16, torch.bfloat16)
        and torch.version.hip is None
        and torch.backends.cudnn.enabled
        and torch.cuda.get_device_capability(weight.device) >= (7, 0)
    )


class Weights:
    """Notices when a parameter of `network` is not the object, address, dtype or layout it was.

    An in-place change is none of these: compiled code reads the same memory and sees it.
    The modules are those that `network` has now, by their names now: modules that somebody puts
    between them later have nothing to do with compiled code.
    """

    def __init__(self, network: nn.Module):
        self._modules = [(name, m) for name, m in network.named_modules() if m._parameters]
        self._having = [m for _, m in self._modules]
        # channels-last convolutions that the host made so (--opt-channelslast)
        self._channels_last = {
            name for name, p in self._named() if p.ndim == 4 and not p.is_contiguous()
        }
        self.forget()

    def forget(self) -> None:
        """Hold no parameter; all count as moved until they are accepted again."""
        self._seen: list[nn.Parameter | None] = []
        self._all: list[nn.Parameter] = []
        self._matrices: list[nn.Parameter] = []
        self._state: tuple[list[Any], ...] = ()

    def moved(self) -> bool:
        """Whether any parameter has another identity, address, dtype or layout than at `accept`.

        Called before every pass, so without a Python loop: 0.1 ms for the 686 parameters of SD1.
        """
        now = self._take()
        if len(now) != len(self._seen) or not all(map(operator.is_, now, self._seen)):
            return True
        return self._state != self._look()

    def accept(self) -> dict[str, nn.Parameter]:
        """Remember the parameters as they are now and return them by name.

        Raises BadWeights unless all lie on one device, with storage, and have one dtype that can be
        computed in.
        """
        named = dict(self._named())
        name, first = next(iter(named.items()))
        for other, p in named.items():
            if type(p) is not nn.Parameter:  # it computes in its own way
                raise BadWeights(f"{other} is a {type(p).__name__}, not a plain parameter")
            if p.dtype not in COMPUTE_DTYPES:
                stored = str(p.dtype).removeprefix("torch.")
                raise BadWeights(
                    f"{other} is stored as {stored}, which nothing computes in; "
                    "keep weights in 16 bits to accelerate this model"
                )
        for other, p in named.items():
            if p.dtype != first.dtype or p.device != first.device:
                raise BadWeights(
                    f"{other} is {p.dtype} on {p.device} but {name} is {first.dtype} on "
                    f"{first.device}; expected one dtype and one device"
                )
        if first.device.type == "meta":
            raise BadWeights(
                f"{name} is on the meta device: the model has been unloaded; load it again"
            )
        self._seen = self._take()
        self._all = [p for p in self._seen if p is not None]
        self._matrices = [p for p in self._all if p.ndim > 1]
        self._state = self._look()
        return named

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, module in self._modules:
            for own, p in _parameters(module).items():
                if p is not None:
                    yield f"{name}.{own}".lstrip("."), p

    def _take(self) -> list[nn.Parameter | None]:
        return list(itertools.chain.from_iterable(map(dict.values, map(_parameters, self._having))))

    def _look(self) -> tuple[list[Any], ...]:
        """Return classes, addresses, sizes in bytes, dtypes, and which matrices are contiguous.

        Compiled code reads the same numbers at the same address, size, dtype and layout. To save
        time it is not asked which layout that is, only whether it is the contiguous one; and the
        dtypes of vectors are taken to change with those of matrices.
        """
        return (
            list(map(type, self._all)),
            list(map(Tensor.data_ptr, self._all)),
            list(map(_bytes, self._all)),
            list(map(Tensor.is_contiguous, self._matrices)),
            list(map(_dtype, self._matrices)),
        )

    def set_layout(self, compiled: bool, channels_last: bool = True) -> None:
        """Give weights the memory layout that compiled code reads, or restore their own.

        `channels_last`: see `to_unit_layout`.

        The Parameter objects stay. A weight whose layout changes gets new storage, and the old
        storage is freed: there is one copy.
        """
        for name, p in self._named():
            data = p.data
            if compiled:
                wanted = to_unit_layout(data, channels_last)
            else:
                channels_last = name in self._channels_last
                wanted = data.contiguous(
                    memory_format=torch.channels_last if channels_last else torch.contiguous_format
                )
            if wanted is not data:
                p.data = wanted

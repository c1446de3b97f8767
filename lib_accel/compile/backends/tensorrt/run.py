"""Runs an engine on the tensors that torch has, on torch's current stream.

Nothing is copied: activations and weights are read where they lie, and TensorRT's own memory for
activations is torch's, asked for the shapes of the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ....errors import ArtifactRejected, NoRoom
from ...machine import free_memory
from .build import sizes_of
from .libraries import logger_of
from .network import Network
from .writer import OUTPUT

MOST_ELEMENTS = 2**31
"""In one tensor, inside the network too."""

KERNELS_S = 30.0
"""How long TensorRT may take to make the kernels for new sizes, in threads of its own."""


class Engine:
    """A serialized engine in this process, of which each bound network has a context of its own.

    Raises ArtifactRejected where the bytes are no engine for this card, driver and TensorRT.
    """

    def __init__(self, trt: Any, serialized: bytes, cache: bytes = b""):
        self._trt, self._logger = trt, logger_of(trt)
        self._runtime = trt.Runtime(self._logger)
        validity, why = self._runtime.get_engine_validity(serialized)
        if validity == trt.EngineValidity.INVALID:
            raise ArtifactRejected(f"the engine does not fit: {self._words(why)}")
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise ArtifactRejected(f"TensorRT cannot read the engine: {self._logger.last_error()}")
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._cache = self._config.create_runtime_cache()
        if cache:
            self._cache.deserialize(cache)
        self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        """Return a new execution context. Raises NoRoom where TensorRT makes none."""
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise NoRoom(f"TensorRT makes no execution context: {self._logger.last_error()}")
        return context

    @property
    def kernels(self) -> bytes:
        """The kernels that were made for this card so far, to be given to the next process."""
        return bytes(self._cache.serialize())

    def last_error(self) -> str:
        """Return what TensorRT complained of last."""
        return str(self._logger.last_error())

    def _words(self, diagnostics: int) -> str:
        known = self._trt.EngineInvalidityDiagnostics.__members__
        named = [name for name, flag in known.items() if diagnostics & int(flag)]
        said = ", ".join(name.replace("_", " ").lower() for name in named)
        return said or str(self._logger.last_error())


class Call:
    """Calls one context with tensors.

    `activations` are the names of its dynamic inputs, in the order of the tensors of a call, and
    `weights` those of the weights. `failure` tells why a call has failed.
    """

    def __init__(
        self,
        context: Any,
        activations: Sequence[str],
        weights: Sequence[str],
        failure: Callable[[], str],
        free: Callable[[torch.device], float] = free_memory,
    ):
        self._context, self._failure, self._free = context, failure, free
        self._activations, self._weights = activations, weights
        self._shapes: dict[str, torch.Size] = {}
        self._bound: dict[str, int] = {}
        self._bytes = 0  # TensorRT's own memory for the shapes of the last call

    def __call__(
        self, activations: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor
    ) -> None:
        """Compute `out` of `activations`, whose layouts the engine expects.

        Raises torch.cuda.OutOfMemoryError where less memory is free than it needs, RuntimeError
        with TensorRT's reason where it fails.
        """
        if why := self.shortage(activations):
            raise torch.cuda.OutOfMemoryError(why)
        given = dict(zip(self._activations, activations, strict=True))
        tensors = {**given, **dict(zip(self._weights, weights, strict=True)), OUTPUT: out}
        self._bind(tensors)
        memory = torch.empty(self._bytes, dtype=torch.uint8, device=out.device)
        self._context.set_device_memory(memory.data_ptr(), memory.numel())
        stream = torch.cuda.current_stream(out.device).cuda_stream
        if _records(out.device) and not self._context.is_stream_capturable(stream):
            raise RuntimeError("TensorRT cannot be recorded at this size")
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"TensorRT failed: {self._failure()}")

    def shortage(self, activations: Sequence[Tensor]) -> str | None:
        """Return that TensorRT needs more memory for these than is free, or None.

        Raises RuntimeError where it takes no such shapes.
        """
        self._set_shapes(dict(zip(self._activations, activations, strict=True)))
        free = self._free(activations[0].device)
        if self._bytes <= free:
            return None
        return (
            f"TensorRT needs {self._bytes / 1e9:.1f} GB for this size and "
            f"{free / 1e9:.1f} GB are free"
        )

    def _set_shapes(self, given: Mapping[str, Tensor]) -> None:
        shapes = {name: tensor.shape for name, tensor in given.items()}
        if shapes == self._shapes:
            return
        self._shapes = {}
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, tuple(shape)):
                raise RuntimeError(f"TensorRT refuses {name} {list(shape)}: {self._failure()}")
        self._bytes = self._context.update_device_memory_size_for_shapes()
        self._shapes = shapes

    def _bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Tell TensorRT where the tensors are; most of them stay where they are."""
        for name, tensor in tensors.items():
            address = tensor.data_ptr()
            if self._bound.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise RuntimeError(f"TensorRT refuses {name}: {self._failure()}")
                self._bound[name] = address


def _records(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded; a torch without CUDA raises where it is asked."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class EngineFn:
    """An engine as a function of a list of tensors: a `UnitFn`, or a `WholeFn`.

    `[*activations, *weights]`, in the order of the network, -> `[B, channels, H, W]`, of the size
    of the first activation, and channels-last as that one is where `channels_last` is given.
    `on_size` is called after the first call of each size.
    """

    def __init__(
        self,
        engine: Engine,
        network: Network,
        channels: int,
        channels_last: bool,
        on_size: Callable[[], object] = lambda: None,
    ):
        names = list(network.activations), list(network.weights)
        self._call = Call(engine.context(), *names, engine.last_error)
        self.activations = tuple(network.activations)
        self._network, self._channels = network, channels
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._on_size = on_size
        self._since: dict[tuple[torch.Size, ...], float] = {}  # when a size was called first

    def why_not(self, activations: list[Tensor]) -> str | None:
        """Return that it was not built for these sizes, or lacks the memory for them, or None."""
        return misfit(self._network, activations) or self._call.shortage(activations)

    def settled(self, activations: list[Tensor]) -> bool:
        """Return whether TensorRT should have made the kernels for these sizes.

        Until then it computes with kernels for all sizes, which are slower.
        """
        since = self._since.get(_sizes(activations))
        return since is not None and time.monotonic() - since > KERNELS_S

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        """Compute. Raises what `Call` does."""
        x, count = tensors[0], len(self.activations)
        size = (x.shape[0], self._channels, *x.shape[2:])
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=self._layout)
        self._call(tensors[:count], tensors[count:], out)
        if (sizes := _sizes(tensors[:count])) not in self._since:
            self._since[sizes] = time.monotonic()
            self._on_size()
        return out


def _sizes(activations: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in activations)


def misfit(network: Network, activations: Sequence[Tensor]) -> str | None:
    """Return what TensorRT serves, and what it got instead; None where these tensors fit."""
    fits, found, sizes = True, {}, sizes_of(network)
    for (name, shape), tensor in zip(network.activations.items(), activations, strict=True):
        found[name] = list(tensor.shape)
        fits &= len(shape) == tensor.ndim
        for wanted, size in zip(shape, tensor.shape, strict=False):
            least, _, most = sizes[wanted] if isinstance(wanted, str) else (wanted, 0, wanted)
            fits &= least <= size <= most
    if fits:
        x = activations[0]
        fits = x.numel() // x.shape[1] * network.widest < MOST_ELEMENTS
    if fits:
        return None
    (_, _, images), (least, _, most), (_, _, tokens) = (sizes[name] for name in "BHL")
    return (
        f"TensorRT was built for up to {images} images, {tokens} tokens, {least} to {most} latents "
        f"a side, and {MOST_ELEMENTS} elements a tensor; this call has {found}"
    )

"""The ways to compute a UNet call whose launches are counted: the rows of the modelled bench.

A new one is a function of a plan and a counter that returns the call, and an entry of BACKENDS.
What it launches through torch's operators counts by itself; a launch that torch does not see, it
reports to the counter (`Counter.launched`).
"""

from __future__ import annotations

import os
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ...compile.backends.aoti.compiler import compile_unit
from ...compile.backends.kernels.driver import load_kernels
from ...compile.backends.kernels.nvrtc import architecture, compile_kernels
from ...compile.backends.kernels.operations import Kernels
from ...compile.backends.kernels.units import unit_fn
from ...compile.backends.tensorrt.network import unet_network
from ...compile.jobs import CompiledUnits
from ...compile.session import Choice, Session
from ...compile.target import Target
from ...compile.units import UnitFn, describe
from ...config import Config
from ...errors import AccelError
from ...model.architecture import Architecture
from ...model.specs import Spec
from ...model.unet import UNet
from ...runtime.engine import Engine
from ..bench.stock import stock_unet
from . import floor
from .generated import GeneratedCode
from .launches import Counter, tensors_in

CARD = torch.device("cuda:0")

UNetCall = Callable[..., Tensor]
"""Computes one call from the `Inputs` of bench/measure.py."""


@dataclass(frozen=True)
class Plan:
    """The UNet and its precision."""

    architecture: Architecture
    dtype: torch.dtype

    def network(self) -> UNet:
        """Return a UNet on the pretend card, with weights of whatever values."""
        network = UNet(self.architecture).to(self.dtype)
        return network.to_empty(device=CARD).requires_grad_(False)


def _aoti(plan: Plan, counter: Counter) -> UNetCall:
    return _engine(plan, "aoti", Replaying(counter))


def _kernels(plan: Plan, counter: Counter) -> UNetCall:
    return _engine(plan, "kernels", Fused(counter))


def _eager(plan: Plan, counter: Counter) -> UNetCall:
    return _engine(plan, "eager", Session())


def _stock(plan: Plan, counter: Counter) -> UNetCall:
    return stock_unet(plan.architecture, dict(plan.network().named_parameters()))


def _tensorrt(plan: Plan, counter: Counter) -> UNetCall:
    """Return what reports the floor of a call: see floor.py."""
    network = unet_network(plan.architecture)

    def call(x: Tensor, *others: Tensor | None) -> Tensor:
        given = [tuple(t.shape) for t in (x, *others) if t is not None]
        activations = dict(zip(network.activations, given, strict=True))
        counter.launches += floor.launches(network, activations, x.element_size())
        return x

    return call


BACKENDS: dict[str, Callable[[Plan, Counter], UNetCall]] = {
    "aoti": _aoti,
    "kernels": _kernels,
    "eager": _eager,
    "stock": _stock,
    "tensorrt": _tensorrt,
}


def _engine(plan: Plan, backend: str, session: Session) -> UNetCall:
    """Return the call of an engine; a CUDA graph would launch the same kernels."""
    config = Config(backend=backend, graphs=False, store=Path(os.devnull, "none"))
    engine = Engine(plan.network(), config, session=session)
    engine.prepare()

    def call(*inputs: Tensor | None) -> Tensor:
        out = engine.compute(*inputs)  # type: ignore[arg-type]
        if engine.status.backend != backend:  # something has failed, and other code computed it
            raise AccelError(f"{backend} does not serve in the laboratory: {engine.status.reason}")
        return out

    return call


class OneBackend(Session):
    """A session that is its own backend, the only one there is, and stores nothing."""

    name = ""
    channels_last = True

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def choose(self, *_: Any, **__: Any) -> Choice:
        """Choose this session itself, as the only backend there is."""
        return Choice(self, ())  # type: ignore[arg-type]

    def backend(self, name: str) -> Any:
        """Return this session, which is its own backend."""
        return self

    def kept_bytes(self, *_: Any) -> None:
        """Return that nothing is stored."""
        return

    def make(self, target: Target, *_: Any) -> CompiledUnits:
        """Return the units of `target`."""
        raise NotImplementedError


class Fused(OneBackend):
    """Serves units by the fused kernels, unchecked: on the pretend card they compute nothing."""

    name = "kernels"

    def make(self, target: Target, *_: Any) -> CompiledUnits:
        """Compile the kernels, and count what each operation is given."""
        code = compile_kernels(architecture(target.device), target.dtype)
        kernels: Any = CountedKernels(
            load_kernels(code, target.device, target.dtype), self._counter
        )
        return {unit: unit_fn(unit, kernels) for unit in target.units}


class CountedKernels:
    """The operations of the backend `kernels`, each of which a counter is told of."""

    def __init__(self, kernels: Kernels, counter: Counter) -> None:
        self._kernels, self._counter = kernels, counter

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._kernels, name)

        def counted(*given: Any, **named: Any) -> Any:
            with _disable_current_modes():  # views that it makes are not operators of its own
                result = operation(*given, **named)
            read = tensors_in((given, named))
            addresses = {t.data_ptr() for t in read}
            written = [t for t in tensors_in(result) if t.data_ptr() not in addresses]
            self._counter.operation(name, read, written)
            return result

        return counted


class Replaying(OneBackend):
    """Serves units by replaying the code that is generated for them when they are asked for."""

    name = "aoti"

    def make(self, target: Target, *_: Any) -> CompiledUnits:
        """Generate the code of every unit of `target`; say on standard error how far that is."""
        units = {}
        for number, unit in enumerate(target.units, 1):
            began = time.monotonic()
            units[unit] = self._unit(generated_code(unit, target.dtype))
            seconds = time.monotonic() - began
            what = f"code {number} of {len(target.units)}: {describe(unit)}"
            print(f"{what}, {seconds:.0f} s", file=sys.stderr, flush=True)
        return units

    def _unit(self, code: GeneratedCode) -> UnitFn:
        return lambda inputs: code(inputs, self._counter.launched)[0]


_ONLY_SOURCES = {
    "aot_inductor.package_cpp_only": True,
    # minutes of the C++ compiler for nothing: headers for it, and what vectors it knows
    "aot_inductor.precompile_headers": False,
    "cpp.vec_isa_ok": False,
}


class _Generated(Exception):  # no error: how the compiler is left
    pass


def generated_code(unit: Spec, dtype: torch.dtype) -> GeneratedCode:
    """Return the code that `compile_unit` generates; leave before the C++ compiler would run."""
    import torch._inductor

    package = torch._inductor.aoti_compile_and_package

    def generate(*args: Any, package_path: str, inductor_configs: Any, **more: Any) -> None:
        options = {**inductor_configs, **_ONLY_SOURCES}
        package(*args, package_path=package_path, inductor_configs=options, **more)
        with zipfile.ZipFile(package_path) as archive:
            (source,) = (n for n in archive.namelist() if n.endswith(".wrapper.cpp"))
            raise _Generated(archive.read(source).decode())

    replaced = mock.patch.object(torch._inductor, "aoti_compile_and_package", generate)
    with TemporaryDirectory() as folder, replaced:
        try:
            compile_unit(unit, dtype, CARD, Path(folder, "unit"))
        except _Generated as generated:
            return GeneratedCode(str(generated))
    raise AccelError(f"no code was generated for {describe(unit)}")

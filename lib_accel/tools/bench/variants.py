"""The rows of the ladder. Each builds a call over the same weights and inputs, or says why it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...compile.jobs import Job
from ...config import Config
from ...errors import BackendUnavailable
from ...model.architecture import Architecture
from ...model.unet import UNet
from ...runtime.engine import Engine
from .control import driven
from .measure import Call
from .reference import Reference


@dataclass(frozen=True)
class Setup:
    """What every variant is given. `inputs`: x, timesteps, context, y."""

    architecture: Architecture
    donor: UNet
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]
    config: Config
    wait: Callable[[Job], object] = Job.wait  # for the compiler

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.donor.named_parameters())

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device


def _reference(setup: Setup, sdpa: bool) -> Call:
    module = Reference(setup.architecture, setup.parameters, sdpa)
    return lambda: module(*setup.inputs)


def _torch_compile(setup: Setup, mode: str) -> Call:
    module = Reference(setup.architecture, setup.parameters, sdpa=True)
    if setup.device.type == "cuda":
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(module, mode=mode)
    compiled(*setup.inputs)
    return lambda: compiled(*setup.inputs).clone()


def _ready(setup: Setup, backend: str, graphs: bool) -> Engine:
    if graphs and setup.device.type != "cuda":
        raise BackendUnavailable(f"CUDA graphs need a CUDA device; this is {setup.device.type}")
    engine = Engine(setup.donor, replace(setup.config, backend=backend, graphs=graphs))
    engine.prepare()
    if engine.job:
        setup.wait(engine.job)
        engine.take_up()
    status = engine.status
    if status.backend != backend:
        raise BackendUnavailable(status.reason or f"{backend} is not available")
    return engine


def _engine(setup: Setup, backend: str, graphs: bool = False) -> Call:
    engine = _ready(setup, backend, graphs)
    return lambda: engine.compute(*setup.inputs)


def _driven(setup: Setup, backend: str, controls: int) -> Call:
    return driven(_ready(setup, backend, graphs=False), setup.inputs, controls)


def _openvino(setup: Setup) -> Call:
    """OpenVINO's runtime over the same weights, converted from diffusers' UNet at fixed shapes."""
    if setup.device.type != "cpu":
        raise BackendUnavailable("OpenVINO is compared on the CPU only")
    try:
        import openvino
    except ImportError as e:
        raise BackendUnavailable(f"OpenVINO is not installed ({e}); pip install openvino") from e
    from .openvino import openvino_call

    weights = {
        name: nn.Parameter(p.float(), requires_grad=False) for name, p in setup.parameters.items()
    }
    return openvino_call(
        openvino, Reference(setup.architecture, weights, sdpa=True), setup.donor.dtype, setup.inputs
    )


Builder = Callable[[Setup], Call]

VARIANTS: dict[str, Builder] = {
    "reference": lambda s: _reference(s, sdpa=False),
    "reference+sdpa": lambda s: _reference(s, sdpa=True),
    "compile": lambda s: _torch_compile(s, "default"),
    "compile-max-autotune": lambda s: _torch_compile(s, "max-autotune"),
    "openvino": _openvino,
    "eager": lambda s: _engine(s, "eager"),
    "eager+graphs": lambda s: _engine(s, "eager", graphs=True),
    "jit": lambda s: _engine(s, "jit"),
    "aoti": lambda s: _engine(s, "aoti"),
    "aoti+graphs": lambda s: _engine(s, "aoti", graphs=True),
    "aoti+blocks": lambda s: _driven(s, "aoti", controls=0),
    "eager+control": lambda s: _driven(s, "eager", controls=1),
    "aoti+control": lambda s: _driven(s, "aoti", controls=1),
}

DEFAULT = tuple(
    name
    for name in VARIANTS
    if name not in ("compile-max-autotune", "jit", "aoti+blocks", "eager+control", "aoti+control")
)


def build(name: str, setup: Setup) -> tuple[Call, float]:
    """The call and the seconds its making took, compilers included. Raises BackendUnavailable with the reason."""
    start = time.perf_counter()
    call = VARIANTS[name](setup)
    return call, time.perf_counter() - start

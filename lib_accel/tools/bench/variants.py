"""The rows of the ladder: each builds a call of the same UNet with the same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ...compile.jobs import Job
from ...compile.session import Session
from ...config import Config
from ...errors import BackendUnavailable
from ...model.architecture import Architecture
from ...model.unet import UNet
from ...runtime.engine import Engine
from .control import driven
from .measure import Call, Inputs
from .peers import NoDiffusers, Reference, compiled_call, openvino_call, widened
from .stock import stock_unet
from .weights import WeightCopy


@dataclass(frozen=True)
class Setup:
    """What a row is built from. `wait` waits for a compiler."""

    architecture: Architecture
    weights: WeightCopy
    inputs: Inputs
    config: Config
    session: Session
    wait: Callable[[Job], object] = Job.wait

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device


@dataclass(frozen=True)
class Built:
    """A row that is ready. `release` frees memory that it holds between calls (CUDA graphs).

    `note` returns what one must know to read its numbers, or nothing.
    """

    call: Call
    release: Callable[[], object] = lambda: None
    note: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Variant:
    """A kind of row. Rows of one `group` share a copy of the weights, in the layout of its code.

    `default` puts it into the ladder that is measured without `--variants`.
    """

    group: str
    build: Callable[[Setup], Built]
    default: bool = True


WITHOUT_DIFFUSERS = "diffusers is not installed: this is our own plain UNet in its place"


def _reference(setup: Setup, sdpa: bool) -> Built:
    try:
        module = Reference(setup.architecture, setup.weights.parameters, sdpa)
    except NoDiffusers:
        return replace(_stock(setup, sdpa), note=lambda: WITHOUT_DIFFUSERS)
    return Built(lambda: module(*setup.inputs))


def _stock(setup: Setup, sdpa: bool = False) -> Built:
    unet = stock_unet(setup.architecture, setup.weights.parameters, sdpa)
    return Built(lambda: unet(*setup.inputs))


def _torch_compile(setup: Setup, mode: str) -> Built:
    architecture, parameters, note = setup.architecture, setup.weights.parameters, None
    try:
        module: nn.Module = Reference(architecture, parameters, sdpa=True)
    except NoDiffusers:
        module, note = UNet(architecture).adopt(parameters), WITHOUT_DIFFUSERS
    call = compiled_call(module, setup.inputs, mode)
    return Built(call, note=lambda: note)


def _openvino(setup: Setup) -> Built:
    if setup.device.type != "cpu":
        raise BackendUnavailable("OpenVINO is compared on the CPU only")
    weights, dtype = widened(setup.weights.parameters), setup.weights.unet.dtype
    module = Reference(setup.architecture, weights, sdpa=True)
    given = [t for t in setup.inputs if t is not None]
    return Built(openvino_call(module, dtype, given))


def _ready(setup: Setup, backend: str, graphs: bool) -> Engine:
    if graphs and setup.device.type != "cuda":
        raise BackendUnavailable(f"CUDA graphs need a CUDA device; this is {setup.device.type}")
    config = replace(setup.config, backend=backend, graphs=graphs)
    engine = Engine(setup.weights.unet, config, session=setup.session)
    engine.prepare()
    if engine.job:
        setup.wait(engine.job)
        engine.take_up()
    status = engine.status
    if status.backend != backend:
        raise BackendUnavailable(status.reason or f"{backend} is not available")
    return engine


def _engine(setup: Setup, backend: str, graphs: bool = False) -> Built:
    engine = _ready(setup, backend, graphs)

    def note() -> str | None:
        if not graphs or engine.graphs is None or engine.graphs.captures:
            return None
        return engine.graphs.refused or "nothing was recorded: launches do not bound this call"

    return Built(lambda: engine.compute(*setup.inputs), engine.memory.give_up, note)


def _driven(setup: Setup, backend: str, controls: int) -> Built:
    return Built(driven(_ready(setup, backend, graphs=False), setup.inputs, controls))


VARIANTS: dict[str, Variant] = {
    "stock": Variant("stock", _stock),
    "stock+sdpa": Variant("stock", lambda s: _stock(s, sdpa=True), default=False),
    "reference": Variant("reference", lambda s: _reference(s, sdpa=False)),
    "reference+sdpa": Variant("reference", lambda s: _reference(s, sdpa=True)),
    "compile": Variant("compile", lambda s: _torch_compile(s, "default")),
    "compile-max-autotune": Variant(
        "compile", lambda s: _torch_compile(s, "max-autotune"), default=False
    ),
    "openvino": Variant("openvino", _openvino),
    "eager": Variant("eager", lambda s: _engine(s, "eager")),
    "eager+graphs": Variant("eager", lambda s: _engine(s, "eager", graphs=True)),
    "kernels": Variant("kernels", lambda s: _engine(s, "kernels")),
    "kernels+graphs": Variant("kernels", lambda s: _engine(s, "kernels", graphs=True)),
    "jit": Variant("jit", lambda s: _engine(s, "jit"), default=False),
    "aoti": Variant("aoti", lambda s: _engine(s, "aoti")),
    "aoti+graphs": Variant("aoti", lambda s: _engine(s, "aoti", graphs=True)),
    "tensorrt": Variant("tensorrt", lambda s: _engine(s, "tensorrt"), default=False),
    "tensorrt+graphs": Variant(
        "tensorrt", lambda s: _engine(s, "tensorrt", graphs=True), default=False
    ),
    "aoti+blocks": Variant("aoti", lambda s: _driven(s, "aoti", controls=0), default=False),
    "eager+control": Variant("eager", lambda s: _driven(s, "eager", controls=1), default=False),
    "aoti+control": Variant("aoti", lambda s: _driven(s, "aoti", controls=1), default=False),
}

DEFAULT = tuple(name for name, variant in VARIANTS.items() if variant.default)


def build(name: str, setup: Setup) -> tuple[Built, float]:
    """Build a row; return it and the seconds that took, compilers included.

    Raises BackendUnavailable with the reason.
    """
    start = time.perf_counter()
    built = VARIANTS[name].build(setup)
    return built, time.perf_counter() - start

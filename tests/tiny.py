"""A UNet with every kind of layer and five distinct units, and relatives that share its units."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.compile.machine import probe
from lib_accel.compile.session import Session
from lib_accel.compile.target import Target
from lib_accel.compile.units import units_of
from lib_accel.config import Config
from lib_accel.model import presets
from lib_accel.model.architecture import Architecture
from lib_accel.model.presets import Structure
from lib_accel.model.random_weights import random_weights
from lib_accel.model.specs import Spec
from lib_accel.model.unet import UNet
from lib_accel.runtime import engine as runtime_engine
from lib_accel.runtime.status import Status

MIB = 1024**2
CONTEXT = 16  # channels of the prompt
FAMILY: dict[str, Any] = {
    "model_channels": 64,  # two for each group: normalising one alone would hide the time embedding
    "channel_mult": (1, 1),  # equal widths on both levels: few distinct residual blocks
    "depths": (1, 0),
    "middle_depth": 1,
    "context_dim": CONTEXT,
    "linear": False,
    "res_blocks": 1,
}


def family(**changes: Any) -> Architecture:
    return Structure(**(FAMILY | changes)).build()


TINY = family()
INPAINTING = family(in_channels=9)  # the same units
WITH_Y = family(adm_channels=12)  # another embedding, the other four units are the same
FAMILIES = {
    "SD1": presets.sd1(32, context_dim=24),
    "SD1 inpainting": presets.sd1(32, in_channels=9, context_dim=24),
    "SD2": presets.sd2(64, context_dim=24),
    "SDXL": presets.sdxl(64, context_dim=24, adm_channels=40),
    "SDXL refiner": presets.sdxl_refiner(64, context_dim=24, adm_channels=40),
}
"""Every family at its narrowest, with the layers of the real one."""

RELATIVE = family(context_dim=24)  # another transformer, the other four units are the same


def donor(
    architecture: Architecture = TINY, seed: int = 0, dtype: torch.dtype = torch.float32
) -> UNet:
    """Stands for the host's UNet: its own parameters under the checkpoint's names."""
    return UNet(architecture).adopt(random_weights(architecture, dtype, seed))


class Engine(runtime_engine.Engine):
    """One that keeps its network alive."""

    def __init__(self, network: nn.Module, *given: Any, **named: Any):
        super().__init__(network, *given, **named)
        self.network = network


def engine(
    store: Path, architecture: Architecture = TINY, unet: nn.Module | None = None, **options: Any
) -> Engine:
    """With `machine=`, on a machine that differs from this one by those fields."""
    changes, session = options.pop("machine", {}), options.pop("session", None) or Session()
    return Engine(
        unet or donor(architecture),
        Config(store=store, **options),
        session=session,
        machine=lambda device: replace(probe(device), **changes),
    )


@dataclass(frozen=True)
class Built:
    store: Path
    status: Status
    fractions: list[float]  # of the progress, as another thread saw it


def build(store: Path) -> Built:
    """Compile TINY's artifact into the store, waiting for it."""
    e, fractions, over = engine(store, backend="aoti", blocking=True), [], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            job = e.job
            fraction = job.progress().fraction if job else None
            if fraction is not None:
                fractions.append(fraction)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        e.prepare()
    finally:
        over.set()
        watcher.join()
    return Built(store, e.status, fractions)


def target(
    units: Iterable[Spec] = units_of(TINY), dtype: torch.dtype = torch.float32, **machine: Any
) -> Target:
    """For jobs without an engine."""
    cpu = torch.device("cpu")
    return Target(tuple(units), dtype, cpu, replace(probe(cpu), **machine))


Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


def inputs(
    architecture: Architecture = TINY,
    batch: int = 2,
    height: int = 16,
    width: int = 16,
    length: int = 77,
    seed: int = 1,
) -> Inputs:
    """`x, timesteps, context, y` of a call."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, architecture.in_channels, height, width, generator=g)
    timesteps = torch.rand(batch, generator=g) * 999
    context = torch.randn(batch, length, architecture.context_dim, generator=g)
    y = (
        torch.randn(batch, architecture.adm_channels, generator=g)
        if architecture.adm_channels
        else None
    )
    return x, timesteps, context, y


@torch.no_grad()
def exact(module: nn.Module, architecture: Architecture, given: Inputs) -> Tensor:
    """The same call in float64, from copies of the module's weights as they are now."""
    weights = {
        name: nn.Parameter(p.detach().double(), requires_grad=False)
        for name, p in module.named_parameters()
    }
    x, timesteps, context, y = given
    return UNet(architecture).adopt(weights)(
        x.double(), timesteps, context.double(), None if y is None else y.double()
    )


@torch.no_grad()
def clean(e: Engine, *given: Any) -> Tensor:
    """What the engine answers where there is no compiled code, to the bit."""
    return e.clean(*given)


def error(value: Tensor, reference: Tensor) -> float:
    return ((value.double() - reference).norm() / reference.norm()).item()


def check(e: Engine, given: Inputs) -> None:
    """Check the engine against float64: at most 1.25 times the error of torch's own kernels.

    Errors below 1e-6 are float32's rounding here.
    """
    architecture = e.architecture
    reference = exact(e.network, architecture, given)
    own = error(clean(e, *given), reference)
    out = e.compute(*given)
    assert out.shape == reference.shape
    assert out.dtype == given[0].dtype
    assert error(out, reference) <= 1.25 * max(own, 1e-6), f"torch itself: {own:.2e}"


def ready(store: Path, architecture: Architecture = TINY, unet: nn.Module | None = None) -> Engine:
    """With what is in the store, and no compiler."""
    e = engine(store, architecture, unet, compile=False)
    e.prepare()
    assert e.status.state == "ready", e.status.reason
    return e


def served(e: Engine, given: Inputs) -> Tensor:
    """The answer, which compiled code must have given."""
    before = e.counters.accelerated_calls
    out = e.compute(*given)
    assert e.counters.accelerated_calls == before + 1
    return out


def addresses(module: nn.Module) -> list[int]:
    return [p.data_ptr() for p in module.parameters()]


def block_inputs(e: Engine, given: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """h, emb and context for any block."""
    x, timesteps, context, _ = given
    return x.mean(1, keepdim=True).expand(-1, 64, -1, -1), e.clean.embed(timesteps, None), context

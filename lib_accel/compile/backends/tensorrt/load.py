"""Reads engines, makes their kernels for this card, and checks what they compute.

All of it takes seconds, the first time on a card up to half a minute, and runs in the thread of a
job while images are made.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import AccelError, ArtifactRejected
from ....model.architecture import Architecture
from ....model.precision import relative_error, wider
from ....model.random_weights import random_weight
from ....model.specs import SpatialTransformer, Spec
from ....model.unet import UNet
from ....store import ArtifactStore, recipe_key
from ....store.private_folder import temporary_folder
from ...accuracy import Verdict, check_unit
from ...jobs import CompiledUnits
from ...target import Target
from .child import read_engine
from .constants import ConstantsJob, TwoForms, timed
from .engines import Wanted
from .libraries import load
from .run import KERNELS_S, Engine, EngineFn

CHECK_SIZES = ((2, 16, 16, 77), (1, 24, 8, 154), (3, 9, 11, 77))
"""(B, H, W, L) of a whole UNet, H and W in latents: square, wide, and odd at every level."""

KERNELS_FILE = "kernels"


def load_engines(
    target: Target,
    store: ArtifactStore,
    wanted: Mapping[str, Wanted],
    report: Callable[[str], None],
) -> CompiledUnits:
    """Return the engines of `target` as units. What `report` raises ends it.

    Raises ArtifactRejected where an engine does not fit or is inaccurate, and where TensorRT's
    libraries do not load.
    """
    try:
        trt = load()
    except (ImportError, OSError) as error:
        raise ArtifactRejected(f"TensorRT for RTX does not load: {error}") from error
    units: dict[Spec | Architecture, Any] = {}
    for key, each in wanted.items():
        report(f"preparing {each.name} for this card")
        kernels = Kernels(store, each, target)
        engine = Engine(trt, read_engine(store, key), kernels.read())
        fn = _function(engine, each, functools.partial(kernels.keep_soon, engine))
        verdict = _check(fn, each.of, target)
        if not verdict.passed:
            raise ArtifactRejected(f"the engine of {each.name} is inaccurate: {verdict}", key)
        units[each.of] = fn
        if isinstance(each.of, Architecture):
            units[each.of] = _two_forms(trt, fn, each, target)
    return units


def _two_forms(trt: Any, fn: EngineFn, wanted: Wanted, target: Target) -> TwoForms:
    def start(weights: Sequence[Tensor]) -> ConstantsJob:
        job = ConstantsJob(trt, wanted, weights, target)
        job.start()
        return job

    return TwoForms(fn, start, timed)


def _function(engine: Engine, wanted: Wanted, on_size: Callable[[], object]) -> EngineFn:
    of = wanted.of
    channels = of.channels if isinstance(of, SpatialTransformer) else of.out_channels  # type: ignore[union-attr]
    return EngineFn(engine, wanted.network, channels, not isinstance(of, Architecture), on_size)


def _check(fn: EngineFn, of: Architecture | Spec, target: Target) -> Verdict:
    if isinstance(of, Architecture):
        return check_whole(of, fn, target.dtype, target.device)
    count = len(fn.activations)

    def contiguous(tensors: list[Tensor]) -> Tensor:
        return fn([*tensors[:count], *(weight.contiguous() for weight in tensors[count:])])

    return check_unit(of, contiguous, target.dtype, target.device, alone=False)


def check_whole(
    architecture: Architecture,
    fn: Callable[[list[Tensor]], Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Verdict:
    """Compare a `WholeFn` with the clean UNet at each of CHECK_SIZES, as `check_unit` does.

    Weights of one shape share their memory: all of SDXL's would take 5 GB beside those of images.
    """
    unet, generator = UNet(architecture), torch.Generator().manual_seed(1)
    weights: dict[str, nn.Parameter] = {}
    by_shape: dict[tuple[int, ...], nn.Parameter] = {}
    for name, empty in unet.named_parameters():
        shape = tuple(empty.shape)
        if shape not in by_shape:
            values = random_weight(name, empty.shape, generator).to(device, dtype)
            by_shape[shape] = nn.Parameter(values, requires_grad=False)
        weights[name] = by_shape[shape]
    unet.adopt(weights)
    compiled, eager = [], []
    with torch.no_grad():
        for size in CHECK_SIZES:
            inputs = _inputs(architecture, size, generator, device, dtype)
            unet.compute_dtype = wider(dtype, device)
            reference = unet(*(t.to(unet.compute_dtype) for t in inputs))
            unet.compute_dtype = dtype
            eager.append(relative_error(unet(*inputs), reference))
            compiled.append(relative_error(fn([*inputs, *weights.values()]), reference))
    return Verdict(tuple(compiled), tuple(eager))


def _inputs(
    a: Architecture,
    size: tuple[int, int, int, int],
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    batch, height, width, length = size
    shapes = [(batch, a.in_channels, height, width), (batch, length, a.context_dim)]
    if a.adm_channels is not None:
        shapes.append((batch, a.adm_channels))
    x, *others = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    timesteps = torch.linspace(1, 999, batch, device=device)
    return [x, timesteps, *others]


class Kernels:
    """The kernels that TensorRT has made of an engine for this card, in the store.

    It makes some when an engine is loaded, and more in the background for each new size.
    """

    def __init__(self, store: ArtifactStore, wanted: Wanted, target: Target):
        recipe = wanted.recipe
        machine = {**recipe["machine"], "card": target.machine.device_name}
        self._recipe = {**recipe, "machine": machine}
        self._store, self._wanted = store, wanted
        self._kept = b""
        self._timer: threading.Timer | None = None

    def read(self) -> bytes:
        """Return what was kept; nothing where there is none that is good."""
        with contextlib.suppress(AccelError, OSError):
            if artifact := self._store.get(recipe_key(self._recipe)):
                self._kept = (artifact.path / KERNELS_FILE).read_bytes()
        return self._kept

    def keep_soon(self, engine: Engine) -> None:
        """Keep the kernels of `engine` when those for its present sizes should be made."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(KERNELS_S, lambda: self.keep(engine.kernels))
        self._timer.daemon = True
        self._timer.start()

    def keep(self, kernels: bytes) -> None:
        """Keep them for the next start, where they are others and the store can be written."""
        if self._store.readonly or kernels in (b"", self._kept):
            return
        with (
            contextlib.suppress(AccelError, OSError),  # it saves seconds, nothing depends on it
            tempfile.TemporaryDirectory(prefix="accel-compile-", dir=temporary_folder()) as folder,
        ):
            file = Path(folder, KERNELS_FILE)
            file.write_bytes(kernels)
            self._store.discard(recipe_key(self._recipe))
            self._store.put(self._recipe, {KERNELS_FILE: file}, name=self._wanted.family)
            self._kept = kernels

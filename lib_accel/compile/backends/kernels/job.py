"""Compiles the kernels, and checks every unit that they compute, beside the making of images."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch

from ....config import MIB
from ....errors import ArtifactRejected, BackendUnavailable, CompileFailed, NoRoom, StoreError
from ....model import specs
from ....store import Artifact, ArtifactStore
from ....store.manifest import BUILT_HERE
from ....store.private_folder import temporary_folder
from ...accuracy import Verdict, check_unit
from ...jobs import CompiledUnits, Job, Parts
from ...machine import RESERVE, free_memory, has_room, waits_for
from ...target import Target
from ...units import UnitFn, UnitModule, describe
from . import nvrtc
from .driver import load_kernels
from .units import unit_fn

CODE_FILE = "kernels"
"""The one file of an artifact: cubins, or PTX for cards that are newer than NVRTC."""

ACTIVATIONS = 256 * MIB
"""Video memory that checking a unit takes besides its weights."""

Recipes = Mapping[str, tuple[specs.Spec, dict[str, Any]]]
"""Units, and all that each depends on, by the keys of their artifacts."""

_log = logging.getLogger(__name__)


class KernelJob(Job):
    """Adds to `known` the units of `recipes` that it lacks, each as soon as it is checked.

    `known` holds units of this process by key. What is made is kept in `store`, where that is
    possible. `arrived`: artifacts by key that came unchecked. Their code is that of every unit.
    """

    def __init__(
        self,
        target: Target,
        store: ArtifactStore,
        recipes: Recipes,
        known: MutableMapping[str, UnitFn],
        arrived: Mapping[str, Artifact],
    ):
        super().__init__(f"accel-kernels-{target.key[:8]}", target)
        self._arrived = arrived
        self._store, self._recipes, self._known = store, recipes, known
        self._keeps = not store.readonly

    def work(self) -> CompiledUnits:
        """Make what is missing.

        Raises CompileFailed, NoRoom, ArtifactRejected where a unit is inaccurate.
        """
        target = self.target
        missing = {key: each for key, each in self._recipes.items() if key not in self._known}
        self.parts = Parts({key: _seconds(unit) for key, (unit, _) in missing.items()})
        self.report("compiling the fused kernels")
        try:
            code = self._code()
            kernels = load_kernels(code, target.device, target.dtype)
        except BackendUnavailable as error:
            raise CompileFailed(str(error)) from error
        for key, (unit, _) in missing.items():
            self._wait_for_memory(unit)
            self.report(f"checking {describe(unit)}")
            self.parts.begin(key)
            began, fn = time.monotonic(), unit_fn(unit, kernels)
            verdict = self._checked(unit, fn)
            self._known[key] = fn
            self._keep(code, key, verdict)
            self.parts.finish(key, time.monotonic() - began)
            self.compiled += key not in self._arrived
        return {unit: self._known[key] for key, (unit, _) in self._recipes.items()}

    def _code(self) -> bytes:
        for artifact in self._arrived.values():
            return (self._store.place(artifact) / CODE_FILE).read_bytes()
        arch = nvrtc.architecture(self.target.device)
        return nvrtc.compile_kernels(arch, self.target.dtype)

    def _checked(self, unit: specs.Spec, fn: UnitFn) -> Verdict:
        """Return the verdict on a unit, which has passed."""
        name = describe(unit)
        try:
            verdict = check_unit(unit, fn, self.target.dtype, self.target.device, alone=False)
        except torch.cuda.OutOfMemoryError as error:
            raise NoRoom(f"no video memory is left to check {name}: {error}") from error
        except RuntimeError as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CompileFailed(f"{name} does not run with the fused kernels: {said}") from error
        if not verdict.passed:
            raise ArtifactRejected(f"{name} is inaccurate with the fused kernels: {verdict}")
        return verdict

    def _keep(self, code: bytes, key: str, verdict: Verdict) -> None:
        """Put a unit into the store; where that fails, say so once and go on without."""
        if not self._keeps:
            return
        try:
            if key in self._arrived:
                self._store.record(self._arrived[key], verdict.to_dict())
            else:
                keep(self._store, code, self._recipes, key, verdict, self.target.name)
        except (OSError, StoreError, ArtifactRejected) as error:
            self._keeps = False
            _log.warning("The fused kernels are compiled again after the next start: %s", error)

    def _wait_for_memory(self, unit: specs.Spec) -> None:
        """Wait until checking a unit leaves RESERVE free."""
        device = self.target.device
        weights = sum(shape.numel() for shape in UnitModule(unit).shapes())
        needed = weights * self.target.dtype.itemsize + ACTIVATIONS
        while not has_room(device, needed):
            self.waits_for_memory = True
            self.report(waits_for(free_memory(device) - RESERVE, needed))
            self._cancelled.wait(0.5)
        self.waits_for_memory = False


def keep(
    store: ArtifactStore,
    code: bytes,
    recipes: Recipes,
    key: str,
    verdict: Verdict | None,
    name: str,
    origin: str = BUILT_HERE,
) -> None:
    """Put the unit of a key into `store`; `name` is its model family.

    Raises OSError, StoreError, or ArtifactRejected where there is no private temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="accel-kernels-", dir=temporary_folder()) as folder:
        file = Path(folder, CODE_FILE)
        file.write_bytes(code)
        made_with = {"nvrtc": nvrtc.version()}
        files, (_, recipe) = {CODE_FILE: file}, recipes[key]
        measured = verdict.to_dict() if verdict else None
        store.put(recipe, files, measured, recipes.keys(), name, made_with, origin)


def _seconds(unit: specs.Spec) -> float:
    """Return about how long checking a unit takes: most of it goes into drawing weights."""
    return 0.3 + 1e-8 * sum(shape.numel() for shape in UnitModule(unit).shapes())

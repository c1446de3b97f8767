"""The backend `kernels`: its choice, its jobs, and the units that this process has.

An artifact is the machine code of all kernels, for one kind of card and one dtype, with the
accuracy of one unit that they compute. So the same code lies in the store once for each unit, and
units are listed, exported and checked as those of other backends are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from ....config import Config
from ....errors import ArtifactRejected, BackendUnavailable, CompileFailed, StoreError
from ....model import specs
from ....store import Artifact, ArtifactStore, recipe_key
from ....store.summary import bytes_of
from ...jobs import CompiledUnits, Job, stop
from ...source_digest import source_digest
from ...target import Target
from ...toolchain import BFLOAT16_CARD, NO_CUDNN
from ...units import UnitFn, describe
from ..aoti.backend import passed
from . import nvrtc
from .driver import load_kernels
from .job import CODE_FILE, KernelJob, Recipes
from .operations import Kernels
from .units import unit_fn

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SOURCES = ("compile/backends/kernels/units.py",)
"""The file that puts kernels together; what it imports shapes units as well."""


class FusedKernels:
    """The backend `kernels`. It owns the jobs that run and the code that is loaded."""

    name = "kernels"
    channels_last = True
    optional = False
    cuda_only = True
    quick = True

    def __init__(self) -> None:
        self._jobs: WeakValueDictionary[tuple[Path, str, str], KernelJob] = WeakValueDictionary()
        self._starting, self._loading = threading.Lock(), threading.Lock()
        self._units: dict[str, dict[str, UnitFn]] = {}  # by device and key, checked
        self._kernels: dict[tuple[str, str], Kernels] = {}  # by device and the digest of the code

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Refuse what cannot run these kernels, and where they can be neither loaded nor made.

        A store that keeps nothing is no reason: they are made anew within seconds.
        """
        if why := _cannot_run(target):
            return why
        recipes, known = recipes_of(target), self._known(target)
        missing = [key for key in recipes if key not in known and not _is_stored(store, key)]
        if not missing:
            return None
        if not config.compile:
            return (
                f"{len(missing)} of {len(recipes)} units are missing and compiling is switched "
                "off: import them (python3 -m lib_accel store import) or allow compiling"
            )
        try:
            nvrtc.architecture(target.device)
        except (BackendUnavailable, CompileFailed) as error:
            return str(error)
        return None

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits | Job:
        """Return the units of `target` where all are known or stored, else the job for the others.

        It also checks those that came unchecked. Raises ArtifactRejected with the key of the
        artifact that must not serve.
        """
        recipes, known = recipes_of(target), self._known(target)
        arrived: dict[str, Artifact] = {}
        with self._loading:
            for key, (unit, _) in recipes.items():
                if key in known or (artifact := _stored(store, key)) is None:
                    continue
                if artifact.verdict is None:
                    arrived[key] = artifact
                    continue
                known[key] = unit_fn(unit, self._load(store, artifact, unit, target))
        if all(key in known for key in recipes):
            return {unit: known[key] for key, (unit, _) in recipes.items()}
        with self._starting:
            name = store.root, target.key, str(target.device)
            job = self._jobs.get(name)
            if job is None or job.done or job.cancelled:
                job = KernelJob(target, store, recipes, known, arrived)
                self._jobs[name] = job
                job.start()
            return job

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return what the units of `target` take in `store`; None where one of them is missing."""
        return bytes_of(map(store.entry, recipes_of(target)))

    def keys(self, target: Target) -> list[str]:
        """Return the keys of the units, where the kernels can serve at all."""
        return [] if _cannot_run(target) else [*recipes_of(target)]

    def cancel(self) -> list[Target]:
        """Stop every job. Return what they were for."""
        return stop(self._jobs.values())

    def _known(self, target: Target) -> dict[str, UnitFn]:
        return self._units.setdefault(str(target.device), {})

    def _load(
        self, store: ArtifactStore, artifact: Artifact, unit: specs.Spec, target: Target
    ) -> Kernels:
        """Load the code of an artifact, or return what was loaded from the same code before."""
        what = f"artifact {artifact.key[:12]}"
        if not passed(artifact):
            raise ArtifactRejected(
                f"{what} has no accuracy check for {describe(unit)}; it was never allowed to serve",
                artifact.key,
            )
        try:
            code = (store.place(artifact) / CODE_FILE).read_bytes()
            name = str(target.device), hashlib.sha256(code).hexdigest()
            if name not in self._kernels:
                self._kernels[name] = load_kernels(code, target.device, target.dtype)
            return self._kernels[name]
        except (OSError, ArtifactRejected, BackendUnavailable) as error:
            raise ArtifactRejected(f"{what} does not load: {error}", artifact.key) from error


def recipes_of(target: Target) -> Recipes:
    """Return the recipes of the units of `target` by the keys of their artifacts.

    The version of NVRTC is not in it: its code runs on the card that it is for, or is refused.
    """
    own = {"backend": FusedKernels.name, "kernels": _digest()}
    units = *target.units, *target.upsamplings
    recipes = ((unit, {**target.recipe(unit), **own}) for unit in units)
    return {recipe_key(recipe): (unit, recipe) for unit, recipe in recipes}


@functools.cache
def _digest() -> str:
    """Return a digest of the kernels and of the Python that puts them together; read once."""
    texts = [source_digest(SOURCES).encode()]
    texts += [text.encode() for text in nvrtc.sources().values()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _cannot_run(target: Target) -> str | None:
    """Return why the device cannot run these kernels in this dtype, whoever has made them."""
    machine, dtype = target.machine, str(target.dtype).removeprefix("torch.")
    if machine.device_type != "cuda":
        return f"the fused kernels run on NVIDIA's cards alone, not on {machine.device_name}"
    if torch.version.hip:
        return f"{machine.device_name} is an AMD card; the fused kernels are not made for these yet"
    if "[ZLUDA]" in machine.device_name:
        return f"{machine.device_name}: ZLUDA does not load code that is made for NVIDIA's cards"
    if not torch.backends.cudnn.enabled:
        return NO_CUDNN
    if target.dtype not in DTYPES:
        return f"the fused kernels compute float16, bfloat16 and float32, not {dtype}"
    capability = tuple(map(int, machine.capability.split(".")))
    if target.dtype == torch.bfloat16 and capability < BFLOAT16_CARD:
        return (
            f"{machine.device_name} has compute capability {machine.capability}; "
            "the fused kernels compute bfloat16 from 8.0 on, float16 also on this card"
        )
    return None


def _is_stored(store: ArtifactStore, key: str) -> bool:
    with contextlib.suppress(StoreError):
        entry = store.entry(key)
        return entry is not None and not entry.foreign
    return False


def _stored(store: ArtifactStore, key: str) -> Artifact | None:
    """Return the artifact; None where there is none, or the store cannot be read."""
    with contextlib.suppress(StoreError):
        return store.get(key)
    return None

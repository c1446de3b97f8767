"""The backend `tensorrt`: its choice, its jobs, and the engines that this process has read."""

from __future__ import annotations

import threading
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from ....config import Config
from ....errors import AccelError
from ....store import ArtifactStore
from ....store.summary import bytes_of
from ...jobs import CompiledUnits, Job, stop
from ...target import Target
from . import libraries
from .engines import Wanted, cards_of, engines_of
from .job import EngineJob


class TensorRT:
    """The backend `tensorrt`."""

    name = "tensorrt"
    channels_last = False
    optional = True
    cuda_only = True
    quick = False

    def __init__(self) -> None:
        self._jobs: WeakValueDictionary[tuple[Path, str], EngineJob] = WeakValueDictionary()
        self._starting = threading.Lock()

    def why_not(self, target: Target, store: ArtifactStore, config: Config) -> str | None:
        """Refuse cards that are not NVIDIA's or too old, and where TensorRT for RTX is missing."""
        machine = target.machine
        if machine.device_type != "cuda" or torch.version.hip or "[ZLUDA]" in machine.device_name:
            return f"TensorRT runs on NVIDIA's cards alone, not on {machine.device_name}"
        cards = cards_of(machine.capability)
        if cards is None:
            return (
                f"{machine.device_name} has compute capability {machine.capability}; "
                "TensorRT for RTX serves 7.5, 8.0, 8.6, 8.9, and 12.0 and later"
            )
        if cards == "turing" and target.dtype != torch.float16:
            dtype = str(target.dtype).removeprefix("torch.")
            return f"TensorRT for RTX computes only float16 on {machine.device_name}, not {dtype}"
        if target.architecture is None:
            return "TensorRT engines are made for UNets alone"
        if libraries.version() is None:
            return libraries.why_not()
        try:
            if all(map(store.contains, wanted(target))):
                return None
            store.check()
        except AccelError as error:
            return str(error)
        if not config.compile or store.readonly:
            what = "the store is read-only" if store.readonly else "compiling is switched off"
            return f"engines are missing and {what}: make them with prebuild --backend tensorrt"
        return None

    def make(self, target: Target, store: ArtifactStore) -> CompiledUnits | Job:
        """Return the job that builds what is missing and prepares all for this card.

        There is one even where nothing is missing: the first use of an engine takes seconds.
        """
        with self._starting:
            job = self._jobs.get((store.root, target.key))
            if job is None or job.done or job.cancelled:
                job = EngineJob(target, store, wanted(target))
                self._jobs[store.root, target.key] = job
                job.start()
            return job

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return what the engines of `target` take in `store`; None where one is missing."""
        keys = wanted(target)
        return bytes_of(map(store.entry, keys)) if keys else None

    def keys(self, target: Target) -> list[str]:
        """Return the keys of the engines, where TensorRT for RTX can serve at all."""
        return [*wanted(target)]

    def cancel(self) -> list[Target]:
        """Stop every job. Return what they were for."""
        return stop(self._jobs.values())


def wanted(target: Target) -> dict[str, Wanted]:
    """Return the engines of `target` by their keys; none where they cannot serve it."""
    version, architecture = libraries.version(), target.architecture
    is_cuda = target.machine.device_type == "cuda"
    cards = cards_of(target.machine.capability) if is_cuda else None
    if version is None or architecture is None or cards is None:
        return {}
    dtype = str(target.dtype).removeprefix("torch.")
    return engines_of(architecture, dtype, cards, version)

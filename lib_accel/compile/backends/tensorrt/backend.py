"""The backend `tensorrt`: its choice, its jobs, and the engines that this process has read."""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
import zlib
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from ....config import Config
from ....errors import AccelError, ArtifactRejected
from ....store import ArtifactStore
from ...jobs import CompiledUnits, Job, stop
from ...target import Target
from . import libraries
from .engines import ENGINE_FILE, Wanted, cards_of, wanted_by
from .job import EngineJob

BYTES = 1 << 30
"""The most that an engine may unpack to: that of SDXL takes some 100 MB."""


class TensorRT:
    """The backend `tensorrt`."""

    name = "tensorrt"

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
                "TensorRT for RTX serves 7.5 and later"
            )
        if cards == "turing" and target.dtype != torch.float16:
            dtype = str(target.dtype).removeprefix("torch.")
            return f"TensorRT for RTX computes only float16 on {machine.device_name}, not {dtype}"
        if target.architecture is None:
            return "TensorRT engines are made for UNets alone"
        version = libraries.version()
        if version is None:
            return _not_installed()
        try:
            if all(map(store.contains, wanted_by(target, version))):
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
        version = libraries.version()
        assert version is not None  # `why_not` has seen it
        wanted = wanted_by(target, version)
        with self._starting:
            job = self._jobs.get((store.root, target.key))
            if job is None or job.done or job.cancelled:
                load = functools.partial(self._load, target, store, wanted)
                job = EngineJob(target, store, wanted, load, {"tensorrt_rtx": version})
                self._jobs[store.root, target.key] = job
                job.start()
            return job

    def kept_bytes(self, target: Target, store: ArtifactStore) -> int | None:
        """Return what the engines of `target` take in `store`; None where one is missing."""
        version, total = libraries.version(), 0
        if version is None:
            return None
        for key in wanted_by(target, version):
            entry = store.entry(key)
            if entry is None or entry.foreign:
                return None
            total += entry.bytes
        return total

    def cancel(self) -> list[Target]:
        """Stop every job. Return what they were for."""
        return stop(self._jobs.values())


def read_engine(store: ArtifactStore, key: str, wanted: Wanted) -> bytes:
    """Return the engine of this key, unpacked. Raises ArtifactRejected, StoreError."""
    artifact = store.get(key)
    if artifact is None:
        raise ArtifactRejected(f"the engine of {wanted.name} was removed from the store")
    packed = (store.place(artifact) / ENGINE_FILE).read_bytes()
    unpacking = zlib.decompressobj()
    engine = unpacking.decompress(packed, BYTES)
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise ArtifactRejected(f"the engine of {wanted.name} does not unpack", key)
    return engine


def _not_installed() -> str:
    other = ""
    if importlib.util.find_spec("tensorrt") is not None:
        other = " (the ordinary TensorRT is there; its engines are bound to one card)"
    return (
        f"TensorRT for RTX is not installed{other}: "
        f'"{sys.executable}" -m pip install {libraries.MODULE}'
    )

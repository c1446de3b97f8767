"""Under which conditions the jobs of one run measure, in a form that reaches a child process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...compile.machine import probe
from ...compile.target import Target
from ...config import MIB, Config
from ...model.architecture import Architecture
from ...model.random_weights import random_weight
from ...model.unet import UNet
from ...store import ArtifactStore
from ..bench.ladder import make_inputs
from ..bench.measure import Inputs
from .jobs import Job, architecture_of

GRAPH_BYTES = 8192 * MIB
"""Video memory that CUDA graphs may hold here: how much they need is a result."""


@dataclass(frozen=True)
class Setting:
    """`carried`: a store of unchecked code, or "". `models`: files of `bench --model --json`.

    `without`: what crashed before and is left out. `seconds`: when the job is ended.

    `pretended`: the card is the laboratory's, on which kernels compute nothing.
    """

    device_name: str
    dtype_name: str
    store_folder: str
    store_key: str
    store_mib: int
    carried: str
    models: tuple[str, ...]
    rounds: int
    dry_run: bool
    pretended: bool
    seconds: float = 0.0
    without: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in a form for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Setting:
        """Read what `to_dict` returned."""
        read: dict[str, Any] = {n: tuple(v) if type(v) is list else v for n, v in fields.items()}
        return cls(**read)

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype_name)

    @property
    def config(self) -> Config:
        """The configuration of engines: they compile nothing, the jobs of the kind code do."""
        return Config(
            store=Path(self.store_folder),
            store_key=Path(self.store_key) if self.store_key else None,
            store_bytes=self.store_mib * MIB,
            graph_bytes=GRAPH_BYTES,
            compile=False,
        )

    @property
    def store(self) -> ArtifactStore:
        """The store of checked code."""
        config = self.config
        return ArtifactStore(config.store, config.store_bytes, key_file=config.store_key)

    @property
    def carried_store(self) -> ArtifactStore | None:
        """The store of code that somebody compiled for this card and nobody has checked."""
        return ArtifactStore(Path(self.carried)) if self.carried else None

    def architecture(self, job: Job) -> Architecture:
        """Return the UNet that a job measures."""
        return architecture_of(job.family, self.dry_run)

    def size(self, job: Job) -> int:
        """Return the size of a job's images in pixels."""
        return 64 if self.dry_run else job.size

    def target(self, job: Job) -> Target:
        """Return what has to be compiled for a job."""
        architecture, machine = self.architecture(job), probe(self.device)
        return Target.of_unet(architecture, self.dtype, self.device, machine)

    def parameters(self, job: Job) -> dict[str, nn.Parameter]:
        """Draw random weights on the device, as `random_weights` does on the CPU, but faster."""
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.device(self.device):
            drawn = {
                name: random_weight(name, p.shape, generator).to(self.dtype)
                for name, p in UNet(self.architecture(job)).named_parameters()
            }
        return {name: nn.Parameter(value, requires_grad=False) for name, value in drawn.items()}

    def inputs(self, job: Job, more_pixels: int = 0) -> Inputs:
        """Return random inputs of a job's call, of its size or a larger one."""
        size = self.size(job) + more_pixels
        return make_inputs(self.architecture(job), job.batch, size, 77, self.device, self.dtype)

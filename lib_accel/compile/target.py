"""What is to be compiled and for what, and the keys under which the store keeps it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model import specs
from ..model.architecture import Architecture
from ..store import recipe_key
from .machine import Machine
from .source_digest import source_digest
from .units import units_among, units_of, upsamplings_among


@dataclass(frozen=True)
class Target:
    """The distinct units of a network, their dtype, and the device and machine they must run on.

    `name` is the model family, to show to users; nothing depends on it. `architecture` is that of
    the whole UNet, for backends that can compute it at once; None for what is no UNet.
    `upsamplings` are units for backends that resize faster than torch does.
    """

    units: tuple[specs.Spec, ...]
    dtype: torch.dtype
    device: torch.device
    machine: Machine
    name: str = field(default="", compare=False)
    architecture: Architecture | None = field(default=None, compare=False)
    upsamplings: tuple[specs.Spec, ...] = field(default=(), compare=False)

    @classmethod
    def of_unet(
        cls, architecture: Architecture, dtype: torch.dtype, device: torch.device, machine: Machine
    ) -> Target:
        """Return what has to be compiled for a whole UNet."""
        units, name = units_of(architecture), architecture.name
        upsamplings = upsamplings_among(layer for _, layer in architecture.layers())
        return cls(units, dtype, device, machine, name, architecture, upsamplings)

    @classmethod
    def of_layers(
        cls,
        name: str,
        layers: Collection[specs.Spec],
        dtype: torch.dtype,
        device: torch.device,
        machine: Machine,
    ) -> Target:
        """Return what has to be compiled for the layers of a VAE, or of one half of it."""
        given = units_among(layers), dtype, device, machine, name
        return cls(*given, upsamplings=upsamplings_among(layers))

    def recipe(self, unit: specs.Spec) -> dict[str, Any]:
        """Return all that the compiled code of one unit depends on."""
        return {"unit": specs.spec_to_dict(unit), **self._shared}

    @functools.cached_property
    def keys(self) -> dict[specs.Spec, str]:
        """The key of each unit's artifact: the hex sha256 of its recipe."""
        return {unit: recipe_key(self.recipe(unit)) for unit in self.units}

    @functools.cached_property
    def key(self) -> str:
        """One name for the whole target: the hex sha256 over the keys of its units, sorted.

        It names locks, jobs and failures. The store has no artifact of this key.
        """
        return hashlib.sha256(" ".join(sorted(self.keys.values())).encode()).hexdigest()

    def incompatibility(self, recipe: Mapping[str, Any]) -> str | None:
        """Return why code made by `recipe` cannot run here: `torch '2.9.1', here '2.13.0'`.

        Return None where it can. Which unit the code is for does not matter.
        """
        theirs, ours = _flat(recipe), _flat(self._shared)
        differ = [
            f"{name} {theirs.get(name)!r}, here {value!r}"
            for name, value in ours.items()
            if theirs.get(name) != value and name != "source"
        ]
        if theirs.get("source") != ours["source"]:
            differ.append("another version of this extension")
        return "; ".join(differ) or None

    @property
    def _shared(self) -> dict[str, Any]:
        """What the recipes of all units have in common."""
        return {**of_torch(self.machine), "dtype": str(self.dtype).removeprefix("torch.")}


def of_torch(machine: Machine) -> dict[str, Any]:
    """Return what the recipes of all units that torch compiles for `machine` share."""
    return {"source": source_digest(), "machine": machine.identity()}


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in recipe.items() if name not in ("unit", "machine")}
    return {**recipe["machine"], **rest}

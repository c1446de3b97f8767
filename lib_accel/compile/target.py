"""What is to be compiled, and for what: everything an artifact's key is made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from ..model import specs
from .machine import Machine
from .source_digest import source_digest
from .units import canonical_json, unit_key


@dataclass(frozen=True)
class Target:
    """What is to be compiled, and for what: everything an artifact's key is made of."""

    units: tuple[specs.Spec, ...]
    dtype: torch.dtype
    device: torch.device
    machine: Machine

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "source": source_digest(),
            "units": sorted(unit_key(u) for u in self.units),
            "dtype": str(self.dtype).removeprefix("torch."),
            "machine": self.machine.identity(),
        }

    @property
    def key(self) -> str:
        """Hex sha256 of the recipe."""
        return hashlib.sha256(canonical_json(self.recipe).encode()).hexdigest()

    def foreign(self, recipe: dict[str, Any]) -> str | None:
        """Why code made by that recipe cannot run here, or None: `torch 2.9.1, here 2.13.0`."""
        ours = self.recipe
        theirs = {**recipe.get("machine", {}), "dtype": recipe.get("dtype")}
        mine = {**ours["machine"], "dtype": ours["dtype"]}
        differ = [
            f"{name} {theirs.get(name)!r}, here {value!r}"
            for name, value in mine.items()
            if theirs.get(name) != value
        ]
        if recipe.get("source") != ours["source"]:
            differ.append("another version of this extension")
        return "; ".join(differ) or None

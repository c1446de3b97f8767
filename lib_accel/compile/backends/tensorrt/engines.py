"""Which engines a target needs, and the keys under which the store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....model import specs
from ....model.architecture import Architecture
from ....store import recipe_key
from ...machine import Machine
from ...source_digest import source_digest
from ...units import describe, units_of
from . import libraries
from .build import network_of, request
from .libraries import MODULE
from .network import Network

SOURCES = ("compile/backends/tensorrt/build.py",)
"""The file that builds engines; what it imports shapes them as well."""

TURING, AMPERE, BLACKWELL = (7, 5), ((8, 0), (8, 6), (8, 9)), (12, 0)
"""Compute capabilities that TensorRT for RTX knows; it also serves what comes after the last."""


@dataclass(frozen=True)
class Wanted:
    """One engine: of a whole UNet or of a unit."""

    of: Architecture | specs.Spec
    dtype: str
    cards: str  # of CARDS
    family: str  # the name of the model family, to show to users
    version: str  # of TensorRT for RTX, which reads its own engines alone

    @property
    def seconds(self) -> float:
        """What building it is expected to take; seen on 2 cores."""
        return 15.0 if isinstance(self.of, Architecture) else 1.0

    @property
    def name(self) -> str:
        """A short name for people."""
        return self.of.name if isinstance(self.of, Architecture) else describe(self.of)

    @property
    def network(self) -> Network:
        """What the engine computes."""
        return network_of(self.request)

    @property
    def request(self) -> dict[str, Any]:
        """What the building process is asked for."""
        return request(self.of, self.dtype, self.cards)

    @property
    def recipe(self) -> dict[str, Any]:
        """All that the engine depends on. No card, no driver, no torch and no system are in it."""
        if isinstance(self.of, Architecture):
            unit = {"layer": "UNet", "of": recipe_key(self.of.to_dict())}
        else:
            unit = specs.spec_to_dict(self.of)
        return {
            "unit": unit,
            "dtype": self.dtype,
            "machine": {"device_type": "cuda", MODULE: self.version, "cards": self.cards},
            "source": source_digest(SOURCES),
        }


def engines_of(
    architecture: Architecture, dtype: str, cards: str, version: str
) -> dict[str, Wanted]:
    """Return the engines of a UNet by their keys: of the whole first, then of each layer."""
    units = (u for u in units_of(architecture) if not isinstance(u, specs.Embedding))
    of = (architecture, *units)
    every = (Wanted(each, dtype, cards, architecture.name, version) for each in of)
    return {recipe_key(wanted.recipe): wanted for wanted in every}


def cards_of(capability: str) -> str | None:
    """Return the name in CARDS of cards of this compute capability; None where none serves.

    Engines name their cards one by one, and "every card after 12.0". Those of data centers after
    8.0, and Jetson's, are not among them.
    """
    major_minor = tuple(map(int, capability.split(".")))
    if major_minor == TURING:
        return "turing"
    return "ampere+" if major_minor in AMPERE or major_minor >= BLACKWELL else None


def of_machine(machine: Machine) -> dict[str, Any]:
    """Return what the recipes of all engines and kernels for this machine have in common."""
    is_cuda = machine.device_type == "cuda"
    return {
        "source": source_digest(SOURCES),
        "machine": {
            "device_type": machine.device_type,
            MODULE: libraries.version(),
            "cards": cards_of(machine.capability) if is_cuda else None,
            "card": machine.device_name,
        },
    }

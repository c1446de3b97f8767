"""Which engines a target needs, and the keys under which the store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....model import specs
from ....model.architecture import Architecture
from ....store import recipe_key
from ...source_digest import source_digest
from ...target import Target
from ...units import describe
from .build import request
from .libraries import MODULE

ENGINE_FILE = "engine.zlib"
"""The one file of an artifact. Engines hold much that is alike: compressed they are a tenth."""

SOURCES = ("compile/backends/tensorrt/build.py",)
"""The file that builds engines; what it imports shapes them as well."""

TURING = (7, 5)


@dataclass(frozen=True)
class Wanted:
    """One engine: of a whole UNet or of a unit."""

    of: Architecture | specs.Spec
    dtype: str
    cards: str  # of CARDS
    version: str  # of TensorRT for RTX, which reads its own engines alone

    @property
    def whole(self) -> bool:
        """Whether it computes a whole UNet."""
        return isinstance(self.of, Architecture)

    @property
    def name(self) -> str:
        """A short name for people."""
        return self.of.name if isinstance(self.of, Architecture) else describe(self.of)

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


def wanted_by(target: Target, whole: Architecture, version: str) -> dict[str, Wanted]:
    """Return the engines of a UNet, the whole one first, by their keys."""
    dtype = str(target.dtype).removeprefix("torch.")
    cards = cards_of(target.machine.capability) or ""
    of: list[Architecture | specs.Spec] = [whole, *target.units]
    every = (Wanted(each, dtype, cards, version) for each in of)
    return {recipe_key(wanted.recipe): wanted for wanted in every}


def cards_of(capability: str) -> str | None:
    """Return the name in CARDS of cards of this compute capability; None where none serves."""
    major_minor = tuple(map(int, capability.split(".")))
    if major_minor < TURING:
        return None
    return "turing" if major_minor == TURING else "ampere+"

"""The options of the Settings section: their defaults, and what each stored value means.

A stored value can be of any type: the API stores what it is given, `config.json` can be edited by
hand, and earlier versions of this extension stored the English sentences of the interface.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..compile.session import BACKENDS
from ..config import AUTO, LORA_BASES

CONTINUE, WAIT = "continue", "wait"


@dataclass(frozen=True)
class Switch:
    """An option that is on or off."""

    default: bool

    def read(self, stored: object) -> bool:
        """Return what `stored` means. Raises ValueError where it means nothing."""
        word = str(stored).strip().lower()
        if word in ("true", "on", "yes", "1"):
            return True
        if word in ("false", "off", "no", "0"):
            return False
        raise ValueError("expected true or false")


@dataclass(frozen=True)
class Word:
    """An option that is one of several words. `former` maps what earlier versions stored."""

    default: str
    words: tuple[str, ...]
    former: Mapping[str, str] = field(default_factory=dict)

    def read(self, stored: object) -> str:
        """Return the word that `stored` means. Raises ValueError where it means none."""
        if isinstance(stored, str):
            word = stored.strip()
            word = self.former.get(word, word.lower())
            if word in self.words:
                return word
        raise ValueError(f"expected one of {', '.join(self.words)}")


@dataclass(frozen=True)
class Number:
    """An option that is a whole number of some unit, `least` to `most`."""

    default: int
    unit: str
    least: int
    most: int

    def read(self, stored: object) -> int:
        """Return the whole number that `stored` means. Raises ValueError where it means none."""
        number, expected = _number(stored), f"expected {self.least} to {self.most} {self.unit}"
        if number is None or not self.least <= number <= self.most:
            raise ValueError(expected)
        if not number.is_integer():  # 0.5 meant as GiB would be 0, which switches things off
            raise ValueError(f"{expected}, a whole number")
        return int(number)

    def nearest(self, stored: object) -> int | None:
        """Return the limit that a number out of range is nearest to; None for what is none."""
        number = _number(stored)
        if number is None or self.least <= number <= self.most:
            return None
        return self.least if number < self.least else self.most


def _number(stored: object) -> float | None:
    if isinstance(stored, (int, float, str)) and not isinstance(stored, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(stored)
            return number if math.isfinite(number) else None
    return None


OPTIONS: Mapping[str, Any] = {
    "accel_enable": Switch(True),
    "accel_vae": Switch(True),
    "accel_backend": Word(AUTO, (AUTO, *(backend.name for backend in BACKENDS))),
    "accel_while_compiling": Word(
        CONTINUE,
        (CONTINUE, WAIT),
        {"make images without acceleration": CONTINUE, "wait for the compiler": WAIT},
    ),
    "accel_store_mib": Number(2048, "MiB", least=64, most=16384),
    "accel_graphs_mib": Number(1024, "MiB", least=0, most=8192),
    "accel_witness_steps": Number(400, "steps", least=0, most=4000),
    "accel_lora_base": Word(
        AUTO,
        LORA_BASES,
        {
            "ordinary memory, as the WebUI does": "host",
            "pinned memory": "pinned",
            "video memory": "gpu",
            "video memory while 8 GiB of it are free, else pinned memory": AUTO,
        },
    ),
    "accel_taiyi": Switch(True),
}
"""Every option of this extension, by the name under which the WebUI stores it."""

"""How the process of a job tells its parent how it goes."""

from __future__ import annotations

import json
import os
from typing import Any

from .record import finite


class Teller:
    """Tells the parent how a job goes. `result` is what is known by now."""

    def __init__(self, fd: int):
        self._out = os.fdopen(fd, "w", encoding="utf-8")
        self.result: dict[str, Any] = {}

    def __call__(self, **message: Any) -> None:
        """Write one line. Raises OSError where the parent is gone."""
        self._out.write(json.dumps(finite(message)) + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """Tell a person what happens."""
        self(say=text)

    def at(self, what: str) -> None:
        """Tell what would be at fault if the process crashed now."""
        self(at=what)

    def know(self, **more: Any) -> None:
        """Add to the result, and pass it on."""
        self.result |= more
        self(result=self.result)

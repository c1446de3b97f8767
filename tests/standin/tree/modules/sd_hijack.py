"""How attention is computed: the user chooses among optimizations, which extensions may add."""

from __future__ import annotations

from typing import Any

current_optimizer: Any = None

"""Ways to make fast code for a target, behind one protocol. `choose` picks; each backend is one small file."""

from .base import Backend
from .select import AUTO_ORDER, Choice, choose, get

__all__ = ["AUTO_ORDER", "Backend", "Choice", "choose", "get"]

"""Compiled code on disk: artifacts, locks, signed exports."""

from .artifact import Artifact, Entry
from .exchange.public_keys import PublicKeys
from .locks import LockBusy
from .manifest import MANIFEST, recipe_key
from .store import ArtifactStore
from .summary import Group, groups, named

__all__ = [
    "MANIFEST",
    "Artifact",
    "ArtifactStore",
    "Entry",
    "Group",
    "LockBusy",
    "PublicKeys",
    "groups",
    "named",
    "recipe_key",
]

"""What a person or a program asks about the store and this machine."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..compile.doctor import Finding, examine
from ..compile.target import Target
from ..runtime.provider import store_of
from ..store import ArtifactStore, Group, groups, named
from . import webui


def artifacts() -> list[Group]:
    """Return the artifacts of the store, grouped by what they were made for."""
    return groups(_store().list())


def delete(key: str, loaded: Iterable[Target]) -> bool:
    """Remove an artifact, a group of them, or the code of a loaded model, by its key.

    Return False when there is none. Code loaded from it keeps serving. Raises StoreError.
    """
    store = _store()
    keys = {key} if store.contains(key) else set()
    keys |= {e.key for g in named(store.list(), key) if g.key == key for e in g.entries}
    keys |= {k for t in loaded if t.key == key for k in t.keys.values() if store.contains(k)}
    for each in keys:
        store.discard(each, "deleted by the user")
    return bool(keys)


def findings() -> list[Finding]:
    """Return what works on this machine, what does not, and what to do about it."""
    device = webui.device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    return examine(device, dtype, _store())


def _store() -> ArtifactStore:
    return store_of(webui.config())

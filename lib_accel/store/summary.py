"""What people see of a store: one line for all units that were made for the same machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .artifact import Entry
from .manifest import recipe_key


@dataclass(frozen=True)
class Group:
    """Artifacts that differ in their unit alone, one that is damaged, or all foreign ones.

    `key` identifies the group. It is an artifact's key only for a single damaged artifact.
    """

    key: str
    entries: tuple[Entry, ...]
    problem: str | None = None

    @property
    def bytes(self) -> int:
        """What the artifacts take on disk."""
        return sum(entry.bytes for entry in self.entries)

    @property
    def last_used(self) -> float:
        """When one of them was last used, in seconds since 1970."""
        return max(entry.last_used for entry in self.entries)

    @property
    def made_for(self) -> str:
        """One line: `16 units, float16, torch 2.13.0, NVIDIA H100`, or what is wrong."""
        artifact = self.entries[0].artifact
        if artifact is None:
            return self.problem or ""
        machine, dtype = artifact.recipe["machine"], artifact.recipe["dtype"]
        torch, device = machine.get("torch"), machine.get("device_name")
        return f"{len(self.entries)} units, {dtype}, torch {torch}, {device}"

    @property
    def origins(self) -> str:
        """Where the artifacts come from: `built here`, or the imports, separated by `; `."""
        found = {e.artifact.manifest["origin"] for e in self.entries if e.artifact}
        return "; ".join(sorted(found))


def groups(entries: Iterable[Entry]) -> list[Group]:
    """Return the groups in the order of their first entry; damaged artifacts stand alone."""
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(_group_key(entry), []).append(entry)
    return [Group(key, tuple(found), found[0].problem) for key, found in alike.items()]


def named(entries: Iterable[Entry], name: str) -> list[Group]:
    """Return the groups and the single artifacts (each as a group) whose keys begin with `name`."""
    found = {group.key: group for group in groups(entries)}
    for group in [*found.values()]:
        found |= {e.key: Group(e.key, (e,), e.problem) for e in group.entries}
    return [group for key, group in found.items() if key.startswith(name)]


def _group_key(entry: Entry) -> str:
    if entry.foreign:
        return recipe_key({"foreign": True})
    if entry.artifact is None:
        return entry.key
    return recipe_key({**entry.artifact.recipe, "unit": "any"})

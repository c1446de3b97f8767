"""What people see of a store: one line for all units of a model family and a machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .artifact import Entry
from .manifest import recipe_key

UNNAMED = "unknown model"
"""Stands for the name where the manifest, of an earlier version, has none."""

IN_USE = "in use"


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
    def name(self) -> str:
        """The model family that they were made for, as the status line calls it."""
        return name_of(self.entries[0])

    @property
    def made_for(self) -> str:
        """One line: `17 units, float16, torch 2.13.0, cuda 9.0`, or what is wrong.

        Of TensorRT it is `17 units, float16, TensorRT 1.7.1, ampere+`, or the name of the card that
        its kernels are for. Of another backend than `aoti` its name comes last.
        """
        artifact = self.entries[0].artifact
        if artifact is None:
            return self.problem or ""
        machine, dtype = artifact.recipe["machine"], artifact.recipe["dtype"]
        kind, capability = machine.get("device_type"), machine.get("capability")
        device = capability if kind == "cpu" else f"{kind} {capability}"
        count = f"{len(self.entries)} units" if len(self.entries) != 1 else "1 unit"
        if "tensorrt_rtx" in machine:
            cards = machine.get("card") or machine.get("cards")
            return f"{count}, {dtype}, TensorRT {machine['tensorrt_rtx']}, {cards}"
        parts = [f"{count}, {dtype}, torch {machine.get('torch')}, {device}"]
        return ", ".join([*parts, *filter(None, [artifact.recipe.get("backend")])])

    @property
    def origins(self) -> str:
        """Where the artifacts come from: `built here`, or the imports, separated by `; `."""
        found = {e.artifact.manifest["origin"] for e in self.entries if e.artifact}
        return "; ".join(sorted(found))

    def state(self, here: Mapping[str, Mapping[str, Any]], used: Collection[str] = ()) -> str:
        """Return IN_USE, "not usable", what of this machine it was not made for, or "".

        `here` is what the recipes of this machine share, by what made the code: "torch" or
        "tensorrt_rtx"; see `compile/session.py: of_machine`. `used` are the keys of code in use.
        """
        if any(entry.key in used for entry in self.entries):
            return IN_USE
        return "not usable" if self.problem else misfit(self.entries[0], here)


def name_of(entry: Entry) -> str:
    """Return the model family that an artifact was made for."""
    return (entry.artifact.manifest.get("name") if entry.artifact else None) or UNNAMED


def misfit(entry: Entry, here: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what of this machine an artifact was not made for, or ""; see `Group.state`."""
    if entry.artifact is None:
        return ""  # its problem says more
    theirs = entry.artifact.recipe
    ours = next((here[name] for name in here if name in theirs["machine"]), None)
    if ours is None:
        return "not for this version of the extension"
    differ = {name for name, value in ours["machine"].items() if _differs(theirs, name, value)}
    if "torch" in differ:
        return "not for this torch"
    if "tensorrt_rtx" in differ:
        return "not for this TensorRT"
    if differ & {"device_type", "capability", "cards", "card"}:
        return "not for this device"
    if differ:
        return "not for this system"
    return "" if theirs.get("source") == ours["source"] else "not for this version of the extension"


def _differs(recipe: Mapping[str, Any], name: str, value: object) -> bool:
    """Return whether code was made for another one; only some of TensorRT's is for one card."""
    machine = recipe["machine"]
    return machine.get(name) != value and (name != "card" or name in machine)


def groups(entries: Iterable[Entry]) -> list[Group]:
    """Return the groups in the order of their first entry; damaged artifacts stand alone."""
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(_group_key(entry), []).append(entry)
    return [Group(key, tuple(found), found[0].problem) for key, found in alike.items()]


def bytes_of(entries: Iterable[Entry | None]) -> int | None:
    """Return what artifacts take; None where one is missing (None) or was made by others."""
    found = list(entries)
    own = [entry for entry in found if entry is not None and not entry.foreign]
    return sum(entry.bytes for entry in own) if len(own) == len(found) else None


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
    return recipe_key({**entry.artifact.recipe, "unit": "any", "family": name_of(entry)})

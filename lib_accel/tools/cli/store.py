"""`store`: look after the artifacts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...compile.machine import probe
from ...compile.session import of_machine
from ...config import MIB
from ...errors import AccelError
from ...store import ArtifactStore, Entry, Group, groups, named
from ...store.exchange.public_keys import write_pair
from ...store.exchange.shared import SharedStore
from ...store.files import os_errors
from ...store.signing import generate_key, read_key, write_key
from ...store.summary import misfit, name_of
from ..terminal import agreed, say, show
from .common import default_device, make_store, publish, shared_store


def _row(entry: Entry, here: Mapping[str, Any]) -> dict[str, object]:
    recipe = entry.artifact.recipe if entry.artifact else {}
    machine = recipe.get("machine", {})
    manifest = entry.artifact.manifest if entry.artifact else {}
    return {
        "name": name_of(entry),
        "key": entry.key,
        "bytes": entry.bytes,
        "last_used": _time(entry.last_used),
        "unit": recipe.get("unit"),
        "dtype": recipe.get("dtype"),
        "device": machine.get("device_type"),
        "capability": machine.get("capability"),
        **{name: machine.get(name) for name in ("torch", "tensorrt_rtx", "cards", "card")},
        "origin": manifest.get("origin"),
        "made_with": manifest.get("made_with"),
        "published": manifest.get("published"),
        "checksum": entry.artifact.checksum if entry.artifact else None,
        "problem": entry.problem,
        "misfit": misfit(entry, here) or None,
    }


def _here() -> dict[str, Any]:
    return of_machine(probe(torch.device(default_device())))


def _line(group: Group, here: Mapping[str, Any]) -> str:
    what = f"NOT USABLE: {group.problem}"
    if not group.problem:
        state = group.state(here)
        what = f"{group.name}, {group.made_for}, {group.origins}" + (f" ({state})" if state else "")
    size = f"{group.bytes / MIB:6.1f} MiB"
    return f"{group.key[:12]}  {size}  {_time(group.last_used)}  {what}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _list(args: argparse.Namespace) -> int:
    store = make_store(args)
    entries, here = store.list(), _here()
    size = sum(e.bytes for e in entries)
    lines = [_line(group, here) for group in groups(entries)]
    lines.append(f"{len(entries)} units, {size / MIB:.1f} MiB in {store.root}")
    rows = {"store": str(store.root), "artifacts": [_row(e, here) for e in entries]}
    show(rows, args, "\n".join(lines))
    return 0


def _verify(args: argparse.Namespace) -> int:
    found = make_store(args).verify()
    damaged = {key: problem for key, problem in found if problem}
    good = len(found) - len(damaged)
    lines = [f"{key[:12]}: {problem}" for key, problem in damaged.items()]
    show(
        {"good": good, "damaged": damaged},
        args,
        "\n".join([*lines, f"{good} good, {len(damaged)} damaged"]),
    )
    return 1 if damaged else 0


def _clear(args: argparse.Namespace) -> int:
    store = make_store(args)
    entries = store.list()
    if entries and not _agreed(args, len(entries), sum(e.bytes for e in entries), store):
        return 1
    return _show_freed(store.clear(), store, args)


def _delete(args: argparse.Namespace) -> int:
    store = make_store(args)
    entries = {e.key: e for group in _chosen(store, store.list(), args.keys) for e in group.entries}
    size = sum(e.bytes for e in entries.values())
    if not _agreed(args, len(entries), size, store):
        return 1
    for key in entries:
        store.discard(key)
    return _show_freed(size, store, args)


def _agreed(args: argparse.Namespace, count: int, size: int, store: ArtifactStore) -> bool:
    """Return whether the user wants to remove so much. Raises AccelError where nobody can say."""
    what = f"{count} unit{'s' * (count != 1)}, {size / MIB:.1f} MiB, of {store.root}"
    if args.yes or agreed(f"Remove {what}?"):
        return True
    say("nothing was removed")
    return False


def _show_freed(freed: int, store: ArtifactStore, args: argparse.Namespace) -> int:
    text = f"{freed / MIB:.1f} MiB freed in {store.root}"
    show({"store": str(store.root), "bytes_freed": freed}, args, text)
    return 0


def _chosen(store: ArtifactStore, entries: list[Entry], names: list[str]) -> list[Group]:
    """Return the group or the artifact that each name on the command line stands for."""
    if not entries:
        raise AccelError(f"the store {store.root} is empty")
    chosen = []
    for name in names:
        found = named(entries, name) if name else []
        if len(found) != 1:
            known = ", ".join(group.key[:12] for group in groups(entries))
            raise AccelError(
                f"{name!r} fits {len(found)} keys of {store.root}; expected exactly one of: "
                f"{known}, or of those that `store list --json` shows"
            )
        chosen += found
    return chosen


def _to_export(store: ArtifactStore, names: list[str]) -> list[str]:
    """Return the keys of the artifacts that the names on the command line stand for."""
    usable = [e for e in store.list() if not e.problem]
    if not usable:
        raise AccelError(
            f"the store {store.root} holds no usable artifact; expected some to export. "
            "`prebuild` makes them"
        )
    if names == ["all"]:
        return [e.key for e in usable]
    chosen = _chosen(store, usable, names)
    return [*dict.fromkeys(e.key for group in chosen for e in group.entries)]


def _make_key(file: Path) -> None:
    write_key(file, generate_key())
    say(
        f"made a new key: {file}. Who has it can make artifacts your machines will load; "
        "keep it secret."
    )


def _key(args: argparse.Namespace) -> int:
    if args.pair:
        line = write_pair(args.file)
        say(
            f"made a private key, {args.file}: keep it secret. The line of {args.file}.pub belongs "
            "into the file of trusted keys of your servers."
        )
        show({"file": str(args.file), "public": line}, args, line)
        return 0
    _make_key(args.file)
    show({"file": str(args.file)}, args, str(args.file))
    return 0


def _export(args: argparse.Namespace) -> int:
    store = make_store(args)
    keys = _to_export(store, args.keys)
    if isinstance(args.to, str):
        return _publish(shared_store(args, args.to), keys, args)
    if args.to.exists() and not args.force:
        raise AccelError(f"{args.to} exists. Choose another name, or replace it with --force")
    signing_key = None
    if args.key:
        if not args.key.exists():
            _make_key(args.key)
        signing_key = read_key(args.key)
    store.export(keys, args.to, signing_key)
    is_signed = bool(signing_key or args.signing_key)
    signed = "signed" if is_signed else "UNSIGNED: importing it needs --allow-unsigned"
    show(
        {"file": str(args.to), "keys": keys, "signed": is_signed},
        args,
        f"{len(keys)} units written to {args.to} ({signed})",
    )
    return 0


def _publish(store: SharedStore, keys: list[str], args: argparse.Namespace) -> int:
    if args.key:
        raise AccelError(
            "--key seals a file; for a shared store, name --signing-key or --store-key"
        )
    new = publish(store, keys)
    text = f"{new} of {len(keys)} units written to {store.remote.shown}, the others were there"
    show({"store": store.remote.shown, "keys": keys, "written": new}, args, text)
    return 0


def _import(args: argparse.Namespace) -> int:
    with os_errors(f"import {args.file}"):
        args.file.stat()
    if not (args.key or args.allow_unsigned or args.trusted_keys):
        raise AccelError(
            f"An export brings native code: give --key FILE, the key that {args.file} was signed "
            "with, --trusted-keys FILE with its maker's public key, or --allow-unsigned if you are "
            "sure of its origin"
        )
    store = make_store(args)
    signing_key = read_key(args.key) if args.key else None
    artifacts = store.import_(args.file, signing_key, args.allow_unsigned)
    keys = [artifact.key for artifact in artifacts]
    found, here = groups(e for e in store.list() if e.key in keys), _here()
    lines = [_line(group, here) for group in found]
    lines.append(f"{len(keys)} units from {args.file} are in {store.root}")
    show({"store": str(store.root), "keys": keys}, args, "\n".join(lines))
    return 0


_ACTIONS = {
    "list": _list,
    "verify": _verify,
    "delete": _delete,
    "clear": _clear,
    "export": _export,
    "import": _import,
    "key": _key,
}


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return _ACTIONS[args.action](args)

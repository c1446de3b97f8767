"""`store`: look after the artifacts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...compile.machine import probe
from ...compile.target import of_machine
from ...errors import AccelError
from ...store import ArtifactStore, Entry, Group, groups, named
from ...store.signing import generate_key, read_key, write_key
from ...store.summary import misfit, name_of
from .common import (
    Commands,
    Help,
    add_store_arguments,
    command,
    default_device,
    make_store,
    say,
    show,
)

_MORE = """An artifact is the compiled code of one unit (one kind of layer) for one dtype, GPU (or
CPU) model and torch version. It holds no weights. An architecture has about 16 units; `list` shows
one line for all units that were made for the same model family and machine.

examples:
  python -m lib_accel store list
  python -m lib_accel store export all --to fleet.zip --key fleet.key
  python -m lib_accel store import fleet.zip --key fleet.key"""
_EXPORT = """The key file is made when it does not exist. Copy it to the other machines by a way you
trust: who has it can make files that they will run as code."""
_KEY = """To share a store, give each of its users a copy of one key file: --store-key FILE here,
--accel-store-key FILE for the WebUI. On POSIX each copy must be its user's or root's, mode 0600."""
_IMPORT = """Artifacts are native code, so they are accepted only with the key they were signed
with, or when you state that you trust the file."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    what = "list, verify, clear, export and import artifacts"
    parser = commands.add_parser(
        "store",
        help=what,
        description=f"Look after the artifacts.\n\n{_MORE}",
        formatter_class=Help,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    command(
        actions, "list", "what is stored, by what it was made for (--json: every artifact)", _list
    )
    command(
        actions,
        "verify",
        "read every byte and compare checksums; exit status 1 when one is damaged",
        _verify,
    )
    command(actions, "clear", "remove every artifact; what is needed is compiled again", _clear)
    what = "write artifacts to one file, to seed other machines"
    export = command(actions, "export", what, _export, _EXPORT)
    export.add_argument(
        "keys",
        nargs="+",
        metavar="KEY",
        help="as `store list` shows them (--json: single units), or the beginning of one, or `all`",
    )
    export.add_argument("--to", type=Path, metavar="FILE", required=True, help="the file to write")
    export.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="sign with this key file; without one the file is unsigned",
    )
    what = "put the artifacts of an exported file into the store"
    importer = command(actions, "import", what, _import, _IMPORT)
    importer.add_argument("file", type=Path, metavar="FILE")
    importer.add_argument(
        "--key", type=Path, metavar="FILE", help="the key file it was signed with"
    )
    importer.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="accept it without a signature; be sure of its origin",
    )
    for action in actions.choices.values():
        add_store_arguments(action)
    what = "make a key file, for signing exports or for a store that machines share"
    command(actions, "key", what, _key, _KEY).add_argument("file", type=Path, metavar="FILE")


def _row(entry: Entry, here: Mapping[str, Any]) -> dict[str, object]:
    recipe = entry.artifact.recipe if entry.artifact else {}
    machine = recipe.get("machine", {})
    return {
        "name": name_of(entry),
        "key": entry.key,
        "bytes": entry.bytes,
        "last_used": _time(entry.last_used),
        "unit": recipe.get("unit"),
        "dtype": recipe.get("dtype"),
        "device": machine.get("device_name"),
        "torch": machine.get("torch"),
        "origin": entry.artifact.manifest["origin"] if entry.artifact else None,
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
    size = f"{group.bytes / 1e6:6.1f} MB"
    return f"{group.key[:12]}  {size}  {_time(group.last_used)}  {what}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _list(args: argparse.Namespace) -> int:
    store = make_store(args)
    entries, here = store.list(), _here()
    size = sum(e.bytes for e in entries) / 1e6
    lines = [_line(group, here) for group in groups(entries)]
    lines.append(f"{len(entries)} units, {size:.1f} MB in {store.root}")
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
    freed = store.clear()
    show(
        {"store": str(store.root), "bytes_freed": freed},
        args,
        f"{freed / 1e6:.1f} MB freed in {store.root}",
    )
    return 0


def _expand(store: ArtifactStore, names: list[str]) -> list[str]:
    """Return the keys of the artifacts that the names on the command line stand for."""
    usable = [e for e in store.list() if not e.problem]
    if not usable:
        raise AccelError(
            f"the store {store.root} holds no usable artifact; expected some to export. "
            "Make one: python -m lib_accel prebuild"
        )
    if names == ["all"]:
        return [e.key for e in usable]
    keys: list[str] = []
    for name in names:
        found = named(usable, name)
        if len(found) != 1:
            known = ", ".join(group.key[:12] for group in groups(usable))
            raise AccelError(
                f"{name!r} fits {len(found)} keys; expected exactly one of: {known}, "
                "or of those that `store list --json` shows"
            )
        keys += [e.key for e in found[0].entries]
    return [*dict.fromkeys(keys)]


def _make_key(file: Path) -> None:
    write_key(file, generate_key())
    say(
        f"made a new key: {file}. Who has it can make artifacts your machines will load; "
        "keep it secret."
    )


def _key(args: argparse.Namespace) -> int:
    _make_key(args.file)
    show({"file": str(args.file)}, args, str(args.file))
    return 0


def _export(args: argparse.Namespace) -> int:
    store = make_store(args)
    keys = _expand(store, args.keys)
    signing_key = None
    if args.key:
        if not args.key.exists():
            _make_key(args.key)
        signing_key = read_key(args.key)
    store.export(keys, args.to, signing_key)
    signed = "signed" if signing_key else "UNSIGNED: importing it needs --allow-unsigned"
    show(
        {"file": str(args.to), "keys": keys, "signed": bool(signing_key)},
        args,
        f"{len(keys)} units written to {args.to} ({signed})",
    )
    return 0


def _import(args: argparse.Namespace) -> int:
    if not args.key and not args.allow_unsigned:
        raise AccelError(
            f"{args.file} is native code: give --key FILE, the key it was signed with, or "
            "--allow-unsigned if you are sure of its origin"
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

"""`store`: look after the artifacts."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ...errors import AccelError
from ...store import seal
from ...store.store import ArtifactStore, Entry
from .common import Commands, Help, add_store_arguments, command, make_store, say, show

_MORE = """An artifact is the compiled code of one architecture for one dtype, GPU (or CPU) model and torch version. It holds no weights.

examples:
  python -m lib_accel store list
  python -m lib_accel store export all --to fleet.zip --key fleet.key
  python -m lib_accel store import fleet.zip --key fleet.key"""
_EXPORT = """The key file is made when it does not exist. Copy it to the other machines by a way you trust: who has it can make files
that they will run as code."""
_IMPORT = """Artifacts are native code, so they are taken only with the key they were signed with, or when you say you trust the file."""


def add(commands: Commands) -> None:
    what = "list, verify, clear, export and import artifacts"
    parser = commands.add_parser(
        "store",
        help=what,
        description=f"Look after the artifacts.\n\n{_MORE}",
        formatter_class=Help,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    command(actions, "list", "every artifact: what it is for, size, last use", _list)
    command(
        actions,
        "verify",
        "read every byte and compare checksums; exit status 1 when one is damaged",
        _verify,
    )
    command(actions, "clear", "remove every artifact; what is needed is compiled again", _clear)
    export = command(
        actions, "export", "write artifacts to one file, to seed other machines", _export, _EXPORT
    )
    export.add_argument(
        "keys",
        nargs="+",
        metavar="KEY",
        help="as `store list` shows them, or the beginning of one; or `all`",
    )
    export.add_argument("--to", type=Path, metavar="FILE", required=True, help="the file to write")
    export.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="sign with this key file; without one the file is unsigned",
    )
    importer = command(actions, "import", "take artifacts from an exported file", _import, _IMPORT)
    importer.add_argument("file", type=Path, metavar="FILE")
    importer.add_argument(
        "--key", type=Path, metavar="FILE", help="the key file it was signed with"
    )
    importer.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="take it without a signature; be sure of its origin",
    )
    for action in actions.choices.values():
        add_store_arguments(action)


def _row(entry: Entry) -> dict[str, object]:
    recipe = entry.artifact.recipe if entry.artifact else {}
    machine = recipe.get("machine", {})
    return {
        "key": entry.key,
        "bytes": entry.bytes,
        "last_used": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
        "units": len(recipe.get("units", [])),
        "dtype": recipe.get("dtype"),
        "device": machine.get("device_name"),
        "torch": machine.get("torch"),
        "origin": entry.artifact.manifest["origin"] if entry.artifact else None,
        "problem": entry.problem,
    }


def _line(entry: Entry) -> str:
    r = _row(entry)
    what = (
        f"NOT USABLE: {entry.problem}"
        if entry.problem
        else "{units} units, {dtype}, torch {torch}, {device}, {origin}".format(**r)
    )
    return f"{entry.key[:12]}  {entry.bytes / 1e6:6.1f} MB  {r['last_used']}  {what}"


def _list(args: argparse.Namespace) -> int:
    store = make_store(args)
    entries = store.list()
    lines = [_line(e) for e in entries]
    lines.append(
        f"{len(entries)} artifacts, {sum(e.bytes for e in entries) / 1e6:.1f} MB in {store.root}"
    )
    show(
        {"store": str(store.root), "artifacts": [_row(e) for e in entries]}, args, "\n".join(lines)
    )
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
    known = [e.key for e in store.list() if not e.problem]
    if not known:
        raise AccelError(
            f"the store {store.root} holds no usable artifact; expected some to export. Make one: python -m lib_accel prebuild"
        )
    if names == ["all"]:
        return known
    keys = []
    for name in names:
        matches = [k for k in known if k.startswith(name)]
        if len(matches) != 1:
            raise AccelError(
                f"{name!r} fits {len(matches)} artifacts; expected exactly one of: {', '.join(k[:12] for k in known)}"
            )
        keys += matches
    return keys


def _export(args: argparse.Namespace) -> int:
    store = make_store(args)
    keys = _expand(store, args.keys)
    signing_key = None
    if args.key:
        if not args.key.exists():
            seal.write_key(args.key, seal.generate_key())
            say(
                f"made a new signing key: {args.key}. Who has it can make artifacts your machines will load; keep it secret."
            )
        signing_key = seal.read_key(args.key)
    store.export(keys, args.to, signing_key)
    signed = "signed" if signing_key else "UNSIGNED: importing it needs --allow-unsigned"
    show(
        {"file": str(args.to), "keys": keys, "signed": bool(signing_key)},
        args,
        f"{len(keys)} artifacts written to {args.to} ({signed})",
    )
    return 0


def _import(args: argparse.Namespace) -> int:
    if not args.key and not args.allow_unsigned:
        raise AccelError(
            f"{args.file} is native code: give --key FILE, the key it was signed with, or --allow-unsigned if you are sure of its origin"
        )
    store = make_store(args)
    signing_key = seal.read_key(args.key) if args.key else None
    artifacts = store.import_(args.file, signing_key, args.allow_unsigned)
    lines = [f"{a.key[:12]}  {a.manifest['origin']}" for a in artifacts]
    text = "\n".join([*lines, f"{len(artifacts)} artifacts from {args.file} are in {store.root}"])
    show({"store": str(store.root), "keys": [a.key for a in artifacts]}, args, text)
    return 0

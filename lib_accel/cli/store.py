"""`store`: look after the artifacts."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .. import seal
from ..errors import AccelError
from ..store import ArtifactStore, Entry
from .common import Commands, add_store_arguments, command, make_store, say, show


def add(commands: Commands) -> None:
    parser = commands.add_parser("store", help="list, verify, clear, export and import artifacts", description="Look after the artifacts.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    command(actions, "list", "every artifact: what it is for, size, last use", _list)
    command(actions, "verify", "read every byte and compare checksums; exit status 1 when one is damaged", _verify)
    command(actions, "clear", "remove every artifact", _clear)
    export = command(actions, "export", "write artifacts to one file, to seed other machines", _export)
    export.add_argument("keys", nargs="+", help="keys, or the beginning of one each, or `all`")
    export.add_argument("--to", type=Path, required=True, help="the file to write")
    export.add_argument("--key", type=Path, help="sign with this key file (made when it does not exist); without one the file is unsigned")
    importer = command(actions, "import", "take artifacts from an exported file", _import)
    importer.add_argument("file", type=Path)
    importer.add_argument("--key", type=Path, help="the key file it was signed with")
    importer.add_argument(
        "--allow-unsigned", action="store_true", help="take it without a signature: it is native code, be sure of its origin"
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
        "problem": entry.problem,
    }


def _list(args: argparse.Namespace) -> int:
    store = make_store(args)
    rows = [_row(e) for e in store.list()]
    lines = [
        f"{str(r['key'])[:12]}  {int(str(r['bytes'])) / 1e6:6.1f} MB  {r['last_used']}  "
        + (f"DAMAGED: {r['problem']}" if r["problem"] else f"{r['units']} units, {r['dtype']}, torch {r['torch']}, {r['device']}")
        for r in rows
    ]
    total = sum(e.bytes for e in store.list())
    show(
        {"store": str(store.root), "artifacts": rows},
        args,
        "\n".join([*lines, f"{len(rows)} artifacts, {total / 1e6:.1f} MB in {store.root}"]),
    )
    return 0


def _verify(args: argparse.Namespace) -> int:
    store = make_store(args)
    found = store.verify()
    damaged = {key: problem for key, problem in found if problem}
    text = "\n".join(
        [*(f"{key[:12]}: {problem}" for key, problem in damaged.items()), f"{len(found) - len(damaged)} good, {len(damaged)} damaged"]
    )
    show({"good": len(found) - len(damaged), "damaged": damaged}, args, text)
    return 1 if damaged else 0


def _clear(args: argparse.Namespace) -> int:
    freed = make_store(args).clear()
    show({"bytes_freed": freed}, args, f"{freed / 1e6:.1f} MB freed")
    return 0


def _expand(store: ArtifactStore, names: list[str]) -> list[str]:
    known = [e.key for e in store.list() if not e.problem]
    if names == ["all"]:
        return known
    keys = []
    for name in names:
        matches = [k for k in known if k.startswith(name)]
        if len(matches) != 1:
            raise AccelError(
                f"{name!r} fits {len(matches)} artifacts; expected exactly one of: {', '.join(k[:12] for k in known) or 'none at hand'}"
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
            say(f"made a new signing key: {args.key}. Who has it can make artifacts your machines will load; keep it secret.")
        signing_key = seal.read_key(args.key)
    store.export(keys, args.to, signing_key)
    signed = "signed" if signing_key else "UNSIGNED: importing it needs --allow-unsigned"
    show({"file": str(args.to), "keys": keys, "signed": bool(signing_key)}, args, f"{len(keys)} artifacts written to {args.to} ({signed})")
    return 0


def _import(args: argparse.Namespace) -> int:
    store = make_store(args)
    signing_key = seal.read_key(args.key) if args.key else None
    artifacts = store.import_(args.file, signing_key, args.allow_unsigned)
    show({"keys": [a.key for a in artifacts]}, args, f"{len(artifacts)} artifacts imported into {store.root}")
    return 0

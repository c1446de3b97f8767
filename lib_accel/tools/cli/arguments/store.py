"""The arguments of `store` and of its actions."""

from __future__ import annotations

from pathlib import Path

from .common import Commands, add_store_arguments, command, path

_MORE = """An artifact is the compiled code of one unit (one kind of layer) for one dtype, compute
capability of GPUs (or instruction set of CPUs) and torch version. It holds no weights. An
architecture has about 17 units; `list` shows one line for all units that were made for the same
model family and machine.

examples:
  PROGRAM store list
  PROGRAM store export all --to fleet.zip --key ~/fleet.key
  PROGRAM store import fleet.zip --key ~/fleet.key"""
_ASKS = "It asks first. Where nobody can answer, as in a script, it needs --yes."
_EXPORT = """The key file is made when it does not exist. Copy it to the other machines by a way you
trust: who has it can make files that they will run as code."""
_KEY = """To share a store, give each of its users a copy of one key file: --store-key FILE here,
--accel-store-key FILE for the WebUI. On POSIX each copy must be its user's or root's, mode 0600.

With --pair, FILE is a private key, for --signing-key where code is compiled or exported. FILE.pub
holds its public key: put that line into the file that the servers' --accel-trusted-keys name. Who
has the public key alone can check code and sign none. Needs the package cryptography."""
_IMPORT = """Artifacts are native code, so they are accepted only with the key they were signed
with, signed with a trusted key (--trusted-keys), or when you state that you trust the file."""
_KEYS = "as `store list` shows them (--json: single units), or the beginning of one"


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    summary = "look after the artifacts: list, verify, delete, clear, export, import"
    parser = command(commands, "store", summary, _MORE, json=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    summary = "show what is stored, by what it was made for (--json: every artifact)"
    command(actions, "list", summary)
    summary = "read every byte and compare checksums; exit status 1 when one is damaged"
    command(actions, "verify", summary)
    _add_removals(actions)
    _add_exchange(actions)
    for action in actions.choices.values():
        add_store_arguments(action)
    summary = "make a key file, for signing exports or for a store that machines share"
    key = command(actions, "key", summary, _KEY)
    key.add_argument("file", type=path, metavar="FILE")
    text = "make a pair instead: a private key to sign with, and a public one to check with"
    key.add_argument("--pair", action="store_true", help=text)


def _add_removals(actions: Commands) -> None:
    delete = command(actions, "delete", "remove artifacts", _ASKS)
    delete.add_argument("keys", nargs="+", metavar="KEY", help=_KEYS)
    summary = "remove every artifact; what is needed is compiled again"
    clear = command(actions, "clear", summary, _ASKS)
    for parser in (delete, clear):
        parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_exchange(actions: Commands) -> None:
    summary = "write artifacts to one file, to seed other machines"
    export = command(actions, "export", summary, _EXPORT)
    export.add_argument("keys", nargs="+", metavar="KEY", help=f"{_KEYS}, or `all`")
    text = "the file to write, or the URL of a store that machines share"
    export.add_argument("--to", type=_file_or_url, metavar="FILE|URL", required=True, help=text)
    text = "replace the file if there is one"
    export.add_argument("--force", action="store_true", help=text)
    text = "sign with this key file; without one the file is unsigned"
    export.add_argument("--key", type=path, metavar="FILE", help=text)
    summary = "put the artifacts of an exported file into the store"
    importer = command(actions, "import", summary, _IMPORT)
    importer.add_argument("file", type=path, metavar="FILE")
    text = "the key file it was signed with"
    importer.add_argument("--key", type=path, metavar="FILE", help=text)
    text = "accept it without a signature; be sure of its origin"
    importer.add_argument("--allow-unsigned", action="store_true", help=text)


def _file_or_url(text: str) -> Path | str:
    return text if "://" in text else path(text)

"""A digest of the source code that shapes compiled code: a part of every artifact's key."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

ROOTS = ("compile/units.py", "compile/backends/aoti/compiler.py")
"""The files that define a unit and export it. What they import shapes compiled code as well."""

FOLDERS = ("compile", "model")
"""Imports are followed into these folders; the others (the store, errors) compute nothing."""


@functools.cache
def source_digest(roots: tuple[str, ...] = ROOTS) -> str:
    """Return the digest of the installed files: a hex sha256. They are read once."""
    return digest_of(PACKAGE, roots)


def digest_of(package: Path, roots: Sequence[str] = ROOTS, folders: Sequence[str] = FOLDERS) -> str:
    """Return the digest of the copy of `lib_accel` at `package`: a hex sha256.

    It covers `roots` and whatever they import from `folders`. Comments, docstrings and formatting
    do not change it; every other change of a source file does. Python 3.10 to 3.14 give the same.
    Raises OSError or SyntaxError where a file cannot be read.
    """
    # file by file: trees of all at once would make the garbage collector go through the process
    trees = {
        file.relative_to(package).as_posix(): json.dumps(_plain(tree))
        for file, tree in _walk(package, roots, folders)
    }
    text = ", ".join(f"{json.dumps(name)}: {trees[name]}" for name in sorted(trees))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


def source_files(
    package: Path, roots: Sequence[str] = ROOTS, folders: Sequence[str] = FOLDERS
) -> set[Path]:
    """Return `roots` and whatever they import from `folders`: what shapes compiled code."""
    return {file for file, _ in _walk(package, roots, folders)}


def _walk(
    package: Path, roots: Sequence[str], folders: Sequence[str]
) -> Iterator[tuple[Path, ast.Module]]:
    found: set[Path] = set()
    waiting = [package / root for root in roots]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            tree = ast.parse(file.read_bytes())
            waiting += [
                imported
                for imported in _imports(file, tree)
                if imported.is_file() and imported.relative_to(package).parts[0] in folders
            ]
            yield file, tree


def _imports(file: Path, tree: ast.Module) -> Iterator[Path]:
    """Where the modules that `file` imports from this package would be: not all of these exist."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for each in (module, *(module / name.name for name in node.names)):
                yield from (each.with_suffix(".py"), each / "__init__.py")


def _plain(node: object) -> object:
    """Return a syntax tree as nested lists, without positions, docstrings and empty fields.

    Each version of Python adds fields to the nodes (`type_params` in 3.12), which are empty where
    older Pythons can read the source.
    """
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, *(field for field in fields if field[1] not in (None, []))]
    if isinstance(node, list):
        return [_plain(each) for each in node if not _is_docstring(each)]
    return None if node is None else ascii(node)


def _is_docstring(node: object) -> bool:
    """Whether `node` is a statement that is nothing but a string: of a module, function or name."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return False
    return isinstance(node.value.value, str)

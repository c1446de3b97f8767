"""The rules for the layout of the code, each a function that returns the violations as sentences.

Only the text of the files is read; nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# A module may import from its own room, which is a folder or file of lib_accel, and from lower
# floors. The package itself may import from all but the top floor, as it is the public door.
FLOORS = {"errors": 0, "config": 0, "model": 1, "store": 2, "compile": 3, "runtime": 4}
FLOORS |= {"lib_accel": 5, "host": 5, "tools": 5, "__main__": 6}
MOST_ENTRIES = 12  # in a folder of lib_accel; 10 in lib_accel itself
MOST_ENTRIES_ON_TOP = 10
MOST_LINES = 300  # in a file
MOST_LINES_OF_A_FUNCTION = 50


def modules(root: Path) -> dict[str, Path]:
    """Return the file of each module of lib_accel by its dotted name."""
    found = {}
    for file in sorted((root / "lib_accel").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of all that module `name` imports, in functions too."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def edges(root: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (module, line, imported module) for all imports of lib_accel by lib_accel."""
    known = modules(root)
    for name, file in known.items():
        for line, target in imports(name, file):
            if target.partition(".")[0] == "lib_accel":
                yield name, line, target if target in known else target.rpartition(".")[0]


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def upward_imports(root: Path) -> list[str]:
    """Return the imports within lib_accel that lead neither to the same room nor downwards."""
    found = []
    for name, line, target in edges(root):
        source, goal = _room(name), _room(target)
        unknown = {source, goal} - FLOORS.keys()
        if unknown:
            found.append(f"{name}:{line} {sorted(unknown)} has no floor")
        elif goal not in (source, "lib_accel") and FLOORS[goal] >= FLOORS[source]:
            found.append(f"{name}:{line} imports {target}")
    return found


def circular_imports(root: Path) -> list[str]:
    """Return each module that imports itself over others, with the way.

    The package lib_accel is left out: it imports its public door only when that is used.
    """
    graph: dict[str, set[str]] = {}
    for name, _, target in edges(root):
        if "lib_accel" not in (name, target) and name != target:
            graph.setdefault(name, set()).add(target)
    return [" imports ".join(way) for name in sorted(graph) if (way := _way_back(graph, name))]


def _way_back(graph: dict[str, set[str]], start: str) -> list[str]:
    """Return the shortest way from `start` to itself, or nothing."""
    ways, seen = [[start]], set()
    for way in ways:  # the list grows while it is read
        for target in sorted(graph.get(way[-1], ())):
            if target == start:
                return [*way, target]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def crowded_folders(root: Path) -> list[str]:
    """Return the folders of lib_accel with too many entries."""
    top, found = root / "lib_accel", []
    for folder in (top, *(path for path in sorted(top.rglob("*")) if path.is_dir())):
        count = sum(path.name != "__pycache__" for path in folder.iterdir())
        most = MOST_ENTRIES_ON_TOP if folder == top else MOST_ENTRIES
        if count > most and folder.name != "__pycache__":
            found.append(f"{folder.relative_to(root)} has {count} entries, {most} are allowed")
    return found


def long_files(root: Path) -> list[str]:
    """Return the files of lib_accel and tests with too many lines."""
    counts = {file: len(text.splitlines()) for file, text in _sources(root)}
    return [f"{file} has {n} lines" for file, n in counts.items() if n > MOST_LINES]


def long_functions(root: Path) -> list[str]:
    """Return the functions of lib_accel and tests with too many lines, from `def` to the last."""
    found = []
    for file, text in _sources(root):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    found.append(f"{file}:{node.lineno} {node.name} has {lines} lines")
    return found


def _sources(root: Path) -> Iterator[tuple[str, str]]:
    for folder in ("lib_accel", "tests"):
        for file in sorted((root / folder).rglob("*.py")):
            yield file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")

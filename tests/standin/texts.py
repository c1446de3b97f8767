"""Finds English texts: in the source, and in the HTML of the pages."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

VALUE = "{}"
"""Stands in a text for a value that is known only at run time."""

Names = dict[str, set[str]]
"""What the variables of a function hold, where that is text."""

_TEXT = (ast.Constant, ast.Name, ast.JoinedStr, ast.FormattedValue)
_TEXT = (*_TEXT, ast.BinOp, ast.BoolOp, ast.IfExp)


class Source:
    """A file of Python: the texts in it, with VALUE for what is known only at run time."""

    def __init__(self, file: Path):
        self._tree = ast.parse(file.read_text(encoding="utf-8"))
        self._functions = [n for n in ast.walk(self._tree) if isinstance(n, ast.FunctionDef)]
        self._constants = _names(self._tree.body, {})

    def texts(self, skip: tuple[str, ...] = ()) -> set[str]:
        """Return all texts: whole expressions, not their parts, and no docstrings.

        Arguments of functions in `skip` are left out.
        """
        found = set(_texts_in(self._tree, self._constants, skip))
        for function in self._functions:
            found.update(_texts_in(function, self._names(function), skip))
        return found

    def arguments(self, *names: str) -> set[str]:
        """Return the texts with which functions of these names are called."""
        found: set[str] = set()
        for function in self._functions:
            known = self._names(function)
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and _name(call) in names:
                    found.update(*(_texts_of(a, known) for a in call.args))
        return found

    def answers(self, names: str) -> set[str]:
        """Return the texts that functions return whose name holds the pattern `names`."""
        found: set[str] = set()
        for function in self._functions:
            if re.search(names, function.name):
                known = self._names(function)
                for statement in ast.walk(function):
                    if isinstance(statement, ast.Return) and statement.value is not None:
                        found.update(_texts_of(statement.value, known))
        return found

    def _names(self, function: ast.FunctionDef) -> Names:
        return _names(ast.walk(function), self._constants)


def _names(code: Iterable[ast.AST], known: Names) -> Names:
    found = {name: set(texts) for name, texts in known.items()}
    for node in code:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(targets[0], ast.Name) and isinstance(value, ast.expr):
            found.setdefault(targets[0].id, set()).update(_texts_of(value, found))
    return {name: texts for name, texts in found.items() if texts - {VALUE}}


def _texts_of(node: ast.AST, names: Names) -> set[str]:
    """Return every text that an expression can be."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.Name):
        return names.get(node.id, set())
    if isinstance(node, ast.IfExp):
        return _any_of([node.body, node.orelse], names)
    if isinstance(node, ast.BoolOp):
        return _any_of(node.values, names)
    if isinstance(node, ast.FormattedValue):
        return _texts_of(node.value, names) or {VALUE}
    if isinstance(node, ast.JoinedStr):
        return _joined(node.values, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([node.left, node.right], names) - {VALUE * 2}
    return set()


def _any_of(parts: list[ast.expr], names: Names) -> set[str]:
    each = [_texts_of(part, names) for part in parts]
    return set().union(*(texts or {VALUE} for texts in each)) if any(each) else set()


def _joined(parts: list[ast.expr], names: Names) -> set[str]:
    each = [_texts_of(part, names) or {VALUE} for part in parts]
    return {"".join(combination) for combination in itertools.product(*each)}


def _texts_in(
    node: ast.AST, names: Names, skip: tuple[str, ...], inside: bool = False
) -> Iterator[str]:
    """Yield the texts in a piece of code. `inside` a text, only calls hold further ones."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Call):
        if _name(node) in skip:
            return
        inside = False
    texts = _texts_of(node, names)
    if not inside:
        yield from texts
    inside = (inside or bool(texts)) and isinstance(node, _TEXT)
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef):  # it has names of its own
            yield from _texts_in(child, names, skip, inside)


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", None) or getattr(call.func, "attr", "")


class Words:
    """Keys of a translation, looked up as javascript/accel.js does it."""

    def __init__(self, keys: set[str]):
        self.keys = keys
        longest_first = sorted((k for k in keys if "{0}" in k), key=len, reverse=True)
        self._patterns = [(k, _pattern(k)) for k in longest_first if re.search("[a-z]{2}", k)]

    def know(self, text: str) -> bool:
        """Return whether a text is translated: as a whole, or each of the pieces that "; " joins.

        So must be the sentences among its values.
        """
        named = re.split("; (?=[a-z]+: )", text)
        if len(named) > 1:
            return all(map(self.know, named))
        parts = text.split("; ")
        for n in range(len(parts), 0, -1):
            if self._holds("; ".join(parts[:n])):
                return n == len(parts) or self.know("; ".join(parts[n:]))
        return not is_sentence(parts[0]) and (len(parts) == 1 or self.know("; ".join(parts[1:])))

    def _holds(self, text: str) -> bool:
        if text in self.keys or f"({text})" in self.keys:  # OptionInfo.info adds brackets
            return True
        named = re.fullmatch(r"(\w+): (.+)", text, re.DOTALL)
        if named is not None and self._holds(named[2]):
            return True
        for _, pattern in self._patterns:
            if found := pattern.fullmatch(text):
                return all(map(self.know, found.groups()))
        return False

    def unused(self, texts: set[str]) -> list[str]:
        """Return the keys that translate none of these texts."""
        texts = texts | {piece for text in texts for piece in text.split("; ")}
        used = {key for key, pattern in self._patterns if any(map(pattern.fullmatch, texts))}
        used |= {key for key in self.keys if {key, key[1:-1]} & texts}
        return sorted(self.keys - used)


def is_sentence(text: str) -> bool:
    """Return whether a text is words and not only names, numbers and values."""
    return bool(re.search("[A-Za-z0-9.)}:;,] [A-Za-z{(]", text) and re.search(r"\b[a-z]{2}", text))


def _pattern(key: str) -> re.Pattern[str]:
    pieces = re.split(r"\{\d\}", key)
    return re.compile("(.+?)".join(map(re.escape, pieces)), re.DOTALL)


class Page(HTMLParser):
    """The texts of an HTML page: `fixed` ones, and `varying` ones of the class accel-text."""

    def __init__(self, html: str):
        super().__init__()
        self.fixed: set[str] = set()
        self.varying: set[str] = set()
        self._kinds: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = (dict(attrs).get("class") or "").split()
        untranslated = tag in ("code", "text", "title") or "accel-plain" in classes
        varying = "accel-text" in classes
        self._kinds.append("plain" if untranslated else "varying" if varying else "fixed")

    def handle_endtag(self, tag: str) -> None:
        self._kinds.pop()

    def handle_data(self, data: str) -> None:
        kind, text = self._kinds[-1] if self._kinds else "fixed", data.strip()
        if kind != "plain" and re.search("[A-Za-z]", text):
            (self.varying if kind == "varying" else self.fixed).add(text)

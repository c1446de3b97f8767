"""Finds English texts: in the source, and in the HTML of the pages."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

VALUE = "{}"
"""Stands in a text for a value that is known only at run time."""

_TEXT = (ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.BinOp, ast.IfExp, ast.BoolOp)


def texts_of(node: ast.AST) -> set[str]:
    """Return every text that an expression can be."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.IfExp):
        return texts_of(node.body) | texts_of(node.orelse)
    if isinstance(node, ast.BoolOp):
        return set().union(*map(texts_of, node.values))
    if isinstance(node, ast.FormattedValue):
        return texts_of(node.value) or {VALUE}
    if isinstance(node, ast.JoinedStr):
        return _joined(node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([node.left, node.right]) - {VALUE * 2}
    return set()


def _joined(parts: list[ast.expr]) -> set[str]:
    each = [texts_of(part) or {VALUE} for part in parts]
    return {"".join(combination) for combination in itertools.product(*each)}


def parse(file: Path) -> ast.Module:
    """Return the syntax tree of a file of Python."""
    return ast.parse(file.read_text(encoding="utf-8"))


def texts_in(node: ast.AST, skip: tuple[str, ...] = (), inside: bool = False) -> Iterator[str]:
    """Yield the texts in a piece of code: whole expressions, not their parts, no docstrings.

    Arguments of functions in `skip` are left out. `inside` a text, only calls hold further ones.
    """
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call):
        if _name(node) in skip:
            return
        inside = False
    texts = texts_of(node)
    if not inside:
        yield from texts
    inside = (inside or bool(texts)) and isinstance(node, _TEXT)
    for child in ast.iter_child_nodes(node):
        yield from texts_in(child, skip, inside)


def arguments_of(node: ast.AST, *names: str) -> Iterator[str]:
    """Yield the texts that functions of these names are called with."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and _name(call) in names:
            for argument in call.args:
                yield from texts_of(argument)


def texts_of_functions(node: ast.AST, pattern: str) -> Iterator[str]:
    """Yield the texts in functions whose name matches `pattern`."""
    for function in ast.walk(node):
        if isinstance(function, ast.FunctionDef) and re.search(pattern, function.name):
            for statement in function.body:
                yield from texts_in(statement)


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", None) or getattr(call.func, "attr", "")


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

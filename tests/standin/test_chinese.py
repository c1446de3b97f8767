"""Every text that the pages show has Chinese in localizations/zh_CN.json, and no key is unused.

javascript/accel.js translates by keys with {0}, {1} for values. Left in English: lines in the
console, and errors that quote files, compilers and torch (StoreError, ArtifactRejected,
CompileFailed).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from lib_accel.compile.machine import probe

from .conftest import Start
from .host import ROOT, Host
from .texts import VALUE, Page, arguments_of, parse, texts_in, texts_of_functions

LIB = ROOT / "lib_accel"
JAVASCRIPT = ROOT / "javascript" / "accel.js"
NOT_SHOWN = ("say", "print", "HTTPException", "RuntimeError", "ValueError", "discard", "plain")
"""Functions of lib_accel.host whose arguments no page shows, or none translates."""
NAMES = ("pip install", "Python {", "Triton {")
"""How texts begin that are the same in every language."""
SENTENCE = re.compile("[A-Za-z0-9.)}:;,] [A-Za-z{(]")


def _keys() -> set[str]:
    return set(json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8")))


def _template(key: str) -> str:
    return re.sub(r"\{\d\}", VALUE, key)


def _core() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted(LIB.rglob("*.py")):
        if file.relative_to(LIB).parts[0] not in ("host", "tools"):
            yield file, parse(file)


def _reasons() -> set[str]:
    """Texts of the core that the status, the tab or a reason quotes."""
    found: set[str] = set()
    for file, tree in _core():
        found.update(texts_of_functions(tree, "why_not|_advice$"))
        found.update(t for t in arguments_of(tree, "Finding") if t not in ("ok", "note", "problem"))
        found.update(arguments_of(tree, "report"))
        if file.name != "presets.py":  # which only the command line uses
            found.update(arguments_of(tree, "UnsupportedArchitecture", "BadWeights"))
        if file.name == "config.py":
            found.update(arguments_of(tree, "ValueError"))
    return {t for t in found if SENTENCE.search(t) and not t.startswith(NAMES)}


def _sentences_of_host() -> set[str]:
    return {
        text
        for file in (LIB / "host").rglob("*.py")
        if file.name != "options.py"  # it holds sentences that earlier versions stored
        for text in texts_in(parse(file), NOT_SHOWN)
        if SENTENCE.search(text) and not re.search("[<=]", text)
    }


def _sentences_of_javascript() -> set[str]:
    text = JAVASCRIPT.read_text(encoding="utf-8")
    return {_template(t) for t in re.findall(r'translate\("([^"]+)"\)', text)}


def _translates(keys: set[str], text: str) -> bool:
    """As accel.js does: the whole text, by a key with values, or piece by piece."""
    templates = {_template(key) for key in keys}
    return text in templates or all(piece in templates for piece in text.split("; "))


def _lacks(keys: set[str], texts: set[str]) -> list[str]:
    """Return the texts without Chinese. OptionInfo.info puts some in brackets."""
    return sorted(t for t in texts if not _translates(keys, t) and f"({t})" not in keys)


def _unused(keys: set[str]) -> list[str]:
    """Return the keys that stand for no text of the source."""
    source = _sentences_of_javascript()
    for file in LIB.rglob("*.py"):
        source.update(texts_in(parse(file)))
        source.update(Page(" ".join(t for t in texts_in(parse(file)) if "<" in t)).fixed)
    bare = {_template(key): key for key in keys}
    return sorted(key for text, key in bare.items() if not {text, text[1:-1]} & source)


def test_every_reason_has_chinese() -> None:
    assert _lacks(_keys(), _reasons()) == []


def test_every_sentence_of_the_pages_has_chinese() -> None:
    assert _lacks(_keys(), _sentences_of_host() | _sentences_of_javascript()) == []


def test_every_key_is_used() -> None:
    assert _unused(_keys()) == []


def test_a_missing_and_an_unused_key_are_found() -> None:
    keys = _keys()
    assert _unused(keys | {"nobody says this {0}"}) == ["nobody says this {0}"]
    assert _lacks(keys - {"Acceleration is off"}, _sentences_of_host()) == ["Acceleration is off"]
    assert _lacks(keys - {"a {0} has hooks"}, _sentences_of_host()) == ["a {} has hooks"]
    assert _lacks(keys - {"compiling is switched off"}, _reasons()) == ["compiling is switched off"]
    question = next(k for k in keys if k.startswith("Delete this"))
    assert _lacks(keys - {question}, _sentences_of_javascript()) == [_template(question)]


def test_chinese_holds_the_same_values_as_its_key() -> None:
    words = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    values = {key: sorted(re.findall(r"\{\d\}", key)) for key in words}
    assert {k for k, v in words.items() if sorted(re.findall(r"\{\d\}", v)) != values[k]} == set()


# -- what the stand-in's pages show


def _shown(host: Host) -> str:
    """Return the HTML of all pages; buttons and tab titles too."""
    pages = [c.value for c in host.pages.shown if type(c).__name__ == "HTML" and c.value]
    buttons = [f"<b>{c.value}</b>" for c in host.pages.shown if type(c).__name__ == "Button"]
    return " ".join([*pages, *buttons, *(f"<b>{title}</b>" for _, title, _ in host.tabs)])


def _settings(host: Host) -> set[str]:
    settings, found = host.module("modules.ui_settings"), set()
    for name, info in host.opts.data_labels.items():
        if name.startswith("accel_"):
            component = settings.create_setting_component(name)
            found |= {info.label, info.section[1], *Page(info.comment_after).fixed}
            found |= {label for label, word in getattr(component, "choices", ()) if label != word}
    return found


def _press(host: Host, name: str) -> None:
    next(c for c in host.pages.shown if c.elem_id == f"accel_{name}").press()


def _check(host: Host) -> None:
    keys, page = _keys(), Page(_shown(host))
    assert [t for t in page.fixed | _settings(host) if t not in keys and t != "Run"] == []
    patterns = [
        re.compile("(.+?)".join(map(re.escape, _template(key).split(VALUE))), re.DOTALL)
        for key in keys
    ]
    device = probe(torch.device("cpu")).device_name  # a finding may be nothing but names
    for text in page.varying:
        pieces = [text, *text.split("; ")]
        known = any(p.fullmatch(piece) for p in patterns for piece in pieces)
        assert known or text.startswith(device), text


def test_everything_shown_has_chinese_in_every_state(start: Start, own_store: Path) -> None:
    host = start("--accel-store", str(own_store))
    _press(host, "refresh")
    _check(host)
    host.load()
    host.image()
    key = host.status()["artifact"]["key"]
    host.opts.set("accel_enable", False)
    host.image()
    host.opts.set("accel_enable", True)
    _press(host, "build")
    _check(host)
    host.module("modules.shared").loaded_hypernetworks.append(object())
    host.image()
    for _ in range(2):  # the second finds nothing to delete
        next(c for c in host.pages.shown if type(c).__name__ == "Textbox").value = key
        _press(host, "delete")
        _check(host)


def test_everything_shown_has_chinese_while_compiling(start: Start, tmp_path: Path) -> None:
    host = start("--accel-store", str(tmp_path / "empty"))
    host.load()
    assert host.status()["state"] == "compiling"
    _press(host, "build")
    _check(host)
    host.opts.set("accel_enable", False)
    _press(host, "build")
    _check(host)

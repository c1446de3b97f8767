"""Every text that the pages show has Chinese in localizations/zh_CN.json, and no key is unused.

javascript/accel.js translates by keys with {0}, {1} for values. Left in English: lines in the
console, and what the system, the compiler or torch said, where a sentence quotes it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from lib_accel import errors
from lib_accel.compile.machine import probe

from .conftest import Start
from .host import ROOT, Host
from .texts import Page, Source, Words, is_sentence

LIB = ROOT / "lib_accel"
NOT_SHOWN = ("say", "print", "HTTPException", "RuntimeError", "ValueError", "discard", "plain")
"""Functions of lib_accel.host whose arguments no page shows, or none translates."""
OTHERS = ("archive.py", "vouching.py", "presets.py")
"""Files whose errors only the command line meets."""
ERRORS = tuple(name for name, kind in vars(errors).items() if isinstance(kind, type))
ERRORS = (*ERRORS, "ForeignArtifact", "LockBusy")
DOING = ("os_errors", "_prepare", "_require_writable")
"""Functions that are told what failed, for an error that begins with "Could not"."""
NAMES = ("pip install", "Python {", "Triton {")
"""How texts begin that are the same in every language."""


def chinese() -> dict[str, str]:
    """Return the translations by their English key."""
    return json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))


def _words(but: str = "") -> Words:
    return Words(set(chinese()) - {but})


def reasons() -> set[str]:
    """Return the texts of the core that the status, the tab or a reason quotes."""
    found: set[str] = set()
    for file in LIB.rglob("*.py"):
        folder, source = file.relative_to(LIB).parts[0], Source(file)
        if folder in ("compile", "runtime"):
            found |= source.answers(
                "why_not|^_no|__str__|cannot_run|no_room|misfit|^_end$|^_record$"
            ) | source.arguments("Finding", "Missing", "report")
        if folder in ("compile", "host", "model", "runtime", "store") and file.name not in OTHERS:
            found |= source.arguments(*ERRORS, "damaged", "_refuse")
        if folder == "store":
            found |= source.answers("^_wrong_files|^revoked$") | source.arguments(*DOING)
        if file.name == "files.py":
            found |= {text for text in source.texts() if text.endswith(".")}
        if folder == "config.py":
            found |= source.arguments("ValueError")
    return {t for t in found if is_sentence(t) and not t.startswith(NAMES)}


def _host() -> set[str]:
    """Return the sentences of lib_accel.host and of the script in the page."""
    script = (ROOT / "javascript" / "accel.js").read_text(encoding="utf-8")
    found = set(re.findall(r'translate\("([^"]+)"\)', script))
    for file in (LIB / "host").rglob("*.py"):
        if file.name not in ("options.py", "metrics.py"):  # former sentences; for monitoring
            found |= Source(file).texts(NOT_SHOWN)
    return {t for t in found if is_sentence(t) and not re.search("[<=]", t)}


def _everything() -> set[str]:
    """Return every text of the source."""
    found = _host()
    for file in LIB.rglob("*.py"):
        texts = Source(file).texts()
        found |= texts | Page(" ".join(t for t in texts if "<" in t)).fixed
    return found


def _lacks(words: Words, texts: set[str]) -> list[str]:
    return sorted(t for t in texts if not words.know(t))


def test_every_reason_has_chinese() -> None:
    assert _lacks(_words(), reasons()) == []


def test_every_sentence_of_the_pages_has_chinese() -> None:
    assert _lacks(_words(), _host()) == []


def test_every_key_is_used() -> None:
    assert _words().unused(_everything()) == []


def test_a_missing_and_an_unused_key_are_found() -> None:
    assert Words({"nobody says this {0}"}).unused(_everything()) == ["nobody says this {0}"]
    for key, texts in (
        ("Acceleration is off", _host()),
        ("a {0} has hooks", _host()),
        (next(k for k in chinese() if k.startswith("Delete the")), _host()),
        ("compiling is switched off", reasons()),
    ):
        missing = _lacks(_words(but=key), texts)
        assert [t.replace("{}", "{0}") for t in missing] == [key]


def test_chinese_holds_the_same_values_as_its_key() -> None:
    def values(text: str) -> list[str]:
        return sorted(re.findall(r"\{\d\}", text))

    assert {key for key, text in chinese().items() if values(text) != values(key)} == set()


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
    words, page = _words(), Page(_shown(host))
    assert [t for t in page.fixed | _settings(host) if t not in words.keys and t != "Run"] == []
    device = probe(torch.device("cpu")).device_name  # a finding may be nothing but names
    assert [t for t in page.varying if not words.know(t) and not t.startswith(device)] == []


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

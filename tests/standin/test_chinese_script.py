"""Every reason, as the status shows it, goes through javascript/accel.js itself, in node."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess

import pytest

from lib_accel.compile.session import CANCELLED, Choice

from .host import ROOT
from .test_chinese import chinese, reasons
from .texts import VALUE

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(not NODE, reason="NOT RUN: node is not installed")
GIVEN = ("C:\\a folder\\x.so", "3 of 4 (0o777)", "NVIDIA RTX 4090", "1.5e-03")
"""Values to put into sentences."""


def _script(texts: list[str], words: dict[str, str] | None = None) -> list[str]:
    given = json.dumps({"words": chinese() if words is None else words, "texts": texts})
    program = ROOT / "tests" / "standin" / "translate.js"
    done = subprocess.run(
        [str(NODE), str(program), str(ROOT / "javascript" / "accel.js")],
        input=given,
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def _filled(text: str) -> str:
    values = iter(GIVEN * 9)
    return re.sub(re.escape(VALUE), lambda _: next(values), text)


def _untranslated(texts: list[str], words: dict[str, str] | None = None) -> list[str]:
    """Return the texts of which an English sentence, not a name or a value, is left."""
    left, commands = [], " ".join(chinese().values())
    for text, result in zip(texts, _script(texts, words), strict=True):
        pieces = set(re.findall(r"[a-z]{3,} [a-z]{2,} [a-z]{2,}", text))
        if result == text or any(p in result and p not in commands for p in pieces):
            left.append(f"{text} -> {result}")
    return left


def test_every_reason_is_translated_as_the_status_shows_it() -> None:
    """Alone, with a backend's name in front, and two of them joined as a choice joins them."""
    all_reasons = sorted(map(_filled, reasons()))
    pairs = itertools.pairwise(all_reasons)
    refused = [(("aoti", a), ("jit", b)) for a, b in pairs]
    named = [Choice(None, pair).reason or "" for pair in refused]
    assert _untranslated(all_reasons) == []
    assert _untranslated(named) == []
    translated = dict(zip(all_reasons, _script(all_reasons), strict=True))
    wrong = [
        (text, shown)
        for pair, text, shown in zip(refused, named, _script(named), strict=True)
        if shown != "; ".join(f"{name}: {translated[why]}" for name, why in pair)
    ]
    assert wrong == []


def test_a_reason_without_chinese_is_found() -> None:
    words = {key: text for key, text in chinese().items() if key != CANCELLED}
    shown = [f"aoti: {CANCELLED}"]
    assert _untranslated(shown) == []
    assert len(_untranslated(shown, words)) == 1


def test_what_the_pages_compute_is_translated_with_its_values() -> None:
    shown = [
        "1.7x faster with a: 6.9 s a step instead of 11.9 s, 12 images of 512x512 in batches of 2",
        "Compiling 3 of 16, about 2 minutes left",
        "Compiling, about 10 seconds left",
    ]
    for text, result in zip(shown, _script(shown), strict=True):
        numbers = re.findall(r"[\d.x]+(?=[ ,])|[\d.x]+$", text.replace("1.7x", "1.7"))
        assert all(number in result for number in numbers), (numbers, result)
        assert not re.search(r"[A-Za-z]{2}", result), result

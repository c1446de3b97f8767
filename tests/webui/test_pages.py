"""The pages in a browser: status line, settings, tab, Chinese, compiling, a server that goes away.

Needs chromium, chromedriver and selenium (`pip install selenium`); without them these are skipped.
Each test depends on those before it: run the whole file.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .browser import STEPS, Page, open_page
from .conftest import HERE, Launch
from .host import Server

LEFT_IN_ENGLISH = """
const own = (e) => [...e.childNodes].filter(n => n.nodeType === 3)
    .map(n => n.textContent.trim()).join('');
return [...document.querySelectorAll(arguments[0])]
    .filter(e => e.offsetParent && !e.closest('.accel-plain, code')).map(own)
    .filter(t => /[a-z]{2}/i.test(t) && !/[\\u4e00-\\u9fff]/.test(t));
"""
PLACES = "return arguments[0].map(q => document.querySelector(q).getBoundingClientRect())"
OVERLAPS = """
const names = ['status_tab', 'refresh', 'build', 'details', 'plot', 'artifacts', 'findings'];
const place = (n) => document.querySelector('#accel_' + n).getBoundingClientRect();
const parts = names.map(n => [n, place(n)]);
const cross = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const wide = parts.filter(([_, r]) => r.right > window.innerWidth).map(([n]) => n + ' is too wide');
return wide.concat(parts.flatMap(([x, a], i) => parts.slice(i + 1)
    .filter(([_, b]) => cross(a, b)).map(([y]) => x + ' over ' + y)));
"""
TRANSLATED = """
return Object.keys(window.localization || {}).length && document.querySelector('#accel_status_tab')
"""
RADIO = """
return [...document.querySelectorAll(`#setting_${arguments[0]} label`)]
    .map(l => [l.innerText.trim(), l.querySelector('input').checked])
"""
CHOOSE = """
[...document.querySelectorAll(`#setting_${arguments[0]} label`)]
    .find(l => l.innerText.trim() === arguments[1]).click()
"""
TOO_WIDE = """
return [...document.querySelectorAll('#tab_accel *, .accel-status *')]
    .filter(e => e.offsetParent && !e.closest('.accel-unseen'))
    .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 80))
"""
HEADINGS = """
return [...document.querySelectorAll('#tab_accel :is(h1, h2, h3, h4, h5, h6)')].map(e => e.tagName)
"""
BARS = "return document.querySelectorAll('#accel_plot rect').length"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    yield from open_page(tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="module")
def own(page: Page, launch: Launch) -> Server:
    """A server for this file alone: its tests change the language and reload the pages."""
    server = launch()
    server.wait_ready()
    page.open(server)
    return server


@pytest.fixture(autouse=True)
def _no_errors(page: Page) -> Iterator[None]:
    page.errors()
    yield
    assert page.errors() == []


def test_an_image_made_by_clicking(page: Page, own: Server) -> None:
    page.fill("#txt2img_steps input", 12)
    infotext, progress = page.generate()
    page.fill("#txt2img_steps input", STEPS)
    status = own.status()
    assert f"Accel: {status['backend']}" in infotext
    assert any("%" in text for text in progress), progress
    line = rf"Acceleration is on {status['backend']}(, [\d.]+x)?"
    for tab in ("txt2img", "img2img"):
        assert re.fullmatch(line, page.line(tab))
        page.tab(tab)
        line_at, picture = page.js(PLACES, [f"#accel_status_{tab}", f"#{tab}_gallery_container"])
        assert line_at["height"] > 0
        assert line_at["bottom"] <= picture["top"] + 1, "the line is not above the picture"


def test_off_and_on_in_the_settings(page: Page, own: Server) -> None:
    page.apply_setting("#setting_accel_enable input")
    page.until(lambda: page.line() == "Acceleration is off", 15)
    assert "Accel" not in page.generate()[0]
    page.apply_setting("#setting_accel_enable input")
    page.until(lambda: page.line().startswith("Acceleration is on"), 15)
    assert "Accel: " in page.generate()[0]


def test_a_choice_shows_a_sentence_and_stores_a_word(page: Page, own: Server) -> None:
    def stored() -> Any:
        return own.get("/sdapi/v1/options")["accel_lora_base"]

    for sentence, word in (("pinned memory", "pinned"), ("ordinary memory", "host")):
        page.tab("Settings")
        page.tab("Acceleration", inside="#settings")
        page.js(CHOOSE, "accel_lora_base", sentence)
        page.click("#settings_submit")
        page.until(lambda word=word: stored() == word, 10)
    page.open(own)
    assert [label for label, on in page.js(RADIO, "accel_lora_base") if on] == ["ordinary memory"]
    own.options(accel_lora_base="auto")


def test_a_number_that_means_nothing_stays_what_it_was(page: Page, own: Server) -> None:
    page.apply_setting("#setting_accel_store_mib input[type=number]")
    for option, typed in (("store_mib", ""), ("graphs_mib", "0.5"), ("witness_steps", "")):
        css, name = f"#setting_accel_{option} input[type=number]", f"accel_{option}"
        before, field = own.get("/sdapi/v1/options")[name], page.element(css)
        page.click(css)
        field.clear()
        field.send_keys(typed)
        page.click("#settings_submit")
        page.until(lambda: page.texts("#settings_result")[0], 10)
        assert own.get("/sdapi/v1/options")[name] == before == float(field.get_property("value"))
        assert page.texts(f"#setting_{name} .accel-kept")[0].endswith(f"; it stays {before:g}")


def test_the_tab(page: Page, own: Server) -> None:
    page.generate()
    own.options(accel_enable=False)
    page.generate()
    own.options(accel_enable=True)
    page.tab("Acceleration")
    page.until(lambda: page.texts("#tab_accel code"), 10)
    assert [t for t in page.texts("#accel_details th") if t] == [], "the details are folded away"
    page.click("#accel_details summary")
    rows = page.texts("#accel_details th")
    assert {"Architecture", "Backend", "UNet calls by compiled code"} <= set(rows)
    page.click("#accel_details button")
    assert page.texts("#accel_details button") == ["Copied to the clipboard"]
    headline = page.texts("#accel_headline")[0]
    assert re.search(r"[\d.]+ s a step .*, \d+ images of 128x128$", headline), headline
    assert page.texts("#accel_artifacts tr[data-state='in use'] td:first-child b") == [
        own.status()["architecture"]
    ]
    assert len(page.texts("#accel_findings li")) >= 5
    for kind in ("on", "off"):
        bars = f"return document.querySelectorAll('#accel_plot rect.accel-{kind}').length"
        assert page.js(bars), f"no bar for an image with acceleration {kind}"
    assert page.js(OVERLAPS) == []
    assert page.js("return document.querySelector('#accel_build').disabled")
    assert not page.element("#accel_cancel").is_displayed()


def test_everything_has_a_name_for_those_who_cannot_see_it(page: Page, own: Server) -> None:
    page.tab("Acceleration")
    page.js("document.querySelector('#accel_details details').open = true")
    names = page.names("#tab_accel")
    buttons = [name for role, name in names if role == "button"]
    assert len(buttons) >= 4
    assert all(buttons), buttons
    architecture = own.status()["architecture"]
    assert [name for name in buttons if name.startswith(f"Delete {architecture} ")]
    images = [name for role, name in names if role in ("image", "img")]
    assert len(images) == 1
    assert " s a step " in images[0]
    assert set(page.js(HEADINGS)) == {"H2"}
    assert page.js("return document.querySelectorAll('[role=status] > .accel-line').length") == 3


@pytest.mark.parametrize(("width", "zoom"), [(500, 1), (1000, 2)])
def test_narrow_windows_and_large_letters_overflow_nowhere(
    page: Page, own: Server, width: int, zoom: int
) -> None:
    try:
        page.resize(width, 900, zoom)
        page.tab("Acceleration")
        assert page.js(TOO_WIDE) == []
    finally:
        page.resize(1280, 800)


def test_deleting_asks_first(page: Page, own: Server, tmp_path: Path) -> None:
    page.tab("Acceleration")
    kept = shutil.copytree(own.store, tmp_path / "kept")
    key = page.js("return document.querySelector('#tab_accel code').title")
    button = f"#tab_accel tr:has(code[title='{key}']) button.accel-button"
    page.click(button)
    assert key[:12] in page.driver.switch_to.alert.text
    page.driver.switch_to.alert.dismiss()
    time.sleep(1)
    before = len(list(own.store.glob("*/manifest.json")))
    assert before == len(list(kept.glob("*/manifest.json"))) > 0
    page.click(button)
    page.driver.switch_to.alert.accept()
    page.until(lambda: key[:12] not in page.texts("#tab_accel code"), 10)
    assert len(list(own.store.glob("*/manifest.json"))) < before
    assert "Deleted." in page.texts("#accel_message .accel-message")[0]
    assert "Accel: " in page.generate()[0]  # what is loaded goes on serving
    shutil.copytree(kept, own.store, dirs_exist_ok=True)


def test_chinese_after_reload_ui(page: Page, own: Server) -> None:
    page.tab("Settings")
    page.tab("User interface", inside="#settings")
    page.click("#setting_localization input")
    listed = "#setting_localization li"
    choice = page.until(
        lambda: [e for e in page.driver.find_elements("css selector", listed) if "zh_CN" in e.text],
        5,
    )[0]
    page.js("arguments[0].dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))", choice)
    page.click("#settings_submit")
    page.until(lambda: own.get("/sdapi/v1/options")["localization"] == "zh_CN", 10)
    page.js("document.querySelector('#settings_restart_gradio').click()")
    page.until(lambda: page.js(TRANSLATED), 120)
    page.wait_loaded()
    page.until(lambda: page.line().startswith("加速已开启"), 15)  # the UNet is accelerated again
    page.tab("加速")
    page.until(lambda: page.texts("#tab_accel code"), 10)
    left = page.js(LEFT_IN_ENGLISH, "#tab_accel *, .accel-status *")
    device = own.status()["device"]
    names = ("MiB", "Python ", device)  # the same in Chinese
    assert [t for t in left if not t.startswith(names)] == []
    page.tab("Settings")
    page.tab("加速", inside="#settings")
    translated = ("enable", "while_compiling", "store_mib", "graphs_mib", "lora_base")
    settings = ", ".join(f"#setting_accel_{name} *" for name in translated)
    assert page.js(LEFT_IN_ENGLISH, settings) == []


def test_nothing_is_doubled_after_reload_ui(page: Page, own: Server) -> None:
    page.tab("加速")
    before, drawn = own.status()["counters"]["accelerated_calls"], page.js(BARS)
    infotext, _ = page.generate()
    assert infotext.count("Accel:") == 1
    assert own.status()["counters"]["accelerated_calls"] == before + STEPS
    page.tab("加速")
    page.until(lambda: page.js(BARS) == drawn + 1, 10)
    assert page.js("return document.querySelectorAll('.accel-status .accel-line').length") == 3


def test_a_server_that_goes_away(page: Page, own: Server) -> None:
    """The line is shown as old, and the page does not fill with errors."""
    own.stop()
    stale = "return document.documentElement.classList.contains('accel-stale')"
    page.until(lambda: page.js(stale), 15)
    assert page.texts(".toast-wrap .error") == []
    assert [e for e in page.errors() if "run/accel_status" not in e] == []


def test_compiling_is_shown_and_can_be_cancelled(page: Page, webui: Path, folder: Path) -> None:
    """With an empty store: the bar moves, pictures are made meanwhile, and nothing asks."""
    empty = folder / "empty"
    empty.mkdir(mode=0o700)
    extension = {"accel": HERE.parent.parent}
    data = folder / "data-compiling"
    server = Server(webui, data, empty, "tinyA", extensions=extension)
    line = r"Compiling (\d+) of \d+, about [\d]+ (minutes?|seconds) left images are made without .*"

    def done() -> float:
        return page.js("return document.querySelector('#accel_status_tab progress').value")

    try:
        page.open(server)
        page.until(lambda: re.fullmatch(line, page.line()), 60)
        assert "Accel" not in page.generate()[0]
        page.tab("Acceleration")
        for _ in range(3):
            before = done()
            page.until(lambda before=before: done() > before, 10)
        page.until(lambda: page.element("#accel_cancel").is_displayed(), 10)
        page.click("#accel_cancel")
        page.until(lambda: "compiling was cancelled" in page.line(), 15)
        page.until(lambda: not page.element("#accel_cancel").is_displayed(), 10)
        assert page.element("#accel_build").is_enabled()
        _folds_a_long_reason(page)
    finally:
        page.resize(1280, 800)
        server.stop()


def _folds_a_long_reason(page: Page) -> None:
    """Above a picture it takes one line, until it is opened."""
    page.resize(500, 900)
    page.tab("txt2img")
    height = "return document.querySelector('#accel_status_txt2img .accel-line').clientHeight"
    folded = page.js(height)
    page.click("#accel_status_txt2img summary")
    assert folded < 30 < page.js(height)

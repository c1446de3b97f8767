"""The pages, clicked through in Chromium: status line, settings, tab, both languages, compiling, a server that goes away.

Needs chromium, chromedriver and selenium (`pip install selenium`); without them these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, Launch
from .host import Server, python_of

FLAGS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
FLAGS += " disable-sync disable-dev-shm-usage window-size=1280,800"
STEPS = 3
SET = """
for (const e of document.querySelectorAll(arguments[0])) { e.value = arguments[1]; e.dispatchEvent(new Event('input', {bubbles: true})); }
"""
LEFT_IN_ENGLISH = """
const own = (e) => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join('');
return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent && !e.closest('.accel-plain, code')).map(own)
    .filter(t => /[a-z]{2}/i.test(t) && !/[\\u4e00-\\u9fff]/.test(t));
"""
PLACES = "return arguments[0].map(q => document.querySelector(q).getBoundingClientRect())"
OVERLAPS = """
const names = ['status_tab', 'refresh', 'build', 'details', 'plot', 'artifacts', 'findings'];
const parts = names.map(n => [n, document.querySelector('#accel_' + n).getBoundingClientRect()]);
const cross = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const wide = parts.filter(([_, r]) => r.right > window.innerWidth).map(([n]) => n + ' is too wide');
return wide.concat(parts.flatMap(([x, a], i) => parts.slice(i + 1).filter(([_, b]) => cross(a, b)).map(([y]) => x + ' over ' + y)));
"""


class Page:
    """One browser window on one server."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, server: Server, query: str = "") -> None:
        self.driver.get(f"http://127.0.0.1:{server.port}/{query}")
        self.wait_loaded()

    def wait_loaded(self) -> None:
        """Until the extension's script has asked for the status once."""
        self.until(
            lambda: self.js(
                "return !!document.querySelector('#txt2img_results_panel #accel_status_txt2img .accel-line')"
            ),
            120,
        )
        time.sleep(1)
        self.fill("#txt2img_prompt textarea", "a photo of a cat")
        for name, value in (("width", 128), ("height", 128), ("steps", STEPS)):
            self.fill(f"#txt2img_{name} input", value)

    def js(self, code: str, *args: Any) -> Any:
        return self.driver.execute_script(code, *args)

    def until(self, true: Callable[[], Any], seconds: float) -> Any:
        """What `true` answers once that is something; errors while the page is being replaced are waited out."""
        from selenium.common.exceptions import WebDriverException

        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                last = true()
                if last:
                    return last
            except WebDriverException as e:
                last = e
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s; last: {last}")

    def element(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def click(self, css: str) -> None:
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.element(css))
        self.element(css).click()

    def fill(self, css: str, value: object) -> None:
        self.js(SET, css, str(value))

    def texts(self, css: str) -> list[str]:
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", css
        )

    def tab(self, *names: str, inside: str = "#tabs") -> None:
        """Press the tab button that has one of the names (one for each language)."""
        choose = f"return [...document.querySelectorAll('{inside} > .tab-nav > button')].find(b => arguments[0].includes(b.innerText.trim()))"
        button = self.until(lambda: self.js(choose, names), 5)
        self.js("arguments[0].click()", button)
        time.sleep(1.5)

    def line(self, tab: str = "txt2img") -> str:
        return " ".join(
            self.js(
                "return document.querySelector(arguments[0]).textContent",
                f"#accel_status_{tab} .accel-line",
            ).split()
        )

    def generate(self, tab: str = "txt2img") -> tuple[str, set[str]]:
        """Press Generate: the infotext, and what the WebUI's own progress bar said meanwhile."""
        self.tab(tab)
        before = self.js("return document.querySelector('#txt2img_gallery img')?.src")
        self.click(f"#{tab}_generate")
        said: set[str] = set()

        def done() -> bool:
            said.update(t for t in self.texts(f"#tab_{tab} .progressDiv .progress") if t.strip())
            return self.js(
                "return document.querySelector('#txt2img_gallery img')?.src"
            ) != before and not self.texts(f"#tab_{tab} .progressDiv")

        self.until(done, 120)
        time.sleep(1)
        return self.texts(f"#html_info_{tab}")[0], said

    def apply_setting(self, css: str) -> None:
        self.tab("Settings", "设置")
        self.tab("Acceleration", "加速", inside="#settings")
        self.click(css)
        self.click("#settings_submit")

    def errors(self) -> list[str]:
        """What the console says of our script since the last call."""
        return [
            e["message"]
            for e in self.driver.get_log("browser")
            if e["level"] == "SEVERE" and "accel.js" in e["message"]
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="NOT RUN, no browser test: pip install selenium"
    )
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("NOT RUN, no browser test: chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield Page(window)
    window.quit()


@pytest.fixture(scope="module")
def own(page: Page, launch: Launch) -> Server:
    """A server of this file's own, its code compiled: the tests change its language and reload its pages."""
    server = launch()
    server.wait_ready()
    page.open(server)
    return server


@pytest.fixture(autouse=True)
def _no_errors(page: Page) -> Iterator[None]:
    page.errors()
    yield
    assert page.errors() == []


def test_a_picture_made_by_clicking(page: Page, own: Server) -> None:
    page.fill("#txt2img_steps input", 12)
    infotext, said = page.generate()
    page.fill("#txt2img_steps input", STEPS)
    status = own.status()
    assert f"Accel: {status['backend']}" in infotext
    assert any("%" in t for t in said), said  # the WebUI's own progress bar
    for tab in ("txt2img", "img2img"):
        assert (
            page.line(tab)
            == f"Acceleration is on {status['backend']} {status['architecture']} {status['dtype']}"
        )
        page.tab(tab)
        line, picture = page.js(PLACES, [f"#accel_status_{tab}", f"#{tab}_gallery_container"])
        assert line["height"] > 0
        assert line["bottom"] <= picture["top"] + 1, "the line is not above the picture"


def test_off_and_on_in_the_settings(page: Page, own: Server) -> None:
    page.apply_setting("#setting_accel_enable input")
    page.until(lambda: page.line() == "Acceleration is off", 15)
    assert "Accel" not in page.generate()[0]
    page.apply_setting("#setting_accel_enable input")
    page.until(lambda: page.line().startswith("Acceleration is on"), 15)
    assert "Accel: " in page.generate()[0]


def test_the_tab(page: Page, own: Server) -> None:
    page.generate()
    page.tab("Acceleration")
    page.until(lambda: page.texts("#tab_accel code"), 10)
    assert {"Architecture", "Backend", "UNet calls accelerated"} <= set(
        page.texts("#accel_details th")
    )
    assert len(page.texts("#accel_findings li")) >= 5
    for kind in ("on", "off"):
        assert page.js(
            f"return document.querySelectorAll('#accel_plot rect.accel-{kind}').length"
        ), f"no bar for an image with acceleration {kind}"
    assert page.js(OVERLAPS) == []
    page.click("#accel_build")
    page.until(
        lambda: (
            "This model has its compiled code; there is nothing to build."
            in page.texts("#accel_message .accel-message")
        ),
        10,
    )


def test_delete_asks_first(page: Page, own: Server, tmp_path: Path) -> None:
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
    page.until(
        lambda: page.js(
            "return Object.keys(window.localization || {}).length && document.querySelector('#accel_status_tab')"
        ),
        120,
    )
    page.wait_loaded()
    page.until(lambda: page.line().startswith("加速已开启"), 15)  # the UNet is taken over again
    page.tab("加速")
    page.until(lambda: page.texts("#tab_accel code"), 10)
    left = page.js(LEFT_IN_ENGLISH, "#tab_accel *, .accel-status *")
    names = (
        "MB",
        "Python ",
        page.texts("#accel_details td")[3],
    )  # also in Chinese; the fourth is the device
    assert [t for t in left if not t.startswith(names)] == []
    page.tab("Settings")
    page.tab("加速", inside="#settings")
    settings = ", ".join(
        f"#setting_{name} *"
        for name in ("accel_enable", "accel_while_compiling", "accel_store_mib")
    )
    assert page.js(LEFT_IN_ENGLISH, settings) == []


def test_nothing_is_doubled_after_reload_ui(page: Page, own: Server) -> None:
    bars = "return document.querySelectorAll('#accel_plot rect').length"
    page.tab("加速")
    before, drawn = own.status()["counters"]["accelerated_calls"], page.js(bars)
    infotext, _ = page.generate()
    assert infotext.count("Accel:") == 1
    assert own.status()["counters"]["accelerated_calls"] == before + STEPS
    page.tab("加速")
    page.until(lambda: page.js(bars) == drawn + 1, 10)
    assert page.js("return document.querySelectorAll('.accel-status .accel-line').length") == 3


def test_a_server_that_goes_away(page: Page, own: Server) -> None:
    """The line is shown as old, and the page is not filled with errors."""
    own.stop()
    page.until(
        lambda: page.js("return document.documentElement.classList.contains('accel-stale')"), 15
    )
    assert page.texts(".toast-wrap .error") == []
    assert [e for e in page.errors() if "run/accel_status" not in e] == []


def test_compiling_is_shown(page: Page, webui: Path, folder: Path) -> None:
    """With an empty store: the line counts up, and pictures are made meanwhile."""
    empty = folder / "empty"
    empty.mkdir(mode=0o700)
    server = Server(
        webui, folder / "data-compiling", empty, python_of(webui), [], {"accel": HERE.parent.parent}
    ).start("tinyA")
    try:
        page.open(server)
        first = page.until(
            lambda: re.fullmatch(
                r"Compiling (\d+)% .* images are made without acceleration until then", page.line()
            ),
            60,
        )
        assert "Accel" not in page.generate()[0]
        page.until(
            lambda: int((re.search(r"(\d+)%", page.line()) or first)[1]) > int(first[1]), 300
        )
    finally:
        server.stop()

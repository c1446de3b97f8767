"""A browser window on a WebUI: Chromium, driven by selenium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .host import Server

FLAGS = [
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    "window-size=1280,800",
]
STEPS = 3
_SET = """
for (const e of document.querySelectorAll(arguments[0])) {
    e.value = arguments[1];
    e.dispatchEvent(new Event('input', {bubbles: true}));
}
"""
_LOADED = """
return !!document.querySelector('#txt2img_results_panel #accel_status_txt2img .accel-line')
"""
_TAB_BUTTON = """
return [...document.querySelectorAll(arguments[1] + ' > .tab-nav > button')]
    .find(b => arguments[0].includes(b.innerText.trim()))
"""
_IMAGE = "return document.querySelector('#txt2img_gallery img')?.src"


class Page:
    """One browser window on one server."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, server: Server, query: str = "") -> None:
        """Go to a server's page."""
        self.driver.get(f"http://127.0.0.1:{server.port}/{query}")
        self.wait_loaded()

    def wait_loaded(self) -> None:
        """Wait until javascript/accel.js has moved the status line, and fill in a small image."""
        self.until(lambda: self.js(_LOADED), 120)
        time.sleep(1)
        self.fill("#txt2img_prompt textarea", "a photo of a cat")
        for name, value in (("width", 128), ("height", 128), ("steps", STEPS)):
            self.fill(f"#txt2img_{name} input", value)

    def js(self, code: str, *args: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(code, *args)

    def until(self, answer: Callable[[], Any], seconds: float) -> Any:
        """Return the first true answer. Errors of selenium while a page changes are ignored."""
        from selenium.common.exceptions import WebDriverException

        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                last = answer()
                if last:
                    return last
            except WebDriverException as e:
                last = e
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s; last: {last}")

    def element(self, css: str) -> Any:
        """Return the first element of a CSS selector."""
        return self.driver.find_element("css selector", css)

    def names(self, css: str) -> list[tuple[str, str]]:
        """Return the role and the name of everything inside an element, as a screen reader does."""
        ask = self.driver.execute_cdp_cmd
        root = ask("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
        inside = ask("DOM.querySelector", {"nodeId": root, "selector": css})
        nodes = ask("Accessibility.queryAXTree", inside)["nodes"]
        shown = (node for node in nodes if not node.get("ignored"))
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in shown]

    def resize(self, width: int, height: int, zoom: int = 1) -> None:
        """Give the page a size in pixels of the screen; `zoom` makes all on it larger."""
        size = {"width": width // zoom, "height": height // zoom, "deviceScaleFactor": zoom}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "mobile": False})

    def click(self, css: str) -> None:
        """Click an element."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.element(css))
        self.element(css).click()

    def fill(self, css: str, value: object) -> None:
        """Write into fields."""
        self.js(_SET, css, str(value))

    def texts(self, css: str) -> list[str]:
        """Return the text of each element."""
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", css
        )

    def tab(self, *names: str, inside: str = "#tabs") -> None:
        """Press the tab button that has one of the names, one for each language."""
        button = self.until(lambda: self.js(_TAB_BUTTON, names, inside), 5)
        self.js("arguments[0].click()", button)
        time.sleep(1.5)

    def line(self, tab: str = "txt2img") -> str:
        """Return the text of a status line."""
        code = "return document.querySelector(arguments[0]).textContent"
        return " ".join(self.js(code, f"#accel_status_{tab} .accel-line").split())

    def generate(self, tab: str = "txt2img") -> tuple[str, set[str]]:
        """Press Generate. Returns the infotext and the texts of the WebUI's progress bar."""
        self.tab(tab)
        before = self.js(_IMAGE)
        self.click(f"#{tab}_generate")
        progress: set[str] = set()

        def done() -> bool:
            progress.update(
                t for t in self.texts(f"#tab_{tab} .progressDiv .progress") if t.strip()
            )
            return self.js(_IMAGE) != before and not self.texts(f"#tab_{tab} .progressDiv")

        self.until(done, 120)
        time.sleep(1)
        return self.texts(f"#html_info_{tab}")[0], progress

    def apply_setting(self, css: str) -> None:
        """Click an element of our settings and apply them."""
        self.tab("Settings", "设置")
        self.tab("Acceleration", "加速", inside="#settings")
        self.click(css)
        self.click("#settings_submit")

    def errors(self) -> list[str]:
        """Return what the browser's console says of our script since the last call."""
        return [
            e["message"]
            for e in self.driver.get_log("browser")
            if e["level"] == "SEVERE" and "accel.js" in e["message"]
        ]


def open_page(folder: Path) -> Iterator[Page]:
    """Yield a window whose profile lies in `folder`; skip the test where a part is missing."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="NOT RUN, no browser test: pip install selenium"
    )
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("NOT RUN, no browser test: chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={folder}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield Page(window)
    window.quit()

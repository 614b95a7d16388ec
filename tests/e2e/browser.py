"""A real Chromium without a window, driven by selenium: what a page looks like, says, and complains of."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.apt import cannot_install

PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver"}  # program -> package
LOAD_LIMIT_S = 60


def unfit() -> str | None:
    """Why this machine cannot have a browser; None when it can."""
    if not all(map(shutil.which, PACKAGES)) and os.geteuid() != 0:
        return f"{' and '.join(PACKAGES.values())} are not installed, and only root can install them"
    return cannot_install(PACKAGES)


class Browser:
    """One page at a time. ``width`` is of the window's inside, in CSS pixels."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, page: Path, *, width: int, height: int = 900) -> None:
        """Load the file; chromium's own windows are at least 500 px wide, so the width is emulated."""
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self._driver.get(page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that ``script`` returns in the page."""
        return self._driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the console got since it was last asked: errors, refused loads, warnings."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def picture(self, path: Path) -> None:
        """The whole page, however long, as PNG."""
        found = self._command("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def paper(self) -> bytes:
        """The page as PDF, as it would be printed."""
        return base64.b64decode(self._command("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _command(self, name: str, **arguments: Any) -> Any:
        return self._driver.execute_cdp_cmd(name, arguments)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser that ends with the block; about a second."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    # no sandbox: tests run as root; no /dev/shm: it is 64 MB in containers
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(LOAD_LIMIT_S)
        driver.set_script_timeout(LOAD_LIMIT_S)
        yield Browser(driver)
    finally:
        driver.quit()

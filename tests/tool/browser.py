"""A headless Chromium for tests of the report's page, where Selenium, a browser and its driver are installed.

``ATTN_REQUIRE_BROWSER=1`` turns the skip without one into a failure, for a CI that is meant to have one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

# Chrome first: where both are, as on GitHub's runners, the driver is Chrome's.
BROWSERS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")


def missing() -> str:
    """Return why no browser can be started, empty where one can."""
    try:
        import selenium.webdriver  # noqa: F401
    except ImportError as error:
        return f"selenium does not import ({error}); it is in the dependency group test"
    if _browser() is None:
        return f"no browser: none of {', '.join(BROWSERS)} is on the path"
    if _driver() is None:
        return "no chromedriver on the path or in CHROMEWEBDRIVER; Debian has it in chromium-driver"
    return ""


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a driver of a fresh headless browser that logs its console and its network requests."""
    if reason := missing():
        _give_up(reason)
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _browser()
    # No sandbox, as containers lack what it needs; the pages are our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=Service(_driver()))
    except WebDriverException as error:
        _give_up(f"{options.binary_location} does not start: {error.msg}")
    try:
        yield driver
    finally:
        driver.quit()


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("ATTN_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _browser() -> str | None:
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def _driver() -> str | None:
    folder = os.environ.get("CHROMEWEBDRIVER")  # GitHub's runners
    beside = Path(folder) / "chromedriver" if folder else None
    return str(beside) if beside is not None and beside.is_file() else shutil.which("chromedriver")

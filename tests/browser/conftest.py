"""A real Chromium without a screen, and what it said of the pages that it opened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = [
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
HARMLESS = ("getImageData", "GPU stall")  # of plotly's own drawing without a graphics card


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium missing: the test is skipped, or fails where CI=true."""
    path = shutil.which("chromium")
    if path is None:
        text = "chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(text)
        pytest.skip(text)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@dataclass
class Opened:
    """A page, and what it said in the console or asked of other machines, which must be nothing."""

    page: Page
    said: list[str]

    def check_silent(self) -> None:
        assert not [line for line in self.said if not any(word in line for word in HARMLESS)]


def open_page(browser: Browser, url: str) -> Opened:
    """A page of desktop size."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    opened = Opened(page, [])
    page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
    page.on("request", lambda asked: opened.said.append(f"asked for {asked.url}") if _elsewhere(asked.url) else None)
    page.goto(url)
    return opened


def _elsewhere(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:"))

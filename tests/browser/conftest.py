"""The report in a headless Chromium, opened from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chromium import chromium
from playwright.sync_api import Browser, Page

PATIENCE_MS = 120_000  # on a machine that does other work


@dataclass
class Tab:
    """A page, and all that went wrong in it."""

    page: Page
    wrong: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a file; when the test ends, nothing may have failed in it."""
    tabs: list[Tab] = []

    def open_file(path: Path, **options: object) -> Tab:
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}).new_page()
        page.set_default_timeout(PATIENCE_MS)
        tab = Tab(page)
        page.on("console", lambda message: message.type in ("error", "warning") and tab.wrong.append(message.text))
        page.on("pageerror", lambda error: tab.wrong.append(str(error)))
        page.on("requestfailed", lambda request: tab.wrong.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: tab.asked.append(request.url))
        tabs.append(tab)
        page.goto(path.resolve().as_uri())
        return tab

    yield open_file
    for tab in tabs:
        tab.page.context.close()
    assert [tab.wrong for tab in tabs] == [[] for _ in tabs]

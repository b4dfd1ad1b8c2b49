"""What tests of the page share: one browser for all tests of a file, and pages that fail a test if they complain."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page

from support.browser import chromium, pages


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Opens an address; what the console may say of it is `NO_COMPLAINTS` of the file, a regular expression."""
    with pages(browser, request.module.NO_COMPLAINTS) as start:
        yield start

"""A real Chromium, and pages in it that fail a test if they complain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

# A busy machine takes its time.
WAIT_MILLISECONDS = 60_000
# It asks its makers for nothing.
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

# What Chromium says of requests that are on their way while a server ends.
SERVER_ENDS = "net::ERR_(?:CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|SOCKET_NOT_CONNECTED)"

expect.set_options(timeout=WAIT_MILLISECONDS)


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """Starts it, with further arguments, and ends it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=[*_ARGUMENTS, *arguments])
        yield browser
        browser.close()


def in_words(said: ConsoleMessage) -> str:
    """A message of the console, with the address that it is about."""
    return f"{said.text} {said.location.get('url', '')}"


@contextmanager
def pages(browser: Browser, expected: re.Pattern[str]) -> Iterator[Callable[..., Page]]:
    """A function that opens an address, with the options of a context of its own.

    Args:
        browser: a running one.
        expected: what the console may say without being a complaint.

    Raises:
        AssertionError: at the end, if a page wrote an error, or asked another host for anything.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def start(url: str, **options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MILLISECONDS)
        own = ("/".join(url.split("/")[:3]) + "/", "data:", "blob:")
        page.on("console", lambda said: None if expected.search(said.text) else complaints.append(in_words(said)))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: None if request.url.startswith(own) else complaints.append(request.url))
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not complaints, complaints


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a point of the editor's picture is on the screen; `x` and `y` are parts of its width and height."""
    box = page.locator("#zones-picture").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drags from one point of the editor's picture to another."""
    page.mouse.move(*at(page, *start))
    page.mouse.down()
    page.mouse.move(*at(page, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
    page.mouse.move(*at(page, *end))
    page.mouse.up()

"""The review in a real Chromium: a real daemon with spool, pictures and clips, and the page's own process."""

from __future__ import annotations

import http.client
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from support.axe import FINDINGS, axe_script
from support.browser import WAIT_MILLISECONDS
from support.page import PageProcess
from support.processes import DaemonProcess
from support.processes import stream as configured

pytestmark = pytest.mark.package("chromium")

# What Chromium says of a clip that is not there yet.
NO_COMPLAINTS = re.compile("status of 404")
_ZONE = '[[streams.zones]]\nname = "bay"\npolygon = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]\n'
_RULES = """
[pictures]
directory = "{folder}/pictures"
[clips]
directory = "{folder}/clips"
[[rules]]
name = "<i>someone</i> there"
streams = ["gate"]
zone = "bay"
picture = true
clip_seconds = [1, 1]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("review")
    daemon = DaemonProcess(folder / "d", comes_and_goes=True)
    daemon.write_config(
        configured("gate", max_fps=10, track_max_lost_seconds=0.3) + _ZONE,
        configured("yard", max_fps=10, track_max_lost_seconds=0.3),
        more=_RULES.format(folder=folder),
    )
    daemon.ready()
    yield daemon
    assert daemon.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def server(daemon: DaemonProcess) -> Iterator[PageProcess]:
    with PageProcess(daemon.endpoint) as server:
        yield server


def cards(page: Page, kind: str = "") -> Any:
    return page.locator(f".occurrence[data-kind={kind}]" if kind else ".occurrence")


def get(server: PageProcess, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def wait_for(server: PageProcess, query: str, fits: Callable[[Any], bool]) -> Any:
    """The first item of a list for which this holds."""
    deadline = time.monotonic() + WAIT_MILLISECONDS / 1000
    while time.monotonic() < deadline:
        items = json.loads(get(server, f"/api/review?{query}")[2])["items"]
        if found := next(filter(fits, items), None):
            return found
        time.sleep(0.1)
    raise AssertionError(query)


def with_head(route: Route, change: Callable[[dict[str, Any]], None]) -> None:
    """Answers with what the server says, and a change of the first part of it."""
    body = route.fetch().body()
    length = int.from_bytes(body[:4], "big")
    head = json.loads(body[4 : 4 + length])
    change(head)
    text = json.dumps(head).encode()
    route.fulfill(body=len(text).to_bytes(4, "big") + text + body[4 + length :])


def test_a_card_opens_picture_path_and_clip_and_is_marked_for_all(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    alert = wait_for(server, "kind=alerts", lambda item: item["ended_at"] is not None)
    page = open_page(f"{server.url}#/review?kind=alerts&stream=gate", viewport={"width": 1200, "height": 900})
    card = page.locator(".occurrence", has=page.locator(f"a[href*='{alert['id']}']"))
    expect(card).to_contain_text("<i>someone</i> there")
    expect(card).to_contain_text("bay")
    card.scroll_into_view_if_needed()  # on a slow machine many others are above it, and pictures out of sight wait
    assert card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 20
    assert page.locator("#review-view i:not(.swatch), #review-view b").count() == 0
    card.locator("a").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.locator("h2")).to_be_focused()
    expect(dialog.locator("svg.overlay polygon.zone")).to_have_count(1)
    assert dialog.locator(".shot img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 20
    video = dialog.locator("video")
    page.wait_for_function("() => document.querySelector('dialog video')?.readyState >= 1")
    assert video.evaluate("video => video.duration") > 1
    video.evaluate("video => { video.currentTime = video.duration * 0.8; }")
    page.wait_for_function("() => !document.querySelector('dialog video').seeking")
    dialog.get_by_text("Event as JSON").click()
    assert json.loads(dialog.locator("pre").text_content() or "")["alert"]["alert_id"] == alert["id"]
    dialog.get_by_label("Zones and lines").uncheck()
    expect(dialog.locator("svg.overlay polygon.zone")).to_have_count(0)
    # Someone else who has the list open sees the mark, and that it is gone, without asking again.
    began = int(alert["began_at"])
    watching = open_page(f"{server.url}#/review?kind=alerts&stream=gate&since={began}&until={began + 1}")
    same = watching.locator(".occurrence", has=watching.locator(f"a[href*='{alert['id']}']"))
    expect(same.get_by_role("button")).to_have_attribute("aria-pressed", "false")
    for pressed in ("true", "false", "true"):
        dialog.locator("h2").press("r")
        expect(dialog.get_by_role("button", name="Reviewed")).to_have_attribute("aria-pressed", pressed)
        expect(same.get_by_role("button")).to_have_attribute("aria-pressed", pressed)
    expect(watching.locator("#review-news")).to_have_text(re.compile("^[0-9]+ new$|^$"))
    watching.goto("about:blank")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page).to_have_url(re.compile("#/review"))
    expect(card.locator("a")).to_be_focused()
    # Someone else sees it, also behind the filter.
    other = open_page(f"{server.url}#/review?reviewed=yes")
    expect(cards(other)).to_have_count(1)
    expect(cards(other)).to_have_class(re.compile("reviewed"))
    cards(other).get_by_role("button").click()
    other.goto(f"{server.url}#/review?reviewed=yes&kind=alerts")
    expect(other.locator("#review-empty")).to_contain_text("Nothing matches the filters")
    for one in (page, other):
        one.goto("about:blank")


def test_an_answer_from_before_a_mark_does_not_undo_it(server: PageProcess, open_page: Callable[..., Page]) -> None:
    alert = wait_for(server, "kind=alerts", lambda item: item["ended_at"] is not None and not item["reviewed"])
    page = open_page(f"{server.url}#/review?id={alert['id']}&at={alert['began_at']}")
    is_marked, number = False, 0

    def change(head: dict[str, Any]) -> None:
        nonlocal number
        if news := head.get("review"):
            number = number if is_marked else news["marks"]
            news |= {"marks": number, "marked": {}, "items": [alert] if is_marked else []}

    page.route("**/api/updates", lambda route: with_head(route, change))
    button = page.get_by_role("dialog").get_by_role("button", name="Reviewed")
    expect(button).to_have_attribute("aria-pressed", "false")
    page.wait_for_event("response", lambda answer: answer.url.endswith("/api/updates"))
    is_marked = True
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    for _ in range(4):
        page.wait_for_event("response", lambda answer: answer.url.endswith("/api/updates"))
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    assert wait_for(server, "kind=alerts", lambda item: item["id"] == alert["id"])["reviewed"] is False
    page.goto("about:blank")


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_the_list_of_events_leads_to_the_card(server: PageProcess, open_page: Callable[..., Page], by: str) -> None:
    page = open_page(server.url, viewport={"width": 1200, "height": 900})
    expect(page.locator("#journal li[data-kind=object]").first).to_be_visible()
    page.get_by_label("Objects", exact=True).uncheck()
    page.get_by_label("States and losses").uncheck()
    expect(page.locator("#journal")).to_have_attribute("aria-busy", "false")  # the list has begun again
    expect(page.locator("#journal li:not([data-kind=alert])")).to_have_count(0)
    alert = page.locator("#journal li[data-kind=alert]").first
    if by == "keyboard":
        alert.get_by_role("link", name="Alert").focus()
        page.keyboard.press("Enter")
    else:
        # Others come meanwhile, and are alerts as well: the list holds still while it is pressed, even if it begins
        # again.
        place = "time => { const { x, y } = time.getBoundingClientRect(); return [x + 5, y + 5]; }"
        page.mouse.move(*alert.locator("time").evaluate(place))
        page.mouse.down()
        page.get_by_label("States and losses").evaluate("box => box.click()")
        for _ in range(4):
            page.wait_for_event("response", lambda answer: answer.url.endswith("/api/updates"))
        page.mouse.up()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("h2")).to_have_text("<i>someone</i> there · gate")
    page.go_back()
    expect(page.locator("#events-title")).to_be_visible()
    expect(page.locator("#journal li[data-kind=object]")).to_have_count(0)
    page.get_by_label("Objects", exact=True).check()
    ended = page.locator("#journal li[data-kind=object].opens", has_text="yard").first
    ended.get_by_role("link", name="person").press("Enter")
    expect(dialog.locator("h2")).to_have_text("person · yard")
    page.goto("about:blank")


def test_the_navigation_counts_the_alerts_that_are_to_be_reviewed(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    wait_for(server, "kind=alerts&reviewed=no", lambda item: True)
    page = open_page(server.url)
    expect(page.get_by_role("link", name=re.compile(r"^Review \(.* alerts? to review\)$"))).to_be_visible()
    count: list[int | None] = [1]

    def change(head: dict[str, Any]) -> None:
        if "to_review" in head:
            head["to_review"] = count[0]

    page.route("**/api/updates", lambda route: with_head(route, change))
    expect(page.get_by_role("link", name="Review (1 alert to review)", exact=True)).to_contain_text("1")
    count[0] = 100
    many = page.get_by_role("link", name="Review (more than 99 alerts to review)", exact=True)
    expect(many).to_contain_text("99+")
    # It hides less than half of the last letter, however long it is.
    link, shown = many.bounding_box(), page.locator("#to-review").bounding_box()
    assert link is not None
    assert shown is not None
    assert shown["height"] < 20
    assert shown["x"] > link["x"] + link["width"] - 16
    count[0] = None
    expect(page.get_by_role("link", name="Review", exact=True)).to_be_visible()
    page.unroute_all(behavior="wait")
    page.goto("about:blank")


def test_the_dialog_says_what_becomes_of_the_alert_and_of_its_clip(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    alert = wait_for(server, "kind=alerts", lambda item: item["ended_at"] is not None)
    assert alert["event"]["clip_seconds"] == [1, 1]
    event = {key: value for key, value in alert["event"].items() if key != "clip_id"}
    fresh = {**alert, "id": "fresh", "began_at": time.time(), "ended_at": None}
    fresh["event"] = {**alert["event"], "clip_seconds": [1, 4]}
    short = {**alert, "id": "short", "event": {**alert["event"], "clip_seconds": [60, 60]}}
    jpegs = {**alert, "id": "jpegs", "event": {**event, "clip_missing": "codec"}}
    begin: dict[str, object] = {"number": 1, "marks": 0, "next": None, "items": [fresh, short, jpegs]}
    begin |= {"problem": None, "marks_problem": "", "missing": "", "geometry": {}}
    is_over = is_written = False

    def change(head: dict[str, Any]) -> None:
        if head["review"]:
            head["review"]["items"] = [{**fresh, "ended_at": fresh["began_at"] + 75}] if is_over else []

    page = open_page(f"{server.url}healthz", viewport={"width": 1440, "height": 900})
    page.route(re.compile("/api/review([?]|$)"), lambda route: route.fulfill(json=begin))
    page.route("**/api/updates", lambda route: with_head(route, change))
    page.route("**/api/clips/*", lambda route: route.continue_() if is_written else route.fulfill(status=404))
    page.goto(f"{server.url}#/review")
    cards(page).nth(0).locator("a").click()
    clip, facts = page.locator("#occurrence-clip"), page.locator("#occurrence-facts")
    expect(clip).to_contain_text(re.compile("^The clip is being recorded; it is ready in about [1-5] s[.]$"))
    expect(facts).to_contain_text("still raised")
    is_over = True
    expect(facts).not_to_contain_text("still raised")
    expect(facts.locator("div", has_text="Raised for")).to_contain_text("1 min")
    expect(clip).to_have_text("The clip is being written …")
    is_written = True
    expect(clip.locator("video")).to_be_visible()
    # Beside the picture, and both on the screen.
    picture, player = page.locator("#occurrence-shot").bounding_box(), clip.bounding_box()
    assert picture
    assert player
    assert player["x"] >= picture["x"] + picture["width"]
    assert player["y"] + player["height"] <= 900
    page.keyboard.press("ArrowRight")
    expect(clip).to_contain_text(re.compile("^The clip has [0-9]+ s of the 2 min that its rule asks for"))
    page.keyboard.press("ArrowRight")
    expect(clip).to_have_text(re.compile("^There is no clip: the video is neither H.264 nor H.265"))
    page.unroute_all(behavior="wait")
    page.goto("about:blank")


def test_a_tap_on_a_clip_plays_it(server: PageProcess, open_page: Callable[..., Page]) -> None:
    wait_for(server, "kind=alerts", lambda item: item["ended_at"] is not None)
    phone = {"width": 390, "height": 844}
    page = open_page(f"{server.url}#/review?kind=alerts", viewport=phone, has_touch=True, is_mobile=True)
    cards(page).last.locator("a").tap()
    video = page.locator("dialog video")
    page.wait_for_function("() => document.querySelector('dialog video')?.readyState >= 1")
    expect(page.locator("dialog .keys")).to_be_hidden()
    video.tap()
    page.wait_for_function("() => document.querySelector('dialog video').currentTime > 0")
    page.goto("about:blank")


def test_the_wheel_over_a_dialog_scrolls_nothing_behind_it(server: PageProcess, open_page: Callable[..., Page]) -> None:
    wait_for(server, "stream=yard", lambda item: True)
    page = open_page(f"{server.url}#/review?stream=yard", viewport={"width": 1200, "height": 600})
    page.wait_for_function("() => document.documentElement.scrollHeight > 1000")
    cards(page).first.locator("a").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".shot img, .shot-empty")).to_be_visible()
    box = dialog.bounding_box()
    assert box
    before = page.evaluate("scrollY")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 10)
    page.mouse.wheel(0, 600)
    # What comes later has been scrolled after it.
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("scrollY") == before
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.mouse.wheel(0, 300)
    page.wait_for_function(f"() => scrollY > {before}")
    page.goto("about:blank")


def test_what_happens_comes_on_top_when_asked_for_and_nothing_comes_twice(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    wait_for(server, "", lambda item: item["rule"] is None)
    page = open_page(f"{server.url}#/review", viewport={"width": 1200, "height": 900})
    expect(cards(page).first).to_be_visible()
    first = cards(page).first.locator("a").get_attribute("href")
    news = page.locator("#review-news")
    expect(news).to_have_text(re.compile("^[0-9]+ new$"))
    # Nothing jumps meanwhile.
    assert cards(page).first.locator("a").get_attribute("href") == first
    news.click()
    expect(cards(page).first.locator("a")).not_to_have_attribute("href", first or "")
    hrefs = page.eval_on_selector_all(".occurrence a", "links => links.map(link => link.hash)")
    ids = [re.search(r"[?&]id=([^&]*)", href).group(1) for href in hrefs]  # type: ignore[union-attr]
    assert len(ids) == len(set(ids)) >= 2
    page.goto("about:blank")


def test_filters_stand_in_the_address_and_older_ones_follow_by_key(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    wait_for(server, "stream=yard", lambda item: bool(item["event"]["object"]["path"]))
    page = open_page(f"{server.url}#/review", viewport={"width": 1200, "height": 900})
    page.locator("#review-filters").get_by_label("Stream").select_option("yard")
    expect(page).to_have_url(re.compile("stream=yard"))
    expect(cards(page).first).to_be_visible()
    assert set(page.locator(".occurrence-stream").all_text_contents()) == {"yard"}
    page.get_by_role("button", name="Alerts").click()
    expect(page.locator("#review-empty")).to_contain_text("Nothing matches the filters")
    page.get_by_role("button", name="Clear filters").click()
    expect(page).to_have_url(re.compile("#/review$"))
    page.get_by_role("button", name="Objects").click()
    expect(page).to_have_url(re.compile("kind=objects"))
    page.wait_for_function("() => document.querySelectorAll('.occurrence').length >= 2")
    cards(page).first.locator("a").focus()
    page.keyboard.press("ArrowRight")
    expect(cards(page).nth(1).locator("a")).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("svg.overlay polyline.path").first).to_be_attached()
    before = page.url
    page.keyboard.press("ArrowLeft")
    expect(page).not_to_have_url(before)
    expect(dialog.get_by_role("button", name="Newer")).to_be_disabled()
    # A link leads there, also from elsewhere.
    other = open_page(page.url)
    expect(other.get_by_role("dialog").locator("h2")).to_have_text(dialog.locator("h2").text_content() or "")
    gone = open_page(f"{server.url}#/review?id=none&at=5")
    expect(gone.get_by_role("dialog")).to_contain_text("not kept any longer")
    for one in (page, other, gone):
        one.goto("about:blank")


def test_older_ones_come_while_a_card_is_open_and_keys_go_on_at_the_end(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    item = wait_for(server, "stream=yard", lambda item: True)
    begin: dict[str, object] = {"number": 1, "marks": 0, "next": "7", "items": [item]}
    begin |= {"problem": None, "marks_problem": "", "geometry": {}}
    held: list[Route] = []
    refused: list[str] = []

    def answer(route: Route) -> None:
        if "after=" in route.request.url:
            held.append(route)
        elif not refused:
            refused.append(route.request.url)
            route.fulfill(status=404)
        else:
            route.fulfill(json=begin)

    page = open_page(f"{server.url}healthz", viewport={"width": 1200, "height": 900})
    page.route("**/api/review?*", answer)
    page.route("**/api/review", answer)
    page.goto(f"{server.url}#/review")
    # It is tried again by itself.
    cards(page).first.locator("a").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    assert refused
    while not held:
        page.wait_for_timeout(20)
    # A daemon that is away for a moment is not the end of the list.
    away = {"kind": "away", "text": "no answer"}
    held.pop().fulfill(json={**begin, "next": None, "problem": away, "items": []})
    expect(page.locator("#review-hint")).to_contain_text("no answer")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Show older ones").click()
    while not held:
        page.wait_for_timeout(20)
    cards(page).first.locator("a").click()
    expect(dialog).to_be_visible()
    held.pop().fulfill(json={**begin, "next": None, "items": [{**item, "id": "older"}]})
    page.wait_for_function("() => document.querySelectorAll('.occurrence').length === 2")
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("id=older"))
    expect(dialog.get_by_role("button", name="Older")).to_be_disabled()
    dialog.get_by_role("button", name="Newer").click()
    expect(dialog.get_by_role("button", name="Newer")).to_be_disabled()
    expect(dialog.locator("h2")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("id=older"))
    page.goto("about:blank")


def test_a_page_that_is_open_for_days_keeps_few_that_no_one_has_looked_at(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    item = wait_for(server, "stream=yard", lambda item: True)

    def change(head: dict[str, Any]) -> None:
        if head["review"]:
            head["review"]["items"] = [{**item, "id": f"new-{number}"} for number in range(250)]

    page = open_page(f"{server.url}healthz")
    page.route("**/api/updates", lambda route: with_head(route, change))
    page.goto(f"{server.url}#/review")
    news = page.locator("#review-news")
    expect(news).to_have_text("200 or more new")
    page.unroute_all(behavior="wait")
    # What was on its way has been read when the next one is asked for.
    with page.expect_request("**/api/updates"):
        pass
    news.click()
    expect(news).not_to_have_text("200 or more new")
    expect(cards(page).first).to_be_visible()
    assert page.locator(".occurrence a[href*='id=new-']").count() == 0
    page.goto("about:blank")


def test_the_timeline_says_what_happened_step_by_step(server: PageProcess, open_page: Callable[..., Page]) -> None:
    wait_for(server, "kind=alerts", lambda item: True)
    page = open_page(f"{server.url}#/review", viewport={"width": 1200, "height": 900})
    row = page.get_by_role("slider", name=re.compile("^gate"))
    row.focus()
    page.keyboard.press("End")
    deadline = time.monotonic() + WAIT_MILLISECONDS / 1000
    # The newest step may have begun just now.
    while "alert" not in (words := row.get_attribute("aria-valuetext") or ""):
        assert time.monotonic() < deadline, words
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(50)
        if words.endswith("the daemon did not run") or row.get_attribute("aria-valuenow") == "0":
            page.keyboard.press("End")
    assert "person" in words or "people" in words
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("stream=gate.*since=|since=.*stream=gate"))
    expect(cards(page).first).to_be_visible()
    page.get_by_text("The same as a table").click()
    expect(page.locator("#timeline-table tbody tr")).to_have_count(2)
    # As long as no more is kept, and until someone chooses.
    expect(page.get_by_role("button", name="10 min", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#timeline-table caption")).to_contain_text("10 minutes")
    for name in ("7 d", "24 h", "6 h"):
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator("#timeline-table caption")).to_contain_text(
            {"7 d": "7 days", "24 h": "24 hours"}.get(name, "6 hours")
        )
    page.goto("about:blank")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core."""
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.mark.package("nodejs")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_it_has_no_finding_of_axe(
    server: PageProcess, open_page: Callable[..., Page], axe: str, scheme: str, width: int
) -> None:
    wait_for(server, "kind=alerts", lambda item: True)
    size = {"width": width, "height": 900}
    page = open_page(f"{server.url}#/review", viewport=size, color_scheme=scheme, reduced_motion="reduce")
    page.evaluate(axe)
    page.get_by_text("The same as a table").click()
    expect(page.locator("#timeline-table tbody tr")).to_have_count(2)
    assert page.evaluate(FINDINGS) == [], "list"
    cards(page, "alert").first.locator("a").click()
    page.get_by_role("dialog").get_by_text("Event as JSON").click()
    assert page.evaluate(FINDINGS) == [], "dialog"
    page.goto("about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(server: PageProcess, open_page: Callable[..., Page], scheme: str) -> None:
    wait_for(server, "", lambda item: item["rule"] is None)
    page = open_page(f"{server.url}#/review", viewport={"width": 320, "height": 640}, color_scheme=scheme)
    expect(cards(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    cards(page).first.locator("a").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    page.goto("about:blank")


def test_a_clip_is_served_in_ranges(server: PageProcess) -> None:
    alert = wait_for(server, "kind=alerts", lambda item: item["ended_at"] is not None)
    path = f"/api/clips/{alert['event']['clip_id']}"
    deadline = time.monotonic() + WAIT_MILLISECONDS / 1000
    while (answer := get(server, path))[0] == 404:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    status, headers, whole = answer
    assert (status, headers["Content-Type"], headers["Accept-Ranges"]) == (200, "video/mp4", "bytes")
    size = len(whole)
    assert whole[4:8] == b"ftyp"
    status, headers, content = get(server, path, "HEAD")
    assert (status, headers["Content-Length"], content) == (200, str(size), b"")
    for asked, begin, end in ((f"0-{size + 9}", 0, size), ("5-9", 5, 10), ("7-", 7, size), ("-3", size - 3, size)):
        status, headers, content = get(server, path, Range=f"bytes={asked}")
        assert (status, content) == (206, whole[begin:end])
        assert headers["Content-Range"] == f"bytes {begin}-{end - 1}/{size}"
    status, headers, _ = get(server, path, Range=f"bytes={size}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
    for asked in ("bytes=9-5", "bytes=-", "lines=1-2", "bytes=1-2,5-6", "bytes=x-y"):
        assert get(server, path, Range=asked)[::2] == (200, whole), asked
    assert get(server, path, Range="bytes=5-9", If_Range='"another"')[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/pictures/..%2f..%2fetc%2fpasswd", "/api/clips/..%2f..%2fetc%2fpasswd", "/api/clips/%00",
        "/api/pictures/x",
        "/api/clips/20261129T140312.345Z-gate-3f2a9c01b7de", "/api/pictures/20261129T140312.345Z-gate-3f2a9c01b7de",
    ],
)  # fmt: skip
def test_what_is_not_kept_is_not_found(server: PageProcess, path: str) -> None:
    assert get(server, path)[0] == 404


@pytest.mark.parametrize(
    "query",
    [
        "kind=all",
        "reviewed=maybe",
        "since=soon",
        "until=-1",
        "stream=a/b",
        "label=%07",
        "after=x",
        "what=5",
        "zone=" + "z" * 200,
    ],
)
def test_a_query_that_makes_no_sense_is_refused(server: PageProcess, query: str) -> None:
    status, _, why = get(server, f"/api/review?{query}")
    assert status == 400
    assert why.count(b"\n") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"ids": [], "reviewed": true}',
        b'{"ids": [5], "reviewed": true}',
        b'{"ids": ["a"], "reviewed": 1}',
    ],
)
def test_marks_that_make_no_sense_are_refused(server: PageProcess, body: bytes) -> None:
    assert get(server, "/api/reviewed", "POST", body, Content_Type="application/json")[0] == 400


def test_marks_of_another_site_are_refused(server: PageProcess) -> None:
    body = b'{"ids": ["a"], "reviewed": true}'
    assert get(server, "/api/reviewed", "POST", body)[0] == 415
    foreign = get(server, "/api/reviewed", "POST", body, Content_Type="application/json", Origin="http://evil.example")
    assert foreign[0] == 403
    assert get(server, "/api/reviewed", "POST", body, Content_Type="application/json")[0] == 200

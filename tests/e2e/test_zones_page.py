"""The editor of zones in a real Chromium: by mouse, by touch and by the keyboard alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from streamdet.config import StreamConfig
from streamdet.config.load import load_config
from streamdet.types import Reason, State
from support.axe import FINDINGS, axe_script
from support.browser import SERVER_ENDS, at, drag
from support.page import PageProcess, Published

pytestmark = pytest.mark.package("chromium")

NO_COMPLAINTS = re.compile(SERVER_ENDS)
_PATH = {"name": "path", "polygon": [[0.6, 0.1], [0.9, 0.1], [0.9, 0.4], [0.6, 0.4]]}


@pytest.fixture
def published() -> Iterator[Published]:
    with Published("gate", "yard") as published:
        yield published


@pytest.fixture
def server(published: Published) -> Iterator[PageProcess]:
    with PageProcess(published.endpoint) as server:
        yield server


@pytest.fixture
def editor(server: PageProcess, open_page: Callable[..., Page]) -> Page:
    """The editor of the stream gate, with its picture and the zone that it has."""
    page = open_page(
        f"{server.url}#/zones/gate", viewport={"width": 1440, "height": 900},
        permissions=["clipboard-read", "clipboard-write"],
    )  # fmt: skip
    expect(page.locator("#zones-veil")).to_be_hidden()
    expect(page.locator(".zones-item")).to_have_count(1)
    return page


def tool(page: Page, name: str) -> None:
    page.get_by_role("group", name="Tool").get_by_role("button", name=name, exact=True).click()


def click(page: Page, *points: tuple[float, float]) -> None:
    for point in points:
        page.mouse.click(*at(page, *point))


def as_configured(page: Page, folder: Path) -> StreamConfig:
    """What the copied text is to the check of the configuration."""
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#zones-copied")).to_have_text("Copied.")
    path = folder / "streamdet.toml"
    text = page.evaluate("navigator.clipboard.readText()")
    path.write_text(f'[[streams]]\nname = "gate"\nurl = "rtsp://192.0.2.1/s"\n\n{text}')
    return load_config(path).streams[0]


def corners(shape: Any) -> list[list[float]]:
    return [[round(x, 2), round(y, 2)] for x, y in (shape.points if hasattr(shape, "points") else shape.polygon)]


def test_shapes_drawn_by_mouse_are_those_of_the_copied_text(editor: Page, tmp_path: Path) -> None:
    tool(editor, "Zone")
    drag(editor, (0.1, 0.5), (0.5, 0.9))
    expect(editor.locator("#zones-shape").get_by_label("Name", exact=True)).to_be_focused()
    editor.keyboard.type("bay")
    editor.get_by_label("Only these labels").fill("person, car")
    tool(editor, "Zone")
    click(editor, (0.55, 0.5), (0.8, 0.55), (0.7, 0.9), (0.55, 0.5))
    editor.get_by_text("More settings").click()
    editor.get_by_label("What of an object counts").select_option("center")
    editor.get_by_label("Score from (0 to 1)").fill("0.5")
    editor.get_by_label("Report visits").fill("10, 60")
    tool(editor, "Line")
    drag(editor, (0.2, 0.2), (0.4, 0.3))
    tool(editor, "Mask")
    drag(editor, (0.003, 0.002), (0.15, 0.2))  # near the edge is on it
    stream = as_configured(editor, tmp_path)
    path, bay, triangle = stream.zones
    assert path.model_dump(mode="json", exclude_defaults=True) == _PATH
    assert bay.name == "bay"
    assert bay.labels == ("person", "car")
    assert corners(bay) == [[0.1, 0.5], [0.5, 0.5], [0.5, 0.9], [0.1, 0.9]]
    assert corners(triangle) == [[0.55, 0.5], [0.8, 0.55], [0.7, 0.9]]
    assert (triangle.anchor, triangle.min_score, triangle.dwell_seconds) == ("center", 0.5, (10, 60))
    assert corners(stream.lines[0]) == [[0.2, 0.2], [0.4, 0.3]]
    assert corners(stream.masks[0]) == [[0, 0], [0.15, 0], [0.15, 0.2], [0, 0.2]]
    assert stream.masks[0].polygon[0] == (0, 0)


def test_a_box_shows_at_once_which_zone_holds_it(editor: Page) -> None:
    held = editor.locator("#zones-drawing .box.held")
    expect(editor.locator("#zones-drawing .box")).to_have_count(2)
    expect(held).to_have_count(0)
    tool(editor, "Zone")
    drag(editor, (0.02, 0.6), (0.6, 0.8))  # the person's lower edge is at 0.722, wherever it goes
    expect(held).to_have_count(1)
    expect(editor.locator("#zones-drawing text.held")).to_have_text("person 93 %: zone-1")
    expect(editor.locator(".zones-item").nth(1)).to_contain_text("1 now")
    editor.get_by_label("Only these labels").fill("car")
    expect(held).to_have_count(0)
    editor.get_by_label("Only these labels").fill("")
    editor.get_by_text("More settings").click()
    editor.get_by_label("What of an object counts").select_option("center")
    expect(held).to_have_count(0)
    editor.get_by_label("What of an object counts").select_option("any")
    expect(held).to_have_count(1)
    tool(editor, "Mask")
    drag(editor, (0.02, 0.6), (0.6, 0.8))
    expect(editor.locator("#zones-drawing text.masked")).to_have_text("person 93 %: masked by mask-1")


def test_corners_sides_and_shapes_are_dragged_and_everything_can_be_undone(editor: Page, tmp_path: Path) -> None:
    tool(editor, "Zone")
    drag(editor, (0.1, 0.5), (0.4, 0.9))
    drag(editor, (0.4, 0.9), (0.5, 0.95))  # a corner
    drag(editor, (0.1, 0.7), (0.05, 0.75))  # the middle of a side
    drag(editor, (0.2, 0.6), (0.25, 0.55))  # all of it
    moved = [[0.15, 0.45], [0.45, 0.45], [0.55, 0.9], [0.15, 0.85], [0.1, 0.7]]
    assert corners(as_configured(editor, tmp_path).zones[1]) == moved
    for _ in range(3):
        editor.keyboard.press("Control+z")
    assert corners(as_configured(editor, tmp_path).zones[1]) == [[0.1, 0.5], [0.4, 0.5], [0.4, 0.9], [0.1, 0.9]]
    editor.get_by_role("button", name="Undo").click()
    expect(editor.locator(".zones-item")).to_have_count(1)
    for _ in range(4):
        editor.get_by_role("button", name="Redo").click()
    assert corners(as_configured(editor, tmp_path).zones[1]) == moved
    editor.locator(".zones-item").nth(1).click()
    editor.get_by_role("button", name="Duplicate").click()
    expect(editor.locator(".zones-item strong")).to_have_text(["path", "zone-1", "zone-2"])
    editor.get_by_role("button", name="Delete", exact=True).click()
    editor.get_by_role("button", name="Discard changes").click()
    expect(editor.locator(".zones-item strong")).to_have_text(["path"])
    assert as_configured(editor, tmp_path).zones[0].model_dump(mode="json", exclude_defaults=True) == _PATH


def test_undo_takes_back_corners_while_drawing_and_stops_there(editor: Page) -> None:
    names, dots = editor.locator(".zones-item strong"), editor.locator("#zones-drawing .set")
    undo = editor.get_by_role("button", name="Undo")
    editor.locator(".zones-item").click()
    editor.locator("#zones-shape").get_by_label("Name", exact=True).fill("yard")
    tool(editor, "Zone")
    expect(undo).to_have_attribute("aria-disabled", "true")
    click(editor, (0.1, 0.5), (0.4, 0.5), (0.4, 0.8))
    undo.click()
    expect(dots).to_have_count(2)
    editor.get_by_role("button", name="Redo").click()
    expect(dots).to_have_count(3)
    for left in (2, 1, 0, 0, 0):
        editor.keyboard.press("Control+z")
        expect(dots).to_have_count(left)
    expect(undo).to_have_attribute("aria-disabled", "true")
    expect(names).to_have_text(["yard"])
    editor.get_by_role("button", name="Select", exact=True).click()
    undo.click()
    expect(names).to_have_text(["path"])


@pytest.mark.parametrize(("name", "shape"), [("Zone", "zone"), ("Mask", "mask"), ("Line", "line")])
def test_lines_join_the_corners_so_far_and_the_pointer(editor: Page, name: str, shape: str) -> None:
    tool(editor, name)
    click(editor, (0.1, 0.5))
    editor.mouse.move(*at(editor, 0.4, 0.5))
    # In one go: what is drawn is made again with each frame.
    look = """(selector) => {
      const line = document.querySelector(selector), { stroke, fill } = getComputedStyle(line);
      return [line.points.length, stroke !== "none", fill];
    }"""
    assert editor.evaluate(look, f"#zones-drawing polyline.drawn.{shape}") == [2, True, "none"]


def test_what_cannot_be_finished_says_what_it_needs(editor: Page) -> None:
    note, announced = editor.locator("#zones-note"), editor.locator("#announcer p")
    tool(editor, "Zone")
    click(editor, (0.1, 0.5), (0.4, 0.5), (0.1, 0.5))
    expect(note).to_have_text("A zone needs three corners.")
    expect(announced.last).to_have_text("A zone needs three corners.")
    expect(editor.locator("#zones-drawing .set")).to_have_count(2)
    editor.keyboard.press("Control+z")
    expect(note).to_have_text("")
    editor.keyboard.press("f")
    expect(note).to_have_text("A zone needs three corners.")
    click(editor, (0.4, 0.5), (0.4, 0.9))
    expect(note).to_have_text("")
    editor.keyboard.press("f")
    expect(editor.locator(".zones-item strong")).to_have_text(["path", "zone-1"])
    tool(editor, "Line")
    click(editor, (0.1, 0.2), (0.1, 0.2))
    expect(note).to_have_text("A line needs two ends.")
    tool(editor, "Mask")
    drag(editor, (0.1, 0.2), (0.3, 0.2))
    expect(note).to_have_text("A rectangle needs a width and a height: drag further.")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        name, _, count = key.partition("*")
        for _ in range(int(count or 1)):
            page.keyboard.press(name)


def test_a_zone_is_drawn_and_changed_with_the_keyboard_alone(editor: Page, tmp_path: Path) -> None:
    editor.get_by_role("group", name="Tool").get_by_role("button", name="Zone", exact=True).focus()
    press(editor, "Enter")
    expect(editor.locator("#zones-picture")).to_be_focused()
    expect(editor.locator("#announcer")).to_contain_text("Drawing a zone. The cursor is at 50 % across, 50 % down.")
    press(editor, "Enter", "Shift+ArrowRight*3", "Enter", "Shift+ArrowDown*3", "ArrowDown*2", "Enter")
    expect(editor.locator("#announcer")).to_contain_text("Corner 3 at 80 % across, 82 % down.")
    press(editor, "Shift+ArrowLeft*3", "Enter", "Backspace", "Enter", "Shift+ArrowUp*3", "ArrowUp*2", "Enter")
    expect(editor.locator("#zones-shape").get_by_label("Name", exact=True)).to_be_focused()
    editor.keyboard.type("corner")
    assert corners(as_configured(editor, tmp_path).zones[1]) == [[0.5, 0.5], [0.8, 0.5], [0.8, 0.82], [0.5, 0.82]]
    # The last handle in the order of Tab is the last corner.
    editor.locator(".zones-item").first.focus()
    press(editor, "Shift+Tab")
    expect(editor.locator(":focus")).to_have_attribute("aria-label", "Corner 4 of zone corner: 50 % across, 82 % down")
    press(editor, "ArrowLeft*5", "Shift+Tab")
    expect(editor.locator(":focus")).to_have_attribute("aria-label", re.compile("^Corner 3 of zone corner"))
    expect(editor.locator("#announcer")).to_contain_text("45 % across, 82 % down")
    press(editor, "+")
    expect(editor.locator(":focus")).to_have_attribute("aria-label", re.compile("^Corner 4 of zone corner"))
    press(editor, "ArrowDown*3")
    zone = as_configured(editor, tmp_path).zones[1]
    assert corners(zone) == [[0.5, 0.5], [0.8, 0.5], [0.8, 0.82], [0.62, 0.85], [0.45, 0.82]]
    editor.locator("[data-role=corner-3]").focus()
    press(editor, "Delete", "Shift+Tab*4")
    expect(editor.locator(":focus")).to_have_attribute("aria-label", "All of zone corner: arrows move it")
    press(editor, "Shift+ArrowLeft*9")  # not out of the picture
    assert corners(as_configured(editor, tmp_path).zones[1]) == [[0.05, 0.5], [0.35, 0.5], [0.35, 0.82], [0, 0.82]]
    editor.locator("[data-role=whole]").focus()
    press(editor, "Delete")
    expect(editor.locator("#announcer")).to_contain_text("zone corner deleted. Undo brings it back.")
    expect(editor.locator(".zones-item strong")).to_have_text(["path"])
    press(editor, "Control+z")
    expect(editor.locator(".zones-item strong")).to_have_text(["path", "corner"])


def test_mistakes_are_shown_at_the_shape_in_the_words_of_the_check(editor: Page) -> None:
    problem = editor.locator("#zones-shape-problem")
    name = editor.locator("#zones-shape").get_by_label("Name", exact=True)
    tool(editor, "Zone")
    click(editor, (0.1, 0.5), (0.4, 0.9), (0.4, 0.5), (0.1, 0.9), (0.1, 0.5))
    expect(problem).to_have_text("The outline crosses itself: side 1 meets side 3; give the corners in their order.")
    expect(editor.locator("#zones-drawing polygon.wrong")).to_have_count(1)
    expect(editor.locator(".zones-item.wrong")).to_contain_text("has a mistake")
    drag(editor, (0.4, 0.9), (0.3, 0.3))
    expect(problem).to_have_text("")
    name.fill("path")
    expect(problem).to_have_text('Zones hold the name "path" twice; every one needs a name of its own.')
    for hostile in ('<b>"Bay"</b>', "\U0001f6a8", "منطقة", "x" * 200):
        name.fill(hostile)
        expect(problem).to_contain_text("must be 1 to 64 small letters, digits, - _ . and begin with a letter or digit")
        expect(name).to_have_attribute("aria-invalid", "true")
    assert editor.evaluate("document.documentElement.scrollWidth") == 1440
    name.fill("Loading Bay")
    editor.get_by_role("button", name="Use the name loading-bay").click()
    expect(problem).to_have_text("")
    expect(editor.locator(".zones-item strong")).to_have_text(["path", "loading-bay"])
    for _ in range(15):
        editor.get_by_role("button", name="Duplicate").click()
    expect(editor.locator("#zones-list-problem")).to_have_text("zones are 17; at most 16 are allowed")


def test_a_draft_survives_a_reload_and_other_views(editor: Page, server: PageProcess) -> None:
    tool(editor, "Zone")
    drag(editor, (0.1, 0.5), (0.5, 0.9))
    asked: list[str] = []
    editor.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    editor.reload()
    expect(editor.locator(".zones-item strong")).to_have_text(["path", "zone-1"])
    assert asked == ["beforeunload"]
    expect(editor.locator("#announcer")).to_contain_text("What you drew before and did not apply is still here.")
    editor.goto(f"{server.url}#/zones/yard")
    expect(editor.locator("#zones-title")).to_have_text("Zones of yard")
    expect(editor.locator(".zones-item strong")).to_have_text(["path"])
    editor.goto(f"{server.url}#/")
    editor.goto(f"{server.url}#/zones/gate")
    expect(editor.locator(".zones-item strong")).to_have_text(["path", "zone-1"])
    editor.get_by_role("button", name="Discard changes").click()
    editor.reload()
    expect(editor.locator(".zones-item strong")).to_have_text(["path"])
    assert asked == ["beforeunload"]


def test_a_half_drawn_shape_survives_a_reload_and_other_views(editor: Page, server: PageProcess) -> None:
    dots = editor.locator("#zones-drawing .set")
    tool(editor, "Mask")
    click(editor, (0.1, 0.5), (0.4, 0.5), (0.4, 0.9))
    editor.locator("#zones-back").click()
    editor.go_back()
    expect(dots).to_have_count(3)
    expect(editor.locator("#zones-standing")).to_contain_text("The mask that you are drawing is not finished.")
    editor.goto(f"{server.url}#/zones/yard")
    expect(editor.locator("#zones-title")).to_have_text("Zones of yard")
    expect(dots).to_have_count(0)
    asked: list[str] = []
    editor.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    editor.goto(f"{server.url}#/zones/gate")
    expect(dots).to_have_count(3)
    editor.reload()
    expect(editor.locator(".zones-item")).to_have_count(1)
    expect(dots).to_have_count(3)
    assert asked == ["beforeunload"]
    tool(editor, "Mask")  # which is chosen already
    click(editor, (0.1, 0.9), (0.1, 0.5))
    expect(editor.locator(".zones-item strong")).to_have_text(["path", "mask-1"])
    tool(editor, "Zone")
    click(editor, (0.6, 0.5))
    editor.get_by_role("button", name="Cancel").click()
    editor.get_by_role("button", name="Discard changes").click()
    editor.reload()
    expect(editor.locator(".zones-item")).to_have_count(1)
    expect(dots).to_have_count(0)
    assert asked == ["beforeunload"]


def test_what_is_half_drawn_waits_for_its_tool(editor: Page) -> None:
    dots, names = editor.locator("#zones-drawing .set"), editor.locator(".zones-item strong")
    standing = editor.locator("#zones-standing")
    tool(editor, "Zone")
    click(editor, (0.1, 0.5), (0.4, 0.5), (0.4, 0.9))
    tool(editor, "Line")
    click(editor, (0.6, 0.6))
    expect(dots).to_have_count(4)
    expect(standing).to_contain_text(
        "As configured. The zone that you are drawing is not finished. The line that you are drawing is not finished."
    )
    editor.keyboard.press("Control+z")
    editor.keyboard.press("Control+z")
    expect(dots).to_have_count(3)
    drag(editor, (0.6, 0.6), (0.9, 0.6))
    expect(names).to_have_text(["path", "line-1"])
    editor.get_by_role("button", name="Undo").click()
    tool(editor, "Mask")
    editor.get_by_role("button", name="Cancel").click()
    asked: list[str] = []
    editor.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    editor.reload()
    expect(dots).to_have_count(3)
    assert asked == ["beforeunload"]
    editor.get_by_role("group", name="Tool").get_by_role("button", name="Zone", exact=True).press("Enter")
    expect(editor.locator("#announcer")).to_contain_text("Drawing a zone. 3 corners are set.")
    click(editor, (0.1, 0.9), (0.1, 0.5))
    expect(names).to_have_text(["path", "zone-1"])
    tool(editor, "Zone")
    click(editor, (0.6, 0.5))
    tool(editor, "Select")
    tool(editor, "Zone")
    editor.get_by_role("button", name="Cancel").click()
    expect(dots).to_have_count(0)
    expect(standing).not_to_contain_text("not finished")


def test_outlines_that_come_after_the_first_frames_are_shown(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    without: list[int] = []

    def answer(route: Route) -> None:
        body = route.fetch().body()
        length = int.from_bytes(body[:4], "big")
        head = json.loads(body[4 : 4 + length])
        if head.get("detail", {}).get("known") and len(without) < 3:
            head["detail"]["known"]["geometry"] = None
            without.append(length)
        text = json.dumps(head).encode()
        route.fulfill(body=len(text).to_bytes(4, "big") + text + body[4 + length :])

    page = open_page(server.url)
    page.route("**/api/updates", answer)
    page.goto(f"{server.url}#/zones/gate")
    expect(page.locator(".zones-item")).to_have_count(1)
    assert len(without) == 3
    page.unroute_all(behavior="wait")


def test_one_may_draw_without_a_picture_and_while_the_daemon_is_gone(
    published: Published, server: PageProcess, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    published.states["gate"] = (State.DOWN, Reason.REFUSED, "")
    page = open_page(f"{server.url}#/zones/gate", permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("#zones-veil")).to_contain_text("No picture: Nothing listens at its address")
    expect(page.locator(".zones-item")).to_have_count(1)
    tool(page, "Zone")
    drag(page, (0.1, 0.5), (0.5, 0.9))
    published.close()
    expect(page.locator("#notice")).to_contain_text("No connection to the daemon")
    tool(page, "Line")
    drag(page, (0.1, 0.2), (0.5, 0.3))
    stream = as_configured(page, tmp_path)
    assert corners(stream.zones[1]) == [[0.1, 0.5], [0.5, 0.5], [0.5, 0.9], [0.1, 0.9]]
    assert corners(stream.lines[0]) == [[0.1, 0.2], [0.5, 0.3]]


def test_a_finger_draws_and_the_view_fits_a_phone(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(
        f"{server.url}#/zones/gate", viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    )
    expect(page.locator("#zones-veil")).to_be_hidden()
    # What is known of the account and the shapes comes by itself, and moves the picture by a line.
    expect(page.locator(".zones-item")).to_have_count(1)
    expect(page.locator("#zones-may")).to_contain_text("You can draw")
    page.get_by_role("button", name="Zone", exact=True).tap()
    page.locator("#zones-picture").scroll_into_view_if_needed()
    for point in ((0.1, 0.5), (0.5, 0.5), (0.3, 0.9), (0.1, 0.5)):
        page.touchscreen.tap(*at(page, *point))
    expect(page.locator(".zones-item strong")).to_have_text(["path", "zone-1"])
    expect(
        page.locator("#zones-shape").get_by_label("Name", exact=True)
    ).not_to_be_focused()  # no keyboard over the picture
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.mark.package("nodejs")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390), ("light", 390), ("dark", 1440)])
def test_the_editor_has_no_finding_of_axe(
    server: PageProcess, open_page: Callable[..., Page], axe: str, scheme: str, width: int
) -> None:
    page = open_page(
        f"{server.url}#/zones/gate",
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    expect(page.locator(".zones-item")).to_have_count(1)

    def check(what: str) -> None:
        page.evaluate(axe)
        assert page.evaluate(FINDINGS) == [], what

    check("as configured")
    tool(page, "Zone")
    click(page, (0.1, 0.5), (0.5, 0.5), (0.5, 0.9))
    check("drawing")
    click(page, (0.1, 0.5))
    page.get_by_text("More settings").click()
    page.locator("#zones-shape").get_by_label("Name", exact=True).fill("No Name")
    check("a mistake")
    page.locator("#zones-shape").get_by_label("Name", exact=True).fill("name")
    tool(page, "Line")
    drag(page, (0.1, 0.2), (0.5, 0.3))
    check("a line")

"""A stream that is tried, added and removed: a real daemon, a real camera, the page's own process, and users."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Response, expect

from streamdet.assets import sample_clip
from streamdet.security.passwords import Password, User, write_user
from support.axe import FINDINGS, axe_script
from support.page import PageProcess
from support.ports import free_port
from support.processes import DaemonProcess
from support.rtsp import RtspServer, h264

pytestmark = pytest.mark.package("chromium")

_WORDS = "correct horse battery"
_CAMERA_WORDS = "s3cr:t/@%41"
# Long before a stream that is only silent is taken for removed, which is after 30 s here.
_AT_ONCE_MILLISECONDS = 15_000
# What Chromium says of what is refused.
NO_COMPLAINTS = re.compile("status of (?:400|401|403|404|409|422|503)")
_WEB = '\n[web]\nallow_changes = true\npassword_file = "page.users"\n'


@pytest.fixture(scope="module")
def camera() -> Iterator[RtspServer]:
    with RtspServer(
        {"/yard": h264(10)}, login={"method": "digest", "user": "admin", "password": _CAMERA_WORDS}
    ) as camera:
        yield camera


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "d") as daemon:
        daemon.write_config("", more=_WEB)
        for name, role in (("alice", "operator"), ("bob", "viewer")):
            write_user(daemon.folder / "page.users", User(name, role, Password.of(_WORDS, cost=(4, 8, 1))))
        yield daemon.ready()


@pytest.fixture
def server(daemon: DaemonProcess) -> Iterator[PageProcess]:
    with PageProcess(daemon.endpoint, "--config", str(daemon.path)) as server:
        yield server


def log_in(page: Page, name: str, shows: str = "#add-url") -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(_WORDS)
    page.keyboard.press("Enter")
    expect(page.locator(shows)).to_be_visible()


def test_an_operator_tries_a_camera_adds_it_and_sees_its_picture(
    daemon: DaemonProcess, server: PageProcess, camera: RtspServer, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    answers: list[Response] = []
    page.on("response", lambda answer: answer.url.endswith(("/probe", "/changes")) and answers.append(answer))
    log_in(page, "alice")
    found, problem = page.locator("#add-found"), page.locator("#add-problem")
    page.get_by_role("button", name="Try it").click()
    expect(problem).to_have_text("Type the address of a camera.")
    page.get_by_label("Address of a camera").fill(camera.url("/yard"))
    page.get_by_role("button", name="Try it").click()
    expect(found).to_contain_text("It cannot be read. Access is denied")
    expect(page.get_by_label("User, if it asks for one")).to_be_focused()
    page.keyboard.type("admin")
    page.get_by_label("Password").fill("wr0ng")
    page.get_by_role("button", name="Try it").click()
    expect(found).to_contain_text("It cannot be read. Access is denied")
    page.get_by_label("Password").fill(_CAMERA_WORDS)
    expect(found).to_be_empty()
    page.get_by_role("button", name="Try it").click()
    expect(found).to_contain_text(re.compile(r"It can be read: h264, 320 . 240, [0-9.]+ fps[.] Its first"))
    assert daemon.ask("GET", "/v1/streams")["streams"] == []  # it was only tried
    page.get_by_label("Name of the stream").fill("Yard")
    page.get_by_role("button", name="Add this stream").click()
    expect(problem).to_contain_text('The name is "Yard"; must be 1 to 64 small letters')
    page.get_by_label("Name of the stream").fill("yard")
    page.locator("#add-persist").check()
    page.get_by_role("button", name="Add this stream").click()
    expect(page.locator("#detail-title")).to_have_text("yard")
    expect(page.locator("#detail-state")).to_have_text("Up")
    expect(page.locator("#detail-picture canvas[data-frame]")).to_be_visible()
    stored = page.evaluate("document.body.outerHTML + JSON.stringify({...localStorage, ...sessionStorage}) + location")
    received = [answer.text() for answer in answers]
    assert len(received) == 5
    for secret in (_CAMERA_WORDS, "s3cr", "wr0ng"):
        assert not any(secret in text for text in received)
        assert secret not in stored
    page.goto(f"{server.url}#/add")
    for label in ("Address of a camera", "User, if it asks for one", "Password"):
        expect(page.get_by_label(label)).to_have_value("")
    page.goto("about:blank")
    # It lasts, with its login, which only the daemon's own file has.
    assert daemon.end() == 0
    log = "".join(json.dumps(line) for line in daemon.log())
    assert "alice (operator, from 127.0.0.1) via the page" in log
    assert "tried rtsp://***@127.0.0.1" in log
    assert "s3cr" not in log
    daemon.ready()
    assert [stream["name"] for stream in daemon.ask("GET", "/v1/streams")["streams"]] == ["yard"]


def test_a_stream_that_is_removed_elsewhere_leaves_the_page_at_once(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    for name in ("north", "south"):
        daemon.ask("POST", "/v1/streams", {"name": name, "url": str(sample_clip()), "loop": True})
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    log_in(page, "bob", "#count-all")
    tiles = page.locator("#wall .tile-name")
    expect(tiles).to_have_text(["north", "south"])
    daemon.ask("DELETE", "/v1/streams/north")
    expect(tiles).to_have_text(["south"], timeout=_AT_ONCE_MILLISECONDS)
    expect(page.locator("#journal")).to_contain_text("Is no longer among the daemon's streams.")
    page.locator("#wall a").click()
    expect(page.locator("#detail-state")).to_have_text("Up")
    daemon.ask("DELETE", "/v1/streams/south")
    expect(page.locator("#detail-empty")).to_be_visible(timeout=_AT_ONCE_MILLISECONDS)
    page.goto("about:blank")


def test_a_daemon_without_streams_has_the_form_at_once(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    # Without this answer, streams that were not heard of for 12 s would be taken for missing.
    with page.expect_response(lambda answer: "updates" in answer.url and b'"has_none":true' in answer.body()):
        log_in(page, "alice", "#wall-first")
    expect(page.locator("#wall-first")).to_contain_text("No streams yet")
    page.goto("about:blank")


def test_an_operator_removes_a_stream_after_a_question(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    daemon.ask("POST", "/v1/streams?persist=true", {"name": "north", "url": str(sample_clip()), "loop": True})
    viewer = open_page(f"{server.url}#/stream/north", viewport={"width": 390, "height": 844})
    log_in(viewer, "bob", "#detail-state")
    expect(viewer.locator("#detail-state")).to_have_text("Up")
    expect(viewer.get_by_role("button", name="Remove")).to_have_count(0)
    page = open_page(server.url, viewport={"width": 390, "height": 844})
    log_in(page, "alice", "#count-all")
    page.goto(f"{server.url}#/stream/north")
    dialog = page.get_by_role("dialog", name="Remove north?")
    page.get_by_role("button", name="Remove").click()
    expect(dialog).to_contain_text("The daemon forgets its address")
    expect(dialog.get_by_label("Also over restarts")).to_be_checked()  # as it was added
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.locator("#detail-title")).to_have_text("north")
    page.get_by_role("button", name="Remove").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    dialog.get_by_role("button", name="Remove it").click()
    expect(page.locator("#wall-first")).to_be_visible()
    expect(viewer.locator("#detail-empty")).to_have_text("The daemon has no stream of this name.")
    assert daemon.ask("GET", "/v1/streams")["streams"] == []
    for each in (page, viewer):
        each.goto("about:blank")
    assert daemon.end() == 0
    log = "".join(json.dumps(line) for line in daemon.log())
    assert "alice (operator, from 127.0.0.1) via the page" in log
    assert "removed: north" in log
    daemon.ready()
    assert daemon.ask("GET", "/v1/streams")["streams"] == []


def test_a_question_that_the_daemon_refuses_says_why(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    for name in ("north", "south"):
        daemon.ask("POST", "/v1/streams", {"name": name, "url": str(sample_clip()), "loop": True})
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    log_in(page, "alice", "#count-all")
    page.goto(f"{server.url}#/stream/north")
    page.get_by_role("button", name="Remove").click()
    dialog = page.get_by_role("dialog", name="Remove north?")
    expect(dialog).to_be_visible()
    daemon.ask("DELETE", "/v1/streams/north")
    dialog.get_by_role("button", name="Remove it").click()
    expect(dialog.get_by_role("alert")).to_have_text("There is no stream north; streamdet streams list names them.")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator("#detail-empty")).to_have_text("The daemon has no stream of this name.")
    page.goto("about:blank")


def test_what_cannot_be_added_is_said_at_its_field(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    log_in(page, "alice")
    found, problem = page.locator("#add-found"), page.locator("#add-problem")
    daemon.ask("POST", "/v1/streams", {"name": "yard", "url": "rtsp://127.0.0.1:1/y"})
    page.goto(f"{server.url}#/add")
    page.get_by_label("Name of the stream").fill("yard")
    page.get_by_label("Address of a camera").fill("rtsp://127.0.0.1:1/x")
    page.get_by_role("button", name="Add this stream").click()
    expect(problem).to_contain_text("yard")
    page.get_by_label("Address of a camera").fill("/etc/passwd")
    page.get_by_role("button", name="Try it").click()
    expect(problem).to_have_text(
        "The address leads to a file or a device of the daemon's machine; add it there, with streamdet streams add"
    )
    page.get_by_label("Address of a camera").fill("rtp://192.0.2.1/x")
    page.get_by_role("button", name="Try it").click()
    expect(problem).to_contain_text('The address begins with "rtp://", which is not supported; did you mean "rtsp://"?')
    page.get_by_label("Address of a camera").fill(f"rtsp://127.0.0.1:{free_port()}/x")
    page.get_by_role("button", name="Try it").click()
    expect(found).to_contain_text("It cannot be read. Nothing listens at its address")
    page.goto("about:blank")


def test_a_login_in_the_address_moves_to_its_fields(
    server: PageProcess, camera: RtspServer, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url, viewport={"width": 390, "height": 844})
    log_in(page, "alice")
    page.get_by_label("Address of a camera").fill(camera.url("/yard", "admin:s3cr%3At%2F%40%2541"))
    page.keyboard.press("Tab")
    expect(page.get_by_label("Address of a camera")).to_have_value(camera.url("/yard"))
    expect(page.get_by_label("User, if it asks for one")).to_have_value("admin")
    expect(page.get_by_label("Password")).to_have_value(_CAMERA_WORDS)
    page.get_by_role("button", name="Try it").click()
    expect(page.locator("#add-found")).to_contain_text("It can be read")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.goto("about:blank")


def test_a_viewer_has_the_commands_and_why_there_is_no_more(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    log_in(page, "bob")
    expect(page.locator("#add-why-not")).to_have_text(
        "To add it here: bob is a viewer; only operators may change anything."
    )
    for name in ("Try it", "Add this stream"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    page.get_by_label("Address of a camera").fill("rtsp://admin:s3cret@192.0.2.9/live")
    page.keyboard.press("Enter")
    expect(page.locator("#add-command")).to_have_text("streamdet streams add 192.0.2.9 --url-from-stdin --persist")
    page.goto("about:blank")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.mark.package("nodejs")
def test_the_form_has_no_finding_of_axe(
    server: PageProcess, camera: RtspServer, open_page: Callable[..., Page], axe: str
) -> None:
    page = open_page(server.url, color_scheme="dark", reduced_motion="reduce")
    log_in(page, "alice")
    for scheme, width in (("dark", 1440), ("light", 390), ("dark", 390), ("light", 1440)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        for path in ("#/", "#/add"):
            page.goto(f"{server.url}{path}")
            page.get_by_label("Address of a camera").fill(camera.url("/yard"))
            page.get_by_role("button", name="Try it").click()
            expect(page.locator("#add-found")).to_contain_text("Access is denied")
            if path == "#/":
                page.evaluate(axe)
            assert page.evaluate(FINDINGS) == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
    page.goto("about:blank")

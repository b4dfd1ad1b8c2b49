"""The page in a real Chromium: what people see, with the page's own process and a real socket behind it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from streamdet.assets import sample_clip
from streamdet.config import Config, MetricsConfig, PublisherConfig, StreamConfig
from streamdet.detector.pool import DetectorPool
from streamdet.monitoring.metrics import Metrics
from streamdet.security.passwords import Password, write_password
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, Picture, Reason, State
from support.axe import FINDINGS, axe_script
from support.browser import SERVER_ENDS, WAIT_MILLISECONDS, drag
from support.page import PageProcess, Published, box_of, grey_of
from support.paths import ROOT
from support.ports import free_port
from support.processes import DaemonProcess
from support.processes import stream as configured
from support.rtsp import RtspServer
from support.waiting import join
from support.web import WebServer

pytestmark = pytest.mark.package("chromium")

# What Chromium says of a wrong password, and of a question on its way while someone logs out.
NO_COMPLAINTS = re.compile(
    "the server responded with a status of 40[13]"
    f"|{SERVER_ENDS}|net::ERR_(?:CONTENT_LENGTH_MISMATCH|INTERNET_DISCONNECTED)"
)
SCRIPTS = ROOT / "streamdet/web/page"
_WORDS = "correct horse battery"
_HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def published() -> Iterator[Published]:
    with Published("gate", "yard", _HOSTILE) as published:
        yield published


@pytest.fixture
def server(published: Published) -> Iterator[PageProcess]:
    with PageProcess(published.endpoint) as server:
        yield server


def tile(page: Page, stream: str) -> Any:
    return page.locator(".tile", has=page.get_by_text(stream, exact=True))


def wait_until(page: Page, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_MILLISECONDS / 1000
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        page.wait_for_timeout(50)


_READ_CANVAS = """
(canvas) => {
  const seq = Number(canvas.dataset.frame);
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const at = (x, y) => [...copy.getImageData(Math.round(x), Math.round(y), 1, 1).data].slice(0, 3);
  const scale = canvas.width / 640;
  const left = 40 + (seq * 8) % 200;
  return {
    seq,
    edges: [[left, 180], [left + 100, 180], [left + 50, 260]].map(([x, y]) => at(x * scale, y * scale)),
    inside: at((left + 50) * scale, 180 * scale),
    outside: at(620 * scale, 150 * scale),
  };
}
"""


def is_green(pixel: list[int]) -> bool:
    """The colour of persons, perhaps mixed with that of its neighbours."""
    red, green, blue = pixel
    return green > red + 30 and green > blue + 15


def is_grey(pixel: list[int], brightness: int) -> bool:
    return all(abs(part - brightness) <= 6 for part in pixel)


def test_pictures_move_and_boxes_are_where_the_detector_said(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url, viewport={"width": 1200, "height": 900})
    canvas = tile(page, "gate").locator("canvas[data-frame]")
    seqs = set()
    while len(seqs) < 4:
        shown = canvas.evaluate(_READ_CANVAS)
        if shown["seq"] in seqs:
            page.wait_for_timeout(30)
            continue
        seqs.add(shown["seq"])
        # The script above knows where the box of this very frame is; here is the same from the publisher's side.
        assert box_of(shown["seq"])[0] == 40 + shown["seq"] * 8 % 200
        for edge in shown["edges"]:
            assert is_green(edge), shown
        assert is_grey(shown["inside"], grey_of(shown["seq"])), shown
        assert is_grey(shown["outside"], grey_of(shown["seq"])), shown
    expect(tile(page, "gate")).to_contain_text("1 person, 1 car")
    expect(tile(page, "gate")).to_contain_text("ms latency")


def test_a_stream_that_fails_says_why_and_comes_back(
    published: Published, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url)
    expect(page.locator("#total-up")).to_have_text("3 of 3")
    published.states["gate"] = (State.DOWN, Reason.UNAUTHORIZED, "401 <b>Unauthorized</b>")
    expect(tile(page, "gate")).to_contain_text("Access is denied")
    expect(page.locator("#total-up")).to_have_text("2 of 3")
    expect(page.locator("#announcer")).to_contain_text("gate is down")
    entry = page.locator("#journal li", has_text="Down")
    expect(entry).to_contain_text("401 <b>Unauthorized</b>")
    page.get_by_role("button", name="Problems").click()
    expect(page.locator(".tile:visible")).to_have_count(1)
    published.states["gate"] = (State.UP, None, "")
    expect(page.locator("#total-up")).to_have_text("3 of 3")
    expect(page.locator("#wall-empty")).to_contain_text("No stream matches.")
    page.get_by_role("button", name="Show all streams").click()
    expect(page.locator(".tile:visible")).to_have_count(3)


def test_a_stream_that_is_not_there_says_what_to_check_whatever_it_comes_from(
    tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    no_film = tmp_path / "text.mp4"
    no_film.write_text("no film")
    with RtspServer() as camera, Published("idle") as published, PageProcess(published.endpoint) as http:
        nothing = "There is nothing at its address: check the path in its URL, or the name of the file or device."
        sources = {
            "device": ("/dev/video4711", nothing),
            "file": (tmp_path / "none.mp4", nothing),
            "rtsp": (camera.url("/none"), nothing),
            "http": (f"{http.url}none", nothing),
            "folder": (tmp_path, "It is there, but gives no video."),
            "text": (no_film, "What comes from it cannot be decoded: it is damaged, or no video."),
        }
        streams = [configured(name, url) for name, (url, _) in sources.items()]
        with DaemonProcess(tmp_path / "d", *streams).ready() as daemon, PageProcess(daemon.endpoint) as server:
            page = open_page(server.url)
            for name, (_, sentence) in sources.items():
                expect(tile(page, name)).to_contain_text(sentence)
            page.goto("about:blank")


def test_every_change_of_state_is_announced_however_close_they_are(
    published: Published, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url)
    expect(page.locator("#total-up")).to_have_text("3 of 3")
    # The list begins with what is known; only later changes are news.
    expect(page.locator("#journal li")).not_to_have_count(0)
    published.states.update(dict.fromkeys(published.states, (State.DOWN, Reason.TIMEOUT, "")))
    expect(page.locator("#total-up")).to_have_text("0 of 3")
    for name in published.states:
        expect(page.locator("#announcer p", has_text=f"{name} is down.")).to_have_count(1)


def test_losses_restarts_and_a_daemon_that_is_gone_are_reported(
    published: Published, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url)
    expect(page.locator("#total-up")).to_have_text("3 of 3")
    published.lose = 17
    expect(page.locator("#journal")).to_contain_text("17 events were lost")
    published.epoch = "epoch-2"
    expect(page.locator("#journal")).to_contain_text("The daemon was started again.")
    published.close()
    expect(page.locator("#notice")).to_contain_text("No connection to the daemon")


def test_events_are_filtered(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    objects = page.locator("#journal li[data-kind=object]")
    expect(objects).to_have_count(6)
    expect(objects.filter(has_text="gate").filter(has_text="person #7")).to_contain_text("93 %, still there")
    page.locator("#filter-score").fill("80")
    expect(page.locator("#journal")).not_to_contain_text("car")
    expect(objects.first).to_contain_text("person")
    page.locator("#filter-label").select_option("car")
    expect(objects).to_have_count(0)
    page.locator("#filter-score").fill("0")
    expect(objects.first).to_contain_text("car #8")
    page.locator("#filter-stream").fill("YAR")
    expect(page.locator("#journal li", has_text="gate")).to_have_count(0)
    expect(objects).to_have_count(1)
    expect(objects).to_contain_text("yard")
    page.get_by_label("Objects", exact=True).uncheck()
    expect(objects).to_have_count(0)
    expect(page.locator("#journal li[data-kind=state]")).to_have_count(1)
    page.get_by_label("States and losses").uncheck()
    expect(page.locator("#journal-empty")).to_have_text("Nothing matches the filter yet.")


def test_keyboard_walk(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    expect(page.locator(".tile")).to_have_count(3)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the streams")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.tile') !== null"):
            break
    expect(tile(page, _HOSTILE).locator("a")).to_be_focused()
    page.keyboard.press("End")
    expect(tile(page, "yard").locator("a")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(tile(page, "gate").locator("a")).to_be_focused()
    page.keyboard.press("Enter")
    title = page.get_by_role("heading", level=1, name="gate")
    expect(title).to_be_focused()
    page.keyboard.press("Escape")
    expect(tile(page, "gate").locator("a")).to_be_focused()


def test_detail_page_shows_zones_objects_and_only_its_own_events(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{server.url}#/stream/gate", viewport={"width": 1300, "height": 900})
    canvas = page.locator("#detail-picture canvas[data-frame]")
    read_zone = """canvas => {
      const {width, height} = canvas;
      const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
      copy.drawImage(canvas, 0, 0);
      const {data} = copy.getImageData(0.9 * width - 3, 0.1 * height, 6, 0.3 * height);
      let yellow = 0;
      for (let i = 0; i < data.length; i += 4) yellow += data[i] > 200 && data[i + 1] > 170 && data[i + 2] < 140;
      return yellow;
    }"""
    wait_until(page, lambda: canvas.evaluate(read_zone) > 20)
    page.get_by_role("checkbox", name="Zones and lines").uncheck()
    wait_until(page, lambda: canvas.evaluate(read_zone) == 0)
    objects = page.locator("#objects tbody tr")
    expect(objects).to_have_count(2)
    expect(objects.first).to_contain_text("#7")
    expect(objects.first).to_contain_text("path")
    facts = page.locator("#facts")
    expect(facts).to_contain_text("640 \u00d7 360")
    # What is selected stays so while other facts change.
    facts.locator("dd", has_text="\u00d7").evaluate("size => getSelection().selectAllChildren(size)")
    before = facts.inner_text()
    wait_until(page, lambda: facts.inner_text() != before)
    assert page.evaluate("String(getSelection())") == "640 \u00d7 360"
    expect(page.locator("#stages-hint")).to_contain_text("without --metrics")
    expect(page.locator("#fps-chart .scale")).to_have_text(re.compile(r"^[1-9][0-9]* fps0$"))
    expect(page.locator("#journal li[data-kind=object]", has_text="gate")).to_have_count(2)
    assert page.locator("#journal li", has_text="yard").count() == 0


_LABELS_OF_A_CROWD = """({ count, width, height, boxHeight }) => {
  const drawn = [];
  const context = {
    measureText: (text) => ({ width: 6 * text.length }),
    fillRect: (x, y, width, height) => drawn.push({ text: "", box: [x, y, x + width, y + height] }),
    fillText: (text) => (drawn.at(-1).text = text),
  };
  const people = Array.from({ length: count }, (_, at) => {
    const left = 0.45 * width + 9 * at;
    return { label: "person", score: 0.9, track_id: at, box: [left, 100, left + 22, 100 + boxHeight] };
  });
  const obstacles = people.map(({ box }) => box);
  drawLabels({ context, width, height, unit: 1, obstacles }, people, []);
  return {
    texts: drawn.map(({ text }) => text),
    wrong: drawn.filter(({ box: [x1, y1, x2, y2] }, at) => {
      const others = [...obstacles, ...drawn.slice(at + 1).map(({ box }) => box)];
      return x1 < 0 || y1 < 0 || x2 > width || y2 > height || others.some((box) => overlap([x1, y1, x2, y2], box));
    }),
  };
}"""


def labels_of(page: Page, count: int, width: int, box_height: int = 70) -> list[str]:
    """Labels that are drawn; none of them covers an object or another label, or leaves the picture."""
    # The page's own script shares no name with others: the functions are taken from its files.
    drawing = "\n".join((SCRIPTS / name).read_text() for name in ("words.js", "draw.js"))
    crowd = {"count": count, "width": width, "height": width * 9 // 16, "boxHeight": box_height}
    drawn = page.evaluate(f"(crowd) => {{ {drawing}\n return ({_LABELS_OF_A_CROWD})(crowd); }}", crowd)
    assert drawn["wrong"] == []
    texts: list[str] = drawn["texts"]
    return texts


def test_labels_cover_no_object_and_no_other_label(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    assert labels_of(page, 2, 640) == ["person 90 % #0", "person 90 % #1"]
    assert len(labels_of(page, 12, 640)) >= 3
    # The smaller the picture, the shorter: a tile of 250 pixels has names, one of 180 just boxes.
    assert labels_of(page, 1, 400) == ["person 90 %"]
    assert labels_of(page, 1, 250, 30) == ["person"]
    assert labels_of(page, 1, 180, 30) == []
    assert labels_of(page, 3, 640, 10) == []


def test_the_bar_of_a_phone_is_two_lines(published: Published, tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with locked_page(published, tmp_path) as server:
        page = open_page(server.url, viewport={"width": 390, "height": 844})
        log_in(page)
        expect(page.locator("#total-up")).to_have_text("3 of 3")
        brand, actions = (page.locator(part).bounding_box() for part in (".brand", ".actions"))
        assert brand
        assert actions
        assert abs(brand["y"] + brand["height"] / 2 - actions["y"] - actions["height"] / 2) < 4
        page.goto("about:blank")


def test_a_phone_shows_live_streams_first_and_others_small(
    published: Published, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    published.states["gate"] = (State.DOWN, Reason.REFUSED, "")
    page = open_page(server.url, viewport={"width": 390, "height": 844})
    expect(tile(page, "yard").locator("canvas[data-frame]")).to_have_count(1)
    expect(tile(page, "gate")).to_have_attribute("data-state", "down")
    expect(page.locator(".tile").last).to_contain_text("gate")
    small, large = (tile(page, name).bounding_box() for name in ("gate", "yard"))
    assert small
    assert large
    assert 2 * small["height"] < large["height"]


def test_names_are_text_and_never_markup(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    expect(tile(page, _HOSTILE)).to_have_count(1)
    tile(page, _HOSTILE).locator("a").click()
    expect(page.get_by_role("heading", level=1, name=_HOSTILE)).to_be_visible()
    assert page.locator("img").count() == 0


def test_previews_are_asked_for_once_and_only_while_someone_looks(
    published: Published, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url)
    others = [open_page(server.url) for _ in range(2)]
    for one in (page, *others):
        expect(tile(one, "gate").locator("canvas[data-frame]")).to_have_count(1)
    assert published.asked["preview/gate/"] == 1
    for one in (page, *others):
        one.goto(f"{server.url}#/stream/yard")
    wait_until(page, lambda: published.watched == {"preview/yard/"})
    for one in (page, *others):
        one.get_by_role("button", name="Pause pictures").click()
    wait_until(page, lambda: not published.watched)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(server: PageProcess, open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(server.url, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    expect(page.locator("#journal li").first).to_be_visible()
    for address in ("#/", "#/stream/gate"):
        page.goto(server.url + address)
        expect(page.locator("canvas[data-frame]:visible").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core."""
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.mark.package("nodejs")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_no_view_has_a_finding_of_axe(
    published: Published, tmp_path: Path, open_page: Callable[..., Page], axe: str, scheme: str, width: int
) -> None:
    published.states["yard"] = (State.DOWN, Reason.UNAUTHORIZED, "401 Unauthorized")
    published.states["paused"] = (State.DOWN, Reason.PAUSED, "")
    with locked_page(published, tmp_path) as server:
        page = open_page(
            server.url, viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )

        def check(what: str) -> None:
            page.evaluate(axe)
            assert page.evaluate(FINDINGS) == [], what

        expect(page.get_by_label("Password")).to_be_visible()
        check("login")
        log_in(page)
        expect(tile(page, "gate").locator("canvas[data-frame]")).to_have_count(1)
        expect(tile(page, "yard")).to_contain_text("Down for")
        check("wall")
        page.locator("#find").fill("no such stream")
        expect(page.locator("#wall-empty")).to_contain_text("No stream matches.")
        check("nothing matches")
        views = page.eval_on_selector_all("[data-view]", "links => links.map(link => link.hash)")
        for address in (*views, "#/stream/gate", "#/stream/yard", "#/stream/nothing"):
            page.goto(server.url + address)
            expect(page.locator(".view:visible h1")).to_have_count(1)
            if address == "#/stream/gate":
                expect(page.locator("#detail-picture canvas[data-frame]")).to_have_count(1)
            check(address)
        page.goto(server.url)
        expect(tile(page, "gate").locator("canvas[data-frame]")).to_have_count(1)
        published.close()
        expect(page.locator("#notice")).to_contain_text("No connection to the daemon")
        expect(tile(page, "gate").locator(".age")).to_be_visible()
        check("no daemon")
        page.goto("about:blank")


class OneBox:
    """Finds one person in every picture, always at the same place."""

    labels = ("person",)

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def warm_up(self) -> None:
        pass

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        self._metrics.stage("features", 0.004)
        return [[Detection("person", 0.9, (8.0, 8.0, 40.0, 40.0))] for _ in pictures]


@pytest.fixture
def camera() -> Iterator[WebServer]:
    with WebServer() as camera:
        yield camera


@pytest.fixture
def daemon(camera: WebServer) -> Iterator[Daemon]:
    config = Config(
        publisher=PublisherConfig(endpoint=f"tcp://127.0.0.1:{free_port()}"),
        metrics=MetricsConfig(endpoint=f"127.0.0.1:{free_port()}"),
        streams=(
            StreamConfig(name="camera", url=camera.url("/mjpeg")),
            StreamConfig(name="clip", url=str(sample_clip()), loop=True, max_fps=2),
        ),
    )
    daemon = Daemon(config, load=lambda _, metrics: DetectorPool([OneBox(metrics)]))
    ready = threading.Event()
    thread = threading.Thread(target=daemon.run, args=(ready.set,), daemon=True)
    thread.start()
    assert ready.wait(40)
    yield daemon
    daemon.stop()
    join(thread)


def test_a_camera_of_the_real_daemon_is_seen_fails_and_comes_back(
    daemon: Daemon, camera: WebServer, open_page: Callable[..., Page]
) -> None:
    with PageProcess(daemon.config.publisher.endpoint, metrics=daemon.config.metrics.endpoint) as server:
        page = open_page(server.url)
        for stream in ("camera", "clip"):
            expect(tile(page, stream).locator("canvas[data-frame]")).to_have_count(1)
            expect(tile(page, stream)).to_contain_text("1 person")
        expect(tile(page, "clip").locator(".tile-why")).to_have_text(re.compile("^[0-9.]+ fps left out .*by max_fps"))
        camera.broken.set()
        expect(tile(page, "camera")).to_have_attribute("data-state", "down")
        expect(tile(page, "clip")).to_have_attribute("data-state", "up")
        camera.broken.clear()
        expect(tile(page, "camera")).to_have_attribute("data-state", "up")
        page.goto(f"{server.url}#/stream/clip")
        expect(page.locator("#stages-hint")).to_contain_text("One batch of")
        expect(page.locator("#stages")).to_contain_text("4.0 ms")
        page.goto("about:blank")


def is_of_now(page: Page, *streams: str) -> None:
    """Waits until these are shown as live, and nothing else is."""
    expect(page.locator(".tile")).to_have_count(len(streams))
    for stream in streams:
        expect(tile(page, stream)).to_have_attribute("data-live", "true")
        expect(tile(page, stream).locator("canvas[data-frame]")).to_have_count(1)
        expect(tile(page, stream).locator(".age")).to_be_hidden()
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#total-up")).to_have_text(f"{len(streams)} of {len(streams)}")


def is_of_before(page: Page, within_seconds: float, *streams: str) -> None:
    """What is not live any more is visibly so: no green dot, a dim picture, and how old it is."""
    began = time.monotonic()
    for stream in streams:
        expect(tile(page, stream)).to_have_attribute("data-live", "false")
        expect(tile(page, stream).locator(".age")).to_have_text(re.compile("^Last seen [0-9]+ s ago$"))
        expect(tile(page, stream).locator(".picture.old")).to_have_count(1)
    expect(page.locator("#total-up")).to_have_text(f"0 of {len(streams)}")
    assert time.monotonic() - began < within_seconds
    green = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--up')")
    dots = page.eval_on_selector_all(".tile .dot", "dots => dots.map(dot => getComputedStyle(dot).backgroundColor)")
    assert dots == ["rgba(0, 0, 0, 0)"] * len(streams), green


def test_what_is_not_of_now_does_not_look_live(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with (
        DaemonProcess(tmp_path / "d", configured("gate", max_fps=10), configured("yard", max_fps=10)).ready() as daemon,
        PageProcess(daemon.endpoint) as server,
    ):
        page = open_page(server.url, viewport={"width": 900, "height": 700})
        is_of_now(page, "gate", "yard")
        daemon.process.send_signal(signal.SIGSTOP)
        is_of_before(page, 10, "gate", "yard")
        expect(page.locator("#notice")).to_contain_text("No connection to the daemon")
        daemon.process.send_signal(signal.SIGCONT)
        is_of_now(page, "gate", "yard")
        daemon.end(signal.SIGKILL)
        is_of_before(page, 10, "gate", "yard")
        expect(page.locator("#notice")).to_contain_text("No connection to the daemon")
        # Another daemon at the same place: the streams of the one before are gone, except for those it has too.
        daemon.write_config(configured("gate", max_fps=10), configured("roof", max_fps=10))
        daemon.ready()
        is_of_now(page, "gate", "roof")
        os.kill(server.pid, signal.SIGSTOP)
        is_of_before(page, 10, "gate", "roof")
        expect(page.locator("#notice")).to_contain_text("has not answered for")
        os.kill(server.pid, signal.SIGCONT)
        is_of_now(page, "gate", "roof")
        page.goto(f"{server.url}#/stream/gate")
        expect(page.locator("#detail-state")).to_have_text("Up")
        expect(page.locator("#detail-picture canvas[data-frame]")).to_have_count(1)
        expect(page.locator("#detail-picture .age")).to_be_hidden()
        server.kill()
        expect(page.locator("#detail-state")).to_have_text(re.compile("^Last seen [0-9]+ s ago$"))
        expect(page.locator("#detail-picture .age")).to_have_text(re.compile("^Last seen [0-9]+ s ago$"))
        expect(page.locator("#notice")).to_contain_text("The server of this page")
        page.goto("about:blank")


def test_a_network_that_is_cut_shows_and_comes_back(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    is_of_now(page, "gate", "yard", _HOSTILE)
    page.context.set_offline(True)
    is_of_before(page, 10, "gate", "yard", _HOSTILE)
    expect(page.locator("#notice")).to_contain_text("The server of this page")
    page.context.set_offline(False)
    began = time.monotonic()
    is_of_now(page, "gate", "yard", _HOSTILE)
    assert time.monotonic() - began < 8


def test_a_daemon_that_is_connected_and_sends_nothing_has_a_banner(
    published: Published, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url)
    is_of_now(page, "gate", "yard", _HOSTILE)
    published.is_silent = True
    is_of_before(page, 15, "gate", "yard", _HOSTILE)
    expect(page.locator("#notice")).to_contain_text(re.compile("is connected, but has sent nothing for [0-9]+ s"))
    published.is_silent = False
    is_of_now(page, "gate", "yard", _HOSTILE)


def test_pictures_that_were_long_on_their_way_do_not_look_live(
    server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url)
    is_of_now(page, "gate", "yard", _HOSTILE)

    def come_late(route: Route) -> None:
        answer = route.fetch()
        page.wait_for_timeout(3500)
        route.fulfill(response=answer)

    page.route("**/api/updates", come_late)
    expect(tile(page, "gate").locator(".age")).to_have_text(re.compile("^Last seen [3-9] s ago$"))
    # The next picture has come, and is as old when it comes.
    seq = tile(page, "gate").locator("canvas").get_attribute("data-frame")
    expect(tile(page, "gate").locator("canvas")).not_to_have_attribute("data-frame", seq or "")
    expect(tile(page, "gate").locator(".picture.old")).to_have_count(1)
    page.unroute_all(behavior="ignoreErrors")


# How old a picture was that looked live, at the most, in seconds; not of moments at which the browser was busy.
_WORST_AGE = """
() => {
  window.worst = 0;
  let before = performance.now();
  setInterval(() => {
    const now = performance.now(), late = now - before - 20;
    before = now;
    if (late > 30) return;
    for (const { tile } of document.querySelectorAll(".tile")) {
      const isOld = tile.body.picture.classList.contains("old");
      if (!isOld && tile.body.takenAt !== null) worst = Math.max(worst, (now - tile.body.takenAt) / 1000);
    }
  }, 20);
}
"""


def test_no_picture_looks_live_for_longer_than_two_seconds(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    is_of_now(page, "gate", "yard", _HOSTILE)
    page.evaluate(_WORST_AGE)
    for _ in range(4):
        page.get_by_role("button", name="Pause pictures").click()
        expect(page.locator(".picture.old")).to_have_count(3)
        page.get_by_role("button", name="Pause pictures").click()
        expect(page.locator(".picture.old")).to_have_count(0)
    assert 1.5 < page.evaluate("worst") < 2.05


def test_pictures_that_are_held_still_say_so(server: PageProcess, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    is_of_now(page, "gate", "yard", _HOSTILE)
    page.get_by_role("button", name="Pause pictures").click()
    expect(tile(page, "gate").locator(".age")).to_have_text(re.compile("^Last seen [0-9]+ s ago$"))
    # The stream itself goes on.
    expect(tile(page, "gate")).to_have_attribute("data-live", "true")
    page.get_by_role("button", name="Pause pictures").click()
    expect(tile(page, "gate").locator(".age")).to_be_hidden()


def test_a_stream_that_was_paused_is_no_problem(
    published: Published, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url)
    expect(page.locator("#total-up")).to_have_text("3 of 3")
    published.states["gate"] = (State.DOWN, Reason.PAUSED, "")
    expect(page.locator("#total-up")).to_have_text("2 of 2")
    expect(page.locator("#total-up.bad")).to_have_count(0)
    expect(page.locator("#count-problem")).to_have_text("0")
    expect(page).to_have_title("streamdet")
    expect(tile(page, "gate")).to_have_attribute("data-state", "resting")
    expect(tile(page, "gate")).to_contain_text("Paused for")
    expect(page.locator("#journal li", has_text="Paused.")).not_to_have_class("bad")
    tile(page, "gate").locator("a").click()
    expect(page.locator("#detail-state")).to_have_text("Paused")


def test_no_banner_over_live_pictures(published: Published, open_page: Callable[..., Page]) -> None:
    for _ in range(3):
        with PageProcess(published.endpoint) as server:
            page = open_page(server.url)
            page.evaluate("""
                window.seen = [];
                new MutationObserver(() => {
                  const notice = document.getElementById("notice");
                  if (!notice.hidden) window.seen.push(notice.textContent);
                }).observe(document.getElementById("notice"), { attributes: true, childList: true });
            """)
            is_of_now(page, "gate", "yard", _HOSTILE)
            page.wait_for_timeout(1800)
            assert page.evaluate("window.seen") == []
            page.goto("about:blank")


def locked_page(published: Published, folder: Path) -> PageProcess:
    file = folder / "password"
    write_password(file, Password.of(_WORDS, cost=(10, 8, 1)))
    return PageProcess(published.endpoint, "--password-file", str(file))


def log_in(page: Page) -> None:
    page.get_by_label("Password").fill(_WORDS)
    page.get_by_role("button", name="Log in").click()


def test_password(published: Published, tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with locked_page(published, tmp_path) as server:
        page = open_page(server.url)
        expect(page).to_have_url(f"{server.url}login")
        page.get_by_label("Password").fill("not this one")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the password.")
        log_in(page)
        expect(page.locator(".tile")).to_have_count(3)
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Password")).to_be_visible()
        page.goto(server.url)
        expect(page).to_have_url(f"{server.url}login")


def test_the_first_run_shows_commands_for_an_address_without_its_login(open_page: Callable[..., Page]) -> None:
    with Published() as published, PageProcess(published.endpoint) as server:
        page = open_page(server.url, viewport={"width": 390, "height": 844})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(f"{request.url} {request.post_data}"))
        add, init = page.locator("#add-command"), page.locator("#init-command")
        expect(add).to_have_text("streamdet streams add front-door rtsp://192.0.2.7/stream1 --persist")
        page.get_by_label("Address of a camera").fill("rtsp://192.0.2.9/live?channel=1&subtype=0")
        expect(add).to_have_text(
            "streamdet streams add 192.0.2.9 'rtsp://192.0.2.9/live?channel=1&subtype=0' --persist"
        )
        page.get_by_label("Name of the stream").fill("Back Yard")
        page.get_by_label("Address of a camera").fill("rtsp://admin:s3cret@192.0.2.9/live")
        expect(add).to_have_text("streamdet streams add back-yard --url-from-stdin --persist")
        expect(init).to_have_text("streamdet init rtsp://192.0.2.9/live")
        expect(page.locator("#add-hint")).to_contain_text("The login is left out")
        page.get_by_label("Address of a camera").fill("my camera")
        page.keyboard.press("Tab")
        expect(page.locator("#add-problem")).to_contain_text("An address looks like rtsp://")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert "s3cret" not in page.evaluate("document.body.outerHTML + JSON.stringify(localStorage) + location.href")
        assert not any("s3cret" in one for one in asked)


def test_the_login_leads_to_the_address_that_was_asked_for(
    published: Published, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    with locked_page(published, tmp_path) as server:
        page = open_page(f"{server.url}#/review?id=some-1&at=5")
        expect(page).to_have_url(re.compile("/login"))
        page.get_by_label("Password").fill("not this one")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_be_visible()
        log_in(page)
        expect(page).to_have_url(f"{server.url}#/review?id=some-1&at=5")
        expect(page.get_by_role("dialog")).to_contain_text("not kept any longer")
        # A session that has ended leads back as well.
        page.context.request.post(f"{server.url}logout", headers={"Origin": server.url.rstrip("/")})
        log_in(page)
        expect(page.get_by_role("dialog")).to_contain_text("not kept any longer")
        page.goto("about:blank")


def test_a_logout_elsewhere_is_asked_about_once_and_loses_no_draft(
    published: Published, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    with locked_page(published, tmp_path) as server:
        page = open_page(f"{server.url}#/zones/gate", viewport={"width": 1200, "height": 900})
        log_in(page)
        expect(page.locator("#zones-veil")).to_be_hidden()
        expect(page.locator(".zones-item")).to_have_count(1)
        page.get_by_role("group", name="Tool").get_by_role("button", name="Zone", exact=True).click()
        drag(page, (0.1, 0.5), (0.5, 0.9))
        expect(page.locator(".zones-item")).to_have_count(2)
        questions: list[str] = []
        page.on("dialog", lambda dialog: (questions.append(dialog.type), dialog.dismiss()))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        other = page.context.new_page()
        other.goto(server.url)
        other.get_by_role("button", name="Log out").click()
        line = page.locator("#logged-out")
        expect(line).to_be_visible()
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("#announcer")).to_contain_text("You are logged out.")
        # Nothing is asked for, and no one says that the server were away.
        count = len(asked)
        page.wait_for_timeout(4000)
        expect(page.locator("#notice")).to_be_hidden()
        assert len(asked) == count
        with page.context.expect_page() as opened:
            line.get_by_role("link").click()
        log_in(opened.value)
        expect(opened.value.locator(".tile")).to_have_count(3)
        expect(line).to_be_hidden()
        with page.expect_response("**/api/updates") as answer:
            pass
        assert answer.value.ok
        expect(page.locator(".zones-item")).to_have_count(2)
        assert questions == []
        opened.value.close()
        other.close()

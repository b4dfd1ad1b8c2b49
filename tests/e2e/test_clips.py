"""From a film to an alert to its clip, over a whole daemon and in a browser; only the detector is a stand-in."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from streamdet import AlertEvent, subscribe
from streamdet.client.control import _UnixConnection, ask
from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, DetectionSettings, Picture
from support.browser import chromium
from support.clips import check_clip
from support.films import make_film, number_in
from support.ports import free_ports
from support.waiting import join, wait_until
from support.web import WebServer

# ffprobe reads the films, as another program that knows nothing of ours.
pytestmark = pytest.mark.package("ffmpeg")

_APPEARS, _LEAVES = 40, 60


class Visitor:
    """A person who stands in the frames from `_APPEARS` to `_LEAVES`."""

    labels = ("person",)

    def warm_up(self) -> None:
        pass

    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings]) -> list[list[Detection]]:
        person = Detection("person", 0.9, (10.0, 10.0, 40.0, 60.0))
        return [[person] * (_APPEARS <= number_in(picture.to_rgb()) < _LEAVES) for picture in pictures]


def _config(folder: Path, film: Path, more: str = "") -> Path:
    path = folder / "streamdet.toml"
    port, _ = free_ports()
    path.write_text(
        f'[publisher]\nendpoint = "tcp://127.0.0.1:{port}"\n[metrics]\nendpoint = "127.0.0.1:0"\n'
        f'[control]\npath = "{folder / "c"}"\n[clips]\ndirectory = "clips"\n'
        f'[[rules]]\nname = "visitor"\nlabels = ["person"]\nclip_seconds = [2, 1]\n'
        f'[[streams]]\nname = "yard"\nurl = "{film}"\n{more}'
    )
    return path


def _get(path: Path, clip_id: str, **headers: str) -> http.client.HTTPResponse:
    connection = _UnixConnection(path, 30)
    with closing(connection):
        connection.request("GET", f"/v1/clips/{clip_id}", headers=headers)
        answer = connection.getresponse()
        answer.body = answer.read()  # type: ignore[attr-defined] # for the caller
        return answer


@contextmanager
def _first_alert(path: Path) -> Iterator[tuple[AlertEvent, AlertEvent]]:
    """The first alert of a daemon with this configuration, raised and cleared, while the daemon runs."""
    config = load_config(path)
    daemon = Daemon(config, path, load=lambda *_: DetectorPool([Visitor()]))
    thread = threading.Thread(target=daemon.run, daemon=True)
    thread.start()
    try:
        with subscribe(config.publisher.endpoint, kinds=["alerts"]) as events:
            alerts = (event for event in events if isinstance(event, AlertEvent))
            first = next(alerts), next(alerts)
        yield first
    finally:
        daemon.stop()
        join(thread)


def _clip_of_alert(folder: Path, film: Path, more: str = "") -> tuple[AlertEvent, bytes]:
    with _first_alert(_config(folder, film, more)) as (raised, cleared):
        assert (raised.phase, cleared.phase) == ("raised", "cleared")
        assert raised.clip_id is not None
        assert cleared.clip_id == raised.clip_id
        assert (raised.clip_seconds, raised.clip_missing) == ((2.0, 1.0), None)
        wait_until(lambda: _get(folder / "c", raised.clip_id).status == 200, "the clip")
        answer = _get(folder / "c", raised.clip_id)
        assert answer.headers["Content-Type"] == "video/mp4"
        body: bytes = answer.body  # type: ignore[attr-defined] # see `_get`
        part = _get(folder / "c", raised.clip_id, Range="bytes=100-199")
        assert (part.status, part.body) == (206, body[100:200])  # type: ignore[attr-defined] # see `_get`
        assert _get(folder / "c", "../streamdet.toml").status == 404
        assert _get(folder / "c", f"{raised.clip_id}x").status == 404
    return raised, body


@pytest.mark.package("chromium")
def test_an_alert_has_a_clip_that_shows_its_moment_and_plays_in_a_browser(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", seconds=15, bframes=2, width=192, height=128)
    masked = '[[streams.masks]]\nname = "left"\npolygon = [[0, 0.5], [0.5, 0.5], [0.5, 1], [0, 1]]\n'
    web = tmp_path / "web"
    web.mkdir()
    shown: dict[str, int] = {}
    for name, more in (("plain", ""), ("masked", masked)):
        folder = tmp_path / name
        folder.mkdir()
        raised, body = _clip_of_alert(folder, film, more)
        clip = web / f"{name}.mp4"
        clip.write_bytes(body)
        number = raised.frame.seq - 1
        assert number >= _APPEARS
        numbers = check_clip(clip, number, before=2, after=1, is_cut_exactly=name == "masked")
        shown[name] = numbers[10]
    with WebServer(web) as server:
        assert _numbers_in_browser(server, {f"/{name}.mp4": number for name, number in shown.items()}) == [
            *shown.values()
        ]


def test_an_alert_without_a_clip_says_why(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", seconds=15, codec="mpeg4", width=192, height=128)
    with _first_alert(_config(tmp_path, film)) as alerts:
        assert ask(tmp_path / "c", "GET", "/v1/streams/yard")["clip_missing"] == "codec"
    for alert in alerts:
        assert (alert.clip_id, alert.clip_seconds, alert.clip_missing) == (None, (2.0, 1.0), "codec")


_PLAY = """async ([url, expected]) => {
    const video = document.createElement('video');
    video.muted = true;
    video.src = url;
    await new Promise((done, fail) => { video.onloadeddata = done; video.onerror = () => fail(video.error.message); });
    await video.play();
    await new Promise((done, fail) => { video.onended = done; video.onerror = () => fail(video.error.message); });
    video.currentTime = 1.05;
    await new Promise(done => { video.onseeked = done; });
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext('2d');
    // A busy machine may show the frame only some time after it was sought.
    for (let tries = 0; ; tries++) {
        context.drawImage(video, 0, 0);
        const bits = [...Array(12).keys()].map(bit => context.getImageData(bit * 16 + 8, 32, 1, 1).data[0] > 120);
        const number = bits.reduce((sum, bit, place) => sum + (bit ? 2 ** place : 0), 0);
        if (number === expected || tries === 100) return number;
        await new Promise(done => setTimeout(done, 100));
    }
}"""


def _numbers_in_browser(server: WebServer, expected: dict[str, int]) -> list[int]:
    """Plays clips to their end; the number that the frame of each after a second shows, expected or not."""
    with chromium("--autoplay-policy=no-user-gesture-required") as browser:
        page = browser.new_page()
        page.goto(server.url("/page"))
        return [page.evaluate(_PLAY, [path, number]) for path, number in expected.items()]

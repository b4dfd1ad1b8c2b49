"""Whatever comes from outside is read or refused: a million broken inputs, by the program `make fuzz`.

    .venv/bin/python tests/fuzzing.py --count 1000000

An input is a pure function of its target, the seed and its number, so that one that fails can be made again. Prints
the counts of each target as JSON; exit code 1, with the number and the input, when one raised an error that it
should not, or took longer than `LONGEST_SECONDS`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import logging
import random
import re
import socket
import sys
import tempfile
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.server import ServerState

from streamdet import wire
from streamdet.capture.sources.diagnosis import look_at_connection
from streamdet.capture.sources.hls.playlist import Playlists, absolute
from streamdet.capture.sources.login import Challenge
from streamdet.client.control import decode_answer
from streamdet.config import StreamConfig, load_config
from streamdet.delivery.replay import Replay, Ring
from streamdet.discovery.camera import interview
from streamdet.discovery.configuration import tables_of
from streamdet.discovery.search import Answer, read_answers
from streamdet.discovery.soap import SoapClient, new_budget
from streamdet.errors import ConfigError, ControlError, SourceError, WireError
from streamdet.http import server as http_server
from streamdet.http.server import Limits
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import DeliveryMetrics, Metrics
from streamdet.security.redact import forget_secrets
from streamdet.service.control.api import decode_body
from streamdet.wire import replay as replay_wire
from support.mutating import changed_json, damaged
from support.onvif import Behaviour, answer, envelope, probe_match
from support.paths import DATA, ROOT
from support.waiting import join

LONGEST_SECONDS = 5.0

Outcome = str
"""What became of an input: "taken", or why it was refused, in a word."""

_TOPIC = "detections/a/"


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote.

    Attributes:
        share: of all inputs.
        good: inputs as they should be.
        mutate: makes a broken one of a good one.
        read: reads it; raises nothing.
    """

    share: float
    good: list[bytes]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], Outcome]

    def input(self, seed: int, number: int) -> bytes:
        """The broken input of a number."""
        chance = random.Random(f"{seed} {number}")  # noqa: S311 - not a secret
        return self.mutate(chance.choice(self.good), chance)


def _one_line(error: Exception) -> Outcome:
    assert len(str(error).splitlines()) == 1, f"not one line: {error!s}"
    return type(error).__name__


def _either(data: bytes, chance: random.Random) -> bytes:
    return damaged(data, chance) if chance.random() < 0.5 else changed_json(data, chance)


def _golden() -> list[dict[str, object]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted((DATA / "golden").glob("*.json"))]


def _event() -> Target:
    jpegs = [base64.b64decode(str(g["jpeg_base64"])) for g in _golden() if "jpeg_base64" in g]
    good = [json.dumps(content["message"]).encode() for content in _golden()]

    def read(data: bytes) -> Outcome:
        for jpeg in (None, jpegs[0]):
            try:
                event = wire.decode(data, jpeg=jpeg)
            except WireError as error:
                outcome = _one_line(error)
            else:
                parts = wire.to_message(event)
                assert wire.to_message(wire.from_message(parts)) == parts
                return "taken"
        return outcome

    return Target(0.3, good, _either, read)


def _message() -> Target:
    """All parts of a message, with a byte that says where each of them begins."""
    good = []
    for content in _golden():
        parts = [str(content["topic"]).encode(), json.dumps(content["message"]).encode()]
        parts += [base64.b64decode(str(content["jpeg_base64"]))] if "jpeg_base64" in content else []
        good.append(b"\x1e".join(parts))

    def read(data: bytes) -> Outcome:
        try:
            wire.from_message(data.split(b"\x1e"))
        except WireError as error:
            return _one_line(error)
        return "taken"

    return Target(0.1, good, damaged, read)


def _replay_request() -> Target:
    good = [
        replay_wire.encode_request(replay_wire.SnapshotRequest(7, ("detections/", "state/a/"), "detections/a/")),
        replay_wire.encode_request(replay_wire.ReplayRequest(7, _TOPIC, 3, 40, "epoch-1")),
        replay_wire.encode_request(replay_wire.ReplayRequest(7, _TOPIC, 3)),
        replay_wire.encode_request(replay_wire.ClipRequest(7, "clip", 3)),
        replay_wire.encode_request(replay_wire.HistoryRequest(7, since=5.0, stream="a", zone="door", after="-7")),
        replay_wire.encode_request(replay_wire.TimelineRequest(7, 5.0, 9.5, 100, "a")),
    ]
    clients = (number.to_bytes(8, "big") for number in itertools.count())
    replay = Replay("epoch-1", Ring(50, 2**20), DeliveryMetrics(CollectorRegistry()))
    for seq in range(1, 100):
        replay.add(_TOPIC, seq, b"{}")

    def read(data: bytes) -> Outcome:
        # Another client each time: no one asks too often.
        given = replay.answer((next(clients),), data)
        assert given is not None
        answer = replay_wire.decode_answer(replay_wire.encode_answer(given))
        return answer.code if isinstance(answer, replay_wire.Refused) else "taken"

    return Target(0.1, good, _either, read)


def _replay_answer() -> Target:
    answers = [
        replay_wire.Snapshot(7, "e1", {_TOPIC: 9, "state/a/": 2}, None, [b"{}"]),
        replay_wire.Replayed(7, _TOPIC, "e1", 3, 9, more=True, next_epoch="e2", events=[b"{}"], seqs=(8,)),
        replay_wire.Refused(7, "too_many", "ask more slowly"),
        replay_wire.HistoryPage(7, "-7", [b"{}"]),
        replay_wire.TimelinePage(7, 5.5, ((6.5, 7.5),), "a", [b"{}"]),
        replay_wire.ClipPart(7, "clip", 3, 9, b"{}"),
    ]

    def read(data: bytes) -> Outcome:
        try:
            replay_wire.decode_answer([data, b"{}"])
        except WireError as error:
            return _one_line(error)
        return "taken"

    return Target(0.1, [replay_wire.encode_answer(answer)[0] for answer in answers], _either, read)


def _control_request() -> Target:
    values = {"max_fps": 5, "stall_seconds": "30 s", "zones": [{"name": "z", "polygon": [[0, 0], [1, 0], [1, 1]]}]}
    good = [json.dumps({"name": "yard", "url": "rtsp://u:p@192.0.2.7/s", **values}).encode(), b'{"config": "/x"}']

    def read(data: bytes) -> Outcome:
        try:
            body = decode_body(data)
        except ControlError as error:
            return _one_line(error)
        assert decode_body(json.dumps(body).encode()) == body
        return "taken"

    return Target(0.1, good, _either, read)


def _control_answer() -> Target:
    answers = [
        {"stream": {"name": "yard", "state": "up"}, "streams": {"added": ["yard"]}},
        {"status": 422, "code": "invalid", "problems": ["streams[yard].url: is wrong", "x"]},
        {"status": 404, "code": "not_found", "problems": ["no such stream"]},
    ]
    good = [json.dumps(answer).encode() for answer in answers]

    def read(data: bytes) -> Outcome:
        try:
            decode_answer(404 if b"problems" in data else 200, data)
        except (ControlError, ConfigError) as error:
            return type(error).__name__
        return "taken"

    return Target(0.05, good, _either, read)


def _config(folder: Path) -> Target:
    manual = (ROOT / "configs" / "streamdet.toml").read_text("utf-8").splitlines()
    defaults = "\n".join(line.removeprefix("#") for line in manual if not line.startswith("# "))
    small = 'url = "rtsp://u:${X}@192.0.2.5/x"\nmax_fps = 5\n[log]\nlevel = "info"\n[stream_defaults]\nloop = true\n'
    good = [defaults.encode(), *([f'[[streams]]\nname = "yard"\n{small}'.encode()] * 9)]
    path = folder / "streamdet.toml"

    def read(data: bytes) -> Outcome:
        path.write_bytes(data)
        problems: list[str] = []
        try:
            load_config(path, {"X": "x", "CREDENTIALS_DIRECTORY": "/nowhere"})
        except ConfigError as error:
            problems = error.problems or [""]
        finally:
            forget_secrets()
        assert all(len(line.splitlines()) == 1 for line in problems), problems
        return "ConfigError" if problems else "taken"

    return Target(0.05, good, damaged, read)


class _Transport(asyncio.Transport):
    """Where the server writes its answer to."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.answer = b""
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answer += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        """Nothing more comes."""

    resume_reading = pause_reading


def _page_request(loop: asyncio.AbstractEventLoop) -> Target:
    good = [
        b"GET /metrics?name[]=a HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\nAccept-Encoding: gzip\r\n\r\n",
        b"HEAD /readyz HTTP/1.0\r\nAuthorization: Basic dTpw\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    app = Starlette(routes=[Route("/{path:path}", _say_yes, methods=["GET", "POST"])])
    limits = Limits()
    config = uvicorn.Config(app, ws="none", log_config=None, h11_max_incomplete_event_size=limits.head_bytes)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    metrics = Metrics(Ledger())

    async def serve(data: bytes) -> bytes:
        protocol, transport = http_server._Protocol(config, ServerState(), {}, loop), _Transport()
        protocol.bind(http_server.Connection("127.0.0.1"), http_server._Connections(limits), metrics.unexpected)
        protocol.connection_made(transport)
        protocol.data_received(data)
        for _ in range(20):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)
        return transport.answer

    def read(data: bytes) -> Outcome:
        answer = loop.run_until_complete(serve(data))
        assert metrics.registry.get_sample_value("streamdet_unexpected_errors_total", {"part": "http"}) == 0
        assert not answer or re.match(rb"HTTP/1\.1 [1-5][0-9]{2} ", answer)
        status = answer[9:12].decode()
        return "taken" if status == "200" else status or "incomplete"

    return Target(0.05, good, damaged, read)


async def _say_yes(request: Request) -> Response:
    await request.body()
    return PlainTextResponse("yes")


def _rtsp_answer(say: Callable[[bytes], None], port: int) -> Target:
    good = [
        b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Type: application/sdp\r\n\r\nv=0\r\nm=video 0 RTP/AVP 96\r\n",
        b'RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n',
        b"RTSP/1.0 302 Found\r\nLocation: rtsp://192.0.2.1/\r\n\r\n",
        b"RTSP/1.0 404 Not Found\r\nCSeq: 1\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
    ]
    rtsp = StreamConfig(name="yard", url=f"rtsp://user:pl4nted@127.0.0.1:{port}/x")
    http = StreamConfig(name="yard", url=f"http://127.0.0.1:{port}/x")

    def read(data: bytes) -> Outcome:
        say(data)
        found = look_at_connection(http if data.startswith(b"HTTP") else rtsp, ask_http=True)
        assert found is None or isinstance(found, SourceError)
        assert "pl4nted" not in str(found)
        return "taken" if found is None else found.reason.value

    return Target(0.05, good, damaged, read)


@contextmanager
def _camera() -> Iterator[tuple[Callable[[bytes], None], int]]:
    """A server on loopback that answers every request with what it is given, and hangs up."""
    saying = [b""]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if not connection.recv(4096):
                        return
                    connection.sendall(saying[0])

        thread = threading.Thread(target=serve, name="fuzzed-camera", daemon=True)
        thread.start()
        try:
            yield lambda data: saying.__setitem__(0, data), listener.getsockname()[1]
        finally:
            # Who says nothing ends it.
            socket.create_connection(listener.getsockname()).close()
            join(thread)


def _search_answer() -> Target:
    question, address = uuid.UUID(int=1), "http://192.0.2.5/onvif/device_service"
    good = [probe_match(f"urn:uuid:{question}", f"{address} http://[fe80::1]/", str(uuid.UUID(int=2)))]

    def read(data: bytes) -> Outcome:
        answers = list(read_answers(data, "192.0.2.5", [question]))
        assert all(answer.host == "192.0.2.5" and answer.services for answer in answers)
        return "taken" if answers else "left out"

    return Target(0.02, good, damaged, read)


def _onvif_answer() -> Target:
    """One answer of a camera; those to the other questions are as they should be."""
    media2 = 'xmlns:t="http://www.onvif.org/ver20/media/wsdl"'
    questions = ("GetSystemDateAndTime", "GetDeviceInformation", "GetServices", "GetProfiles", "GetStreamUri")
    good = {name: envelope(answer(name, media2, Behaviour(host="192.0.2.5"), 80)) for name in questions}

    class Answering(SoapClient):
        broken = b""

        def _post(self, _address: str, action: str, *_: object, **__: object) -> tuple[int, list[Challenge], bytes]:
            name = action.rpartition("/")[2]
            is_meant = f"{name}Response".encode() in self.broken
            return 200, [], self.broken if is_meant else good.get(name, b"")

    def read(data: bytes) -> Outcome:
        client = Answering(new_budget(60), None)
        client.broken = data
        camera = interview(Answer("192.0.2.5", ("http://192.0.2.5/",)), client, other_hosts=False)
        assert all(profile.url is None or urlsplit(profile.url).hostname == "192.0.2.5" for profile in camera.profiles)
        tables = tomllib.loads(tables_of([camera], "CAMERA_LOGIN")).get("streams", [])
        assert all(set(table) == {"name", "url"} for table in tables)
        return "taken" if camera.reason is None else camera.reason.value

    return Target(0.03, list(good.values()), damaged, read)


@contextmanager
def targets() -> Iterator[dict[str, Target]]:
    """Everything that reads what others wrote."""
    with tempfile.TemporaryDirectory() as folder, _camera() as (say, port), closing(asyncio.new_event_loop()) as loop:
        yield {
            "event": _event(),
            "message": _message(),
            "replay request": _replay_request(),
            "replay answer": _replay_answer(),
            "control request": _control_request(),
            "control answer": _control_answer(),
            "configuration": _config(Path(folder)),
            "page request": _page_request(loop),
            "camera's answer": _rtsp_answer(say, port),
            "playlist": _playlist(),
            "search's answer": _search_answer(),
            "ONVIF answer": _onvif_answer(),
        }


@dataclass
class Tally:
    """What became of the inputs of one target."""

    outcomes: dict[Outcome, int]
    slowest_seconds: float = 0.0

    def run(self, target: Target, seed: int, numbers: range) -> None:
        """Reads the inputs of these numbers.

        Raises:
            AssertionError: one was neither taken nor refused; which one stands in the message.
        """
        for number in numbers:
            data = target.input(seed, number)
            began = time.perf_counter()
            try:
                outcome = target.read(data)
            except Exception as error:
                message = f"seed {seed}, number {number}: {type(error).__name__}: {error}\n{data!r}"
                raise AssertionError(message) from error
            took = time.perf_counter() - began
            assert took < LONGEST_SECONDS, f"seed {seed}, number {number} took {took:.1f} s\n{data!r}"
            self.slowest_seconds = max(self.slowest_seconds, took)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def _playlist() -> Target:
    good = [
        b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="k"\n#EXT-X-MAP:URI="i.mp4"\n#EXTINF:2,\na\n#EXTINF:2,\nhttp://x/b?c=1\n',
        b'#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",URI="a.m3u8"\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow.m3u8\n',
    ]
    here = "http://127.0.0.1/live/"

    def read(data: bytes) -> Outcome:
        playlists = Playlists()
        try:
            playlists.admit(f"{here}first.m3u8", f"{here}first.m3u8", data)
            playlists.admit(f"{here}second.m3u8", f"{here}second.m3u8", data)
        except SourceError as error:
            return error.reason.value
        whole = absolute(data, here)
        # Nothing is left that could be read otherwise from elsewhere.
        assert absolute(whole, "http://192.0.2.9/") in {whole, whole + b"\n"}, whole
        return "taken"

    return Target(0.05, good, damaged, read)


def main() -> None:
    """Reads as many inputs as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with targets() as every:
        for name, target in every.items():
            tally, began = Tally({}), time.monotonic()
            count = round(arguments.count * target.share)
            tally.run(target, arguments.seed, range(count))
            line = {"target": name, "inputs": count, **tally.outcomes}
            line |= {"slowest_ms": round(1000 * tally.slowest_seconds, 1), "seconds": round(time.monotonic() - began)}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

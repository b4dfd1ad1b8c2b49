"""Attackers, each at the place where it stands; docs/security.md says which promise each test keeps."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import pytest

from streamdet import subscribe
from streamdet.capture.sources import open_source
from streamdet.client.subscription import Subscription
from streamdet.config import PublisherConfig, StreamConfig, load_config
from streamdet.delivery.publisher import Publisher
from streamdet.detector.weights import MAX_FILE_BYTES, load_weights_file
from streamdet.detector.weights.state_dict import read_state_dict
from streamdet.errors import ConfigError, DetectorError, EndpointError, SourceError
from streamdet.security.curve import KeyFileError
from streamdet.types import DetectionEvent, Reason, StateEvent
from support.knocking import Keys, hears, subscriber
from support.paths import TESTS
from support.publishing import frame_of, metrics_of, status_of
from support.waiting import join, wait_until
from support.web import WebServer

_LOGGED_IN = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.knocking import Keys
from support.publishing import metrics_of, status_of
from streamdet.config import PublisherConfig
from streamdet.errors import EndpointError
from streamdet.delivery.publisher import Publisher
folder = Path({folder!r})
try:
    Publisher(PublisherConfig.model_construct(endpoint="tcp://192.0.2.9:0"), "epoch", metrics_of()).close()
except EndpointError as error:
    print(error, flush=True)
keys = Keys.at(folder)
with Publisher(keys.config("tcp://192.0.2.9:0"), "epoch", metrics_of("yard")) as publisher:
    print(publisher.endpoint, flush=True)
    import subprocess
    for name in ("stranger", "alice"):
        publisher.put_status(status_of("yard"))
        command = [sys.executable, "-m", "streamdet", "watch", publisher.endpoint, "--json", "--count", "1"]
        command += ["--seconds", "3" if name == "stranger" else "60"]
        command += ["--server-key", str(folder / "server.key"), "--client-key", str(folder / (name + ".key_secret"))]
        done = subprocess.run(command, capture_output=True, text=True)
        print(name, done.returncode, done.stdout, done.stderr, flush=True)
"""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def publisher_with(config: PublisherConfig) -> Publisher:
    return Publisher(config, "epoch-1", metrics_of("yard"))


def next_state(events: Subscription) -> StateEvent:
    while not isinstance(event := next(events), StateEvent):
        continue
    return event


# ---------------------------------------------------------------- On the network


@pytest.mark.package("iproute2")
def test_on_another_address_only_who_has_an_allowed_key_gets_events(keys: Keys) -> None:
    keys.make("alice")
    keys.make("stranger", allowed=False)
    program = _LOGGED_IN.format(tests=str(TESTS), folder=str(keys.folder))
    # A network of its own, with an address that is no loopback address.
    network = f"ip link set lo up && ip address add 192.0.2.9/32 dev lo && exec {sys.executable} -"
    command = ["unshare", "--net", "sh", "-c", network]
    done = subprocess.run(command, input=program, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    refused, bound, *watched = done.stdout.splitlines()
    assert refused.startswith("cannot publish at tcp://192.0.2.9:0: other machines could read it; make keys with")
    assert bound.startswith("tcp://192.0.2.9:")
    assert watched[0].startswith("stranger 1 "), done.stdout
    assert "is your key allowed?" in done.stdout
    assert "alice 0 " in done.stdout
    assert '"stream":"yard"' in done.stdout


def test_a_client_with_keys_reads_events(keys: Keys) -> None:
    alice = keys.make("alice")
    with (
        publisher_with(keys.config()) as publisher,
        subscribe(publisher.endpoint, server_key=keys.server_key, client_key_file=alice, timeout_seconds=60) as events,
    ):
        publisher.put_status(status_of("yard"))
        assert next_state(events).stream == "yard"
        publisher.put_detections(frame_of("yard", 1), [])
        assert any(isinstance(next(events), DetectionEvent) for _ in range(10))


def test_revoking_ends_a_real_subscription(keys: Keys) -> None:
    alice = keys.make("alice")
    with (
        publisher_with(keys.config()) as publisher,
        subscribe(publisher.endpoint, server_key=keys.server_key, client_key_file=alice, timeout_seconds=60) as events,
    ):
        publisher.put_status(status_of("yard"))
        next_state(events)
        (keys.clients / "alice.key").unlink()
        metric = "streamdet_subscriber_cuts_total"
        registry = publisher._metrics.registry
        # The connection of its events, and that of its heartbeats.
        wait_until(lambda: registry.get_sample_value(metric, {"socket": "events", "reason": "revoked"}) == 2)
        while events.receive(0) is not None:
            continue
        publisher.put_detections(frame_of("yard", 1), [])
        assert events.receive(0.5) is None


def test_no_secret_is_said(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    alice = keys.make("alice")
    secrets = [line.split('"')[1] for path in (alice, keys.server_secret) for line in path.read_text().splitlines()
               if "secret-key" in line]  # fmt: skip
    config = keys.config()
    with publisher_with(config) as publisher, subscriber(publisher.endpoint, keys.server_key, alice) as sub:
        sub.subscribe("state/")
        publisher.put_status(status_of("yard"))
        assert hears(sub)
        said = caplog.text + repr(config) + repr(vars(publisher)) + str(publisher._metrics.registry.collect())
    assert len(secrets) == 2
    assert not any(secret in said for secret in secrets)


def test_a_daemon_does_not_start_with_a_key_that_others_can_read(keys: Keys) -> None:
    keys.server_secret.chmod(0o644)
    with pytest.raises(KeyFileError, match="others can read the secret key"):
        publisher_with(keys.config())


# ---------------------------------------------------------------- On the same machine


def test_a_unix_socket_belongs_to_its_group(tmp_path: Path) -> None:
    config = PublisherConfig(endpoint=f"ipc://{tmp_path}/events", group="daemon")
    before = os.umask(0)
    try:
        with publisher_with(config):
            status = (tmp_path / "events").stat()
    finally:
        os.umask(before)
    import grp  # noqa: PLC0415 - for this alone

    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == grp.getgrnam("daemon").gr_gid


def test_a_group_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    config = PublisherConfig(endpoint=f"ipc://{tmp_path}/events", group="group-that-is-absent")
    with pytest.raises(EndpointError, match="there is no group 'group-that-is-absent' on this machine"):
        publisher_with(config)


# ---------------------------------------------------------------- Behind a camera's address


def claiming(width: int, height: int) -> bytes:
    """A JPEG of a few bytes that says that it is so large."""
    jpeg = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(jpeg)


@pytest.mark.parametrize("size", [(16384, 16384), (65500, 65500)], ids=str)
def test_a_picture_that_claims_to_be_huge_takes_no_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.mjpeg").write_bytes(claiming(*size) * 20)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = peak_bytes()
    with WebServer(tmp_path) as web, pytest.raises(SourceError) as caught:
        read_to_the_end(StreamConfig(name="bomb", url=web.url("/bomb.mjpeg")))
    assert caught.value.reason in (Reason.DECODE_ERROR, Reason.NO_VIDEO, Reason.UNSUPPORTED_CODEC, Reason.ENDED)
    assert peak_bytes() - before < 400 << 20


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def read_to_the_end(config: StreamConfig) -> None:
    source = open_source(config)
    try:
        while True:
            source.read()
    finally:
        source.close()


_READ_AND_SAY_PEAK = """
import sys
from pathlib import Path
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.capture.sources import open_source
source = open_source(StreamConfig(name="endless", url=sys.argv[1], stall_seconds=20))
frames = 0
try:
    while True:
        source.read()
        frames += 1
except SourceError as error:
    print(frames, error.reason)
source.close()
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


def test_a_picture_without_end_takes_little_memory() -> None:
    picture = claiming(16, 16)
    head = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
    with EndlessServer(3 * (head + picture + b"\r\n") + head + picture[:-2]) as server:
        # In a process of its own: the peak of this one is that of other tests.
        command = [sys.executable, "-c", _READ_AND_SAY_PEAK, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said, kilobytes = done.stdout.splitlines()
    assert said == "3 decode_error"
    # Without a limit FFmpeg gives up at 2 GB.
    assert int(kilobytes) < 600_000


class EndlessServer:
    """Sends a beginning, and for as long as someone takes it noise that no marker of JPEG ends."""

    def __init__(self, beginning: bytes) -> None:
        self._beginning = beginning
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(30)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/x"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        join(self._thread)
        self._socket.close()

    def _serve(self) -> None:
        noise = os.urandom(1 << 20).replace(b"\xff", b"\xfe")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
        with suppress(OSError):  # the last one who came, and the end of the test
            while True:
                client, _ = self._socket.accept()
                client.settimeout(30)
                with client, suppress(ConnectionError, TimeoutError):
                    client.recv(4096)
                    client.sendall(head + self._beginning)
                    while True:
                        client.sendall(noise)


# ---------------------------------------------------------------- In the files that the daemon is given


def sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def test_a_configuration_of_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        load_config(sparse(tmp_path / "large.toml", 2 << 30))


@pytest.mark.parametrize("name", ["large.safetensors", "large.pth"])
def test_weights_without_end_are_not_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DetectorError, match="no Faster R-CNN has more than"):
        load_weights_file(sparse(tmp_path / name, MAX_FILE_BYTES + 1))


def test_a_header_of_weights_that_claims_too_much_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "claims.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DetectorError, match="is not a whole safetensors file"):
        load_weights_file(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(DetectorError, match="is not a whole safetensors file"):
        load_weights_file(path)


def test_weights_that_unpack_to_far_more_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
    with pytest.raises(DetectorError, match="is compressed, and would be 50 MiB unpacked"):
        read_state_dict(path)

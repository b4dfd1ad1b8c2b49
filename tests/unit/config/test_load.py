from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from streamdet.assets import embedded_weights
from streamdet.config import Config, PublisherConfig, StreamConfig, load_all, load_config
from streamdet.config.values import Bytes
from streamdet.security.redact import forget_secrets, redact

PLANTED = "hunter2-planted"
STREAM = '[[streams]]\nname = "yard"\nurl = "rtsp://192.0.2.5/x"\n'


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    forget_secrets()
    yield
    forget_secrets()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "streamdet.toml"


def load(file: Path, text: str, **environ: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load_config(file, environ)


def test_the_example_of_every_day(file: Path) -> None:
    config = load(
        file,
        """
        [detector]
        score_threshold = 0.4
        labels = ["person"]
        score_thresholds = { car = 0.7 }
        max_batch_delay_seconds = "20 ms"
        [publisher]
        endpoint = "ipc:///run/streamdet/events"
        [log]
        level = "debug"
        [stream_defaults]
        max_fps = 10
        stall_seconds = "1 min"
        [[streams]]
        name = "front-door"
        url = "rtsp://${FRONT_DOOR_LOGIN}@192.0.2.5/stream1"
        [[streams]]
        name = "yard.2"
        url = "/dev/video0"
        max_fps = 2.5
        """,
        FRONT_DOOR_LOGIN="user:secret-word",
    )
    assert config.detector.score_threshold == 0.4
    assert config.detector.labels == ("person",)
    assert config.detector.score_thresholds == {"car": 0.7}
    assert config.detector.max_batch_delay_seconds == 0.02
    assert config.publisher.endpoint == "ipc:///run/streamdet/events"
    assert config.metrics.endpoint == "127.0.0.1:9095"
    door, yard = config.streams
    assert door.url == "rtsp://user:secret-word@192.0.2.5/stream1"
    assert (door.max_fps, door.stall_seconds) == (10, 60)
    assert (yard.max_fps, yard.stall_seconds) == (2.5, 60)
    assert redact("secret-word") == "***"


def test_values_from_the_environment_fit_every_type(file: Path) -> None:
    environ = {
        "T": "0.25",
        "N": "16",
        "LABEL": "person",
        "LEVEL": "error",
        "NAME": "yard",
        "LOOP": "true",
        "STALL": " 3 ",
    }
    config = load(
        file,
        """
        [detector]
        score_threshold = "${T}"
        max_batch_size = "${N}"
        labels = ["${LABEL}", "car"]
        score_thresholds = { car = "${T}" }
        [log]
        level = "${LEVEL}"
        [[streams]]
        name = "${NAME}-1"
        url = "clips/$${a}.mp4"
        loop = "${LOOP}"
        stall_seconds = "${STALL}"
        max_frame_age_seconds = "${N} s"
        """,
        **environ,
    )
    assert config.detector.score_threshold == config.detector.score_thresholds["car"] == 0.25
    assert config.detector.max_batch_size == 16
    assert config.detector.labels == ("person", "car")
    assert config.log.level == "error"
    (stream,) = config.streams
    assert stream.name == "yard-1"
    assert stream.url == str(file.parent / "clips" / "${a}.mp4")
    assert stream.loop is True
    assert (stream.stall_seconds, stream.max_frame_age_seconds) == (3, 16)


def test_credential_files_are_looked_in_after_the_environment(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "LOGIN").write_text("user:from-file\n")
    (folder / "other.login").write_text("user:other-file")
    text = (
        f'{STREAM.replace("rtsp://", "rtsp://${LOGIN}@")}[[streams]]\nname = "b"\nurl = "http://${{other.login}}@h/"\n'
    )
    config = load(file, text, CREDENTIALS_DIRECTORY=str(folder))
    assert [stream.url for stream in config.streams] == [
        "rtsp://user:from-file@192.0.2.5/x",
        "http://user:other-file@h/",
    ]
    assert (
        load(file, text, CREDENTIALS_DIRECTORY=str(folder), LOGIN="u:env-word")
        .streams[0]
        .url.startswith("rtsp://u:env")
    )
    assert redact("from-file, other-file, env-word, 192.0.2.5") == "***, ***, ***, 192.0.2.5"


def test_a_login_from_elsewhere_is_encoded_where_it_must_be(file: Path) -> None:
    login = "user:p@ss/w:o?r#d 5%é"
    config = load(file, STREAM.replace("rtsp://", "rtsp://${LOGIN}@"), LOGIN=login)
    assert config.streams[0].url == "rtsp://user:p%40ss%2Fw:o%3Fr%23d%205%25%C3%A9@192.0.2.5/x"
    assert redact("p@ss/w:o?r#d 5%é") == "***"
    again = load(file, STREAM.replace("rtsp://", "rtsp://${LOGIN}@"), LOGIN="user:p%40ss")
    assert again.streams[0].url == "rtsp://user:p%40ss@192.0.2.5/x"


def test_what_goes_into_a_url_is_a_secret_but_a_host_is_not(file: Path) -> None:
    text = STREAM.replace("rtsp://192.0.2.5/x", "http://${HOST}:${PORT}/x?token=${TOKEN}&size=1")
    environ = {"HOST": "camera.example", "PORT": "8080", "TOKEN": "token-value"}
    load(file, text, **environ)
    assert redact("camera.example 8080 token-value") == "camera.example 8080 ***"


def test_a_user_name_from_elsewhere_is_no_secret(file: Path) -> None:
    environ = {"USER": "camera", "PASSWORD": PLANTED}
    load(file, STREAM.replace("rtsp://", "rtsp://${USER}:${PASSWORD}@"), **environ)
    assert redact(f"camera {PLANTED} rtsp://camera:{PLANTED}@h") == "camera *** rtsp://***@h"


def test_literal_passwords_are_remembered_and_warned_of(file: Path) -> None:
    file.write_text(
        f'{STREAM.replace("rtsp://", f"rtsp://user:{PLANTED}@")}[[streams]]\nname="b"\nurl="rtsp://${{A}}@h/"\n'
    )
    config, warnings = load_all(file, {"A": "a:b"})
    assert warnings == [
        f"{file}:3: streams[yard].url: contains a password; write ${{NAME}} instead, and keep the password elsewhere"
    ]
    assert redact(f"what about {PLANTED}") == "what about ***"
    assert PLANTED in config.streams[0].url


def test_the_login_of_a_substream_is_a_secret(file: Path) -> None:
    file.write_text(f'{STREAM}detect_url = "rtsp://user:{PLANTED}@192.0.2.5/low?token=${{TOKEN}}"\n')
    config, warnings = load_all(file, {"TOKEN": "token-of-a-substream"})
    (warning,) = warnings
    assert warning.startswith(f"{file}:4: streams[yard].detect_url: contains a password; ")
    assert redact(f"{PLANTED} token-of-a-substream") == "*** ***"
    assert PLANTED not in repr(config)
    assert config.streams[0].detected.url == config.streams[0].detect_url
    assert config.streams[0].detected.detected.url == config.streams[0].detect_url


def test_a_key_that_is_no_longer_used_is_warned_of(file: Path) -> None:
    file.write_text(f'[stream_defaults]\nbackend = "opencv"\n{STREAM}\nbackend = "av"\n')
    _, warnings = load_all(file, {})
    assert [line.rpartition(": is no longer used")[0] for line in warnings] == [
        f"{file}:2: stream_defaults.backend",
        f"{file}:{len(file.read_text().splitlines())}: streams[yard].backend",
    ]


def test_repr_never_shows_a_secret(file: Path) -> None:
    config = load(file, STREAM.replace("rtsp://", f"rtsp://user:{PLANTED}@"))
    for value in (config, config.streams, config.streams[0]):
        assert PLANTED not in repr(value)
        assert PLANTED not in str(value)
    with pytest.raises(ValidationError) as caught:
        StreamConfig(name="a", url=f"nope://{PLANTED}")
    assert PLANTED not in str(caught.value)


def test_defaults_that_do_not_fit_a_stream_are_left_out(file: Path) -> None:
    text = '[stream_defaults]\ntransport = "tcp"\nloop = true\ntls_verify = false\nweight = 2\n' + STREAM
    config = load(file, text + '[[streams]]\nname = "clip"\nurl = "a.mp4"\n')
    camera, clip = config.streams
    assert (camera.transport, camera.loop, camera.tls_verify, camera.weight) == ("tcp", False, True, 2)
    assert (clip.transport, clip.loop, clip.tls_verify, clip.weight) == ("auto", True, True, 2)


def test_relative_paths_begin_at_the_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(embedded_weights().read_bytes())
    (tmp_path / "ca.pem").touch()
    monkeypatch.chdir(tmp_path.parent)
    text = '[detector]\nweights = "a.safetensors"\n[[streams]]\nname = "a"\nurl = "clip.mp4"\n'
    text += '[[streams]]\nname = "b"\nurl = "https://h/"\ntls_ca_file = "ca.pem"\n'
    file.write_text(text)
    config = load_config(Path(tmp_path.name, file.name), {})
    assert config.detector.weights == str(tmp_path / "a.safetensors")
    assert config.streams[0].url == str(tmp_path / "clip.mp4")
    assert config.streams[1].tls_ca_file == str(tmp_path / "ca.pem")


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://h", "rtsp://u:p%40@h:554/a?b=c#d", "rtsps://[2001:db8::1]:322/", "http://my_cam.local./v", "https://bücher.example/",
        "file:///a/b.mp4", "/a/b c.mp4", "a@b/c.mp4" [2:], "/dev/video0", "/dev/v4l/by-id/usb-x:1", "0", "12", "rtsp://H/X",
        "rtsps/cam.mp4", "file/a.mp4", "/a%00b.mp4", " clip.mp4",
    ],
)  # fmt: skip
def test_urls_of_every_kind_are_taken(url: str) -> None:
    assert StreamConfig(name="a", url=url).url == url


@pytest.mark.parametrize(("written", "meant"), [("RTSP://H/X", "rtsp://H/X"), ("File:///A.mp4", "file:///A.mp4")])
def test_schemes_may_be_written_in_capitals(written: str, meant: str) -> None:
    assert StreamConfig(name="a", url=written).url == meant


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "tcp://localhost:1", "tcp://[::1]:65535", "ipc://rel/path"])
def test_endpoints_on_this_machine_are_taken(endpoint: str) -> None:
    assert PublisherConfig(endpoint=endpoint).endpoint == endpoint


def test_the_same_port_on_different_addresses_is_no_clash(file: Path) -> None:
    load(file, f"[metrics]\nendpoint = '[::1]:5555'\n{STREAM}")
    load(file, f"[metrics]\nendpoint = '127.0.0.1:0'\n[publisher]\nendpoint = 'tcp://127.0.0.1:0'\n{STREAM}")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [('"10 s"', 10), ('"500ms"', 0.5), ('"2 min"', 120), ('"0.5 h"', 1800), ("7", 7), ("0.25", 0.25)],
)
def test_durations_have_units(file: Path, written: str, seconds: float) -> None:
    assert load(file, f"{STREAM}stall_seconds = {written}").streams[0].stall_seconds == pytest.approx(seconds)


class _Sizes(BaseModel):
    size_bytes: Bytes


@pytest.mark.parametrize(
    ("written", "count"),
    [("64 KiB", 65_536), ("10 MB", 10**7), ("1.5KiB", 1536), (12, 12), ("3 B", 3), ("2 GiB", 2**31)],
)
def test_sizes_have_units(written: object, count: int) -> None:
    assert _Sizes.model_validate({"size_bytes": written}).size_bytes == count


@pytest.mark.parametrize("written", ["64", "64 kib", "0.5 B", "1 s", True, math.inf, 1.5, "-1 B"])
def test_wrong_sizes_are_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        _Sizes.model_validate({"size_bytes": written})


def test_configurations_are_equal_when_they_say_the_same(file: Path) -> None:
    first = load(file, STREAM)
    assert first == load(file, f"# a comment\n{STREAM}max_frame_age_seconds = '2 s'")
    assert first.streams[0] == StreamConfig(name="yard", url="rtsp://192.0.2.5/x")
    assert first != load(file, f"{STREAM}weight = 2")


def test_a_configuration_without_streams_can_be_made() -> None:
    assert Config().streams == ()


def test_a_credential_of_a_folder_is_found_by_the_name_of_its_file(file: Path, tmp_path: Path) -> None:
    """What systemd makes of LoadCredential=secret:FOLDER, as our unit says it."""
    (tmp_path / "secret_LOGIN").write_text("user:p@ss\n")
    file.write_text('[[streams]]\nname = "a"\nurl = "rtsp://${LOGIN}@192.0.2.1/"\n')
    config = load_config(file, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert config.streams[0].url == "rtsp://user:p%40ss@192.0.2.1/"

# ruff: noqa: E501 - a table of bad input is read best with one case per line
from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.config import Config, RuleConfig, StreamConfig, load_config
from streamdet.config.toml import MAX_FILE_BYTES
from streamdet.errors import EXIT_USAGE, ConfigError
from streamdet.security.redact import forget_secrets

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


def problems(file: Path, text: str, **environ: str) -> list[str]:
    """What is wrong with a text, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        load(file, text, **environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert caught.value.__cause__ is None
    for line in caught.value.problems:
        assert line.startswith(f"{file}:")
        assert len(line.splitlines()) == 1
        assert PLANTED not in line
    return [line.removeprefix(f"{file}:") for line in caught.value.problems]


BAD = {
    "not TOML": ("x = [1,\n", "is not TOML"),
    "no quotes": ("[log]\nlevel = debug\n", '2:9: is not TOML: Invalid value; a text needs quotes, such as name = "front-door"'),
    "key twice": ("a = 1\na = 2\n", "2:6: is not TOML: Cannot overwrite a value; a table can have each key only once"),
    "table twice": ("[log]\n[log]\n", "2:5: is not TOML: Cannot declare ('log',) twice; each table can be defined only once"),
    "no equals": (f"{STREAM}max_fps: 3", "4:8: is not TOML: Expected '=' after a key"),
    "endless number": (f"x = {'1' * 5000}\n", "is not TOML"),
    "deep nesting": (f"x = {'[' * 5000}", "is nested too deeply"),
    "deep table": (f"[{'.'.join('a' * 5000)}]", "is nested too deeply"),
    "deep list": (f"x = {'[' * 100}{']' * 100}", "is nested too deeply"),
    "no streams": ("", "1: streams: are missing; add [[streams]]"),
    "nothing but a comment": ("# soon\n", "1: streams: are missing; add [[streams]]"),
    "one bracket": ('[streams]\nname = "a"', "1: streams: must be written with two brackets, [[streams]]"),
    "streams of numbers": ("streams = [1]", "1: streams[#1]: is 1; must be a table; write [[streams]]"),
    "table is a number": (f"detector = 5\n{STREAM}", "1: detector: is 5; must be a table; write [detector]"),
    "unknown table": (f"{STREAM}[detektor]\n", '4: detektor: is not a known key; did you mean "detector"?'),
    "unknown key": (f"{STREAM}max_fsp = 3", '4: streams[yard].max_fsp: is not a known key; did you mean "max_fps"?'),
    "key of another table": (f"[detector]\nmax_fps = 3\n{STREAM}", "2: detector.max_fps: is not a key of this table; it belongs to [stream_defaults] or [[streams]]"),
    "key without a table": (f"endpoint = 'x'\n{STREAM}", "1: endpoint: is not a key of this table; it belongs to [publisher], [replay], [metrics], [tracing] or [bridges]"),
    "key like no other": (f"{STREAM}[log]\nzzz = 1", "5: log.zzz: is not a known key; known keys: level, format"),
    "no name": ('[[streams]]\nurl = "0"', '1: streams[#1].name: is missing; add a line such as name = "front-door"'),
    "no url": ('[[streams]]\nname = "a"', "1: streams[a].url: is missing; add a line such as url = "),
    "name twice": (STREAM + STREAM, "5: streams[yard].name: the stream of line 2 has this name already"),
    "name with a slash": (STREAM.replace("yard", "yard/"), '2: streams[#1].name: is "yard/"; must be 1 to 64 small letters'),
    "name in capitals": (STREAM.replace("yard", "Front Door"), 'for example "front-door"'),
    "name too long": (STREAM.replace("yard", "y" * 65), "must be 1 to 64 small letters"),
    "name ends in a line break": (STREAM.replace("yard", "yard\\n"), "must be 1 to 64 small letters"),
    "name of dots": (STREAM.replace("yard", ".."), "must be 1 to 64 small letters"),
    "name is a number": (STREAM.replace('"yard"', "7"), "2: streams[#1].name: is 7; must be a text in quotes"),
    "empty url": ('[[streams]]\nname = "a"\nurl = ""', "3: streams[a].url: is empty; must be rtsp://"),
    "unknown scheme": ('[[streams]]\nname = "a"\nurl = "rtps://h/"', '3: streams[a].url: begins with "rtps://", which is not supported; did you mean'),
    "no host": ('[[streams]]\nname = "a"\nurl = "rtsp:///x"', "3: streams[a].url: has no host"),
    "bad port": ('[[streams]]\nname = "a"\nurl = "rtsp://h:99999/x"', "3: streams[a].url: has no valid host and port"),
    "port zero": ('[[streams]]\nname = "a"\nurl = "rtsp://h:0/x"', "3: streams[a].url: has port 0"),
    "bad host": ('[[streams]]\nname = "a"\nurl = "rtsp://-h-/x"', "3: streams[a].url: has no valid host"),
    "half an IPv6 address": ('[[streams]]\nname = "a"\nurl = "rtsp://[::1/x"', "3: streams[a].url: has no valid host"),
    "space in a url": ('[[streams]]\nname = "a"\nurl = "rtsp://h/a b"', "3: streams[a].url: contains a space; write %20"),
    "line break in a url": ('[[streams]]\nname = "a"\nurl = "rtsp://h/a\\nb"', "3: streams[a].url: contains a line break"),
    "url without a scheme": ('[[streams]]\nname = "a"\nurl = "192.0.2.5:554/x"', "3: streams[a].url: looks like a network address"),
    "slash in a password": (f'[[streams]]\nname = "a"\nurl = "rtsp://u:{PLANTED}/@h/x"', "3: streams[a].url: has an @ behind its host; in a password write @ as %40, / as %2F"),
    "port and slash in a password": (f'[[streams]]\nname = "a"\nurl = "rtsp://u:12/{PLANTED}@h/x"', "3: streams[a].url: has an @ behind its host"),
    "password with all of it": (f'[[streams]]\nname = "a"\nurl = "rtsp://user:{PLANTED}@tail/w#rd@h/x"', "3: streams[a].url: has an @ behind its host"),
    "question mark in a password": (f'[[streams]]\nname = "a"\nurl = "http://user:12?{PLANTED}@h/x"', "3: streams[a].url: has an @ behind its host"),
    "token with a slash": (f'[[streams]]\nname = "a"\nurl = "https://{PLANTED}/x@h/x"', "3: streams[a].url: has an @ behind its host"),
    "blank before a url": ('[[streams]]\nname = "a"\nurl = " rtsp://h/x"', "3: streams[a].url: begins or ends with a blank; delete it"),
    "unseen before a url": ('[[streams]]\nname = "a"\nurl = "\\ufeffrtsp://h/x"', "3: streams[a].url: begins or ends with a blank"),
    "blank behind a device": ('[[streams]]\nname = "a"\nurl = "/dev/video0 "', "3: streams[a].url: begins or ends with a blank"),
    "quotes around a url": ('[[streams]]\nname = "a"\nurl = "<rtsp://h/x>"', "3: streams[a].url: contains an address with something before it"),
    "another program's prefix": ('[[streams]]\nname = "a"\nurl = "ffmpeg:rtsp://h/x"', "3: streams[a].url: contains an address with something before it"),
    "no colon": ('[[streams]]\nname = "a"\nurl = "rtsps//cam"', "3: streams[a].url: looks like a network address"),
    "semicolon": ('[[streams]]\nname = "a"\nurl = "HTTP;//cam"', "3: streams[a].url: looks like a network address"),
    "backslashes": ("[[streams]]\nname = 'a'\nurl = 'rtsp:\\\\cam'", "3: streams[a].url: looks like a network address"),
    "encoded end of a text": ('[[streams]]\nname = "a"\nurl = "file:///a%00b"', "3: streams[a].url: contains a line break or another control character"),
    "encoded line break in a login": ('[[streams]]\nname = "a"\nurl = "rtsp://u:p%0d%0aX@h/x"', "3: streams[a].url: contains a line break"),
    "encoded end in a host": ('[[streams]]\nname = "a"\nurl = "http://%00/"', "3: streams[a].url: contains a line break"),
    "encoded escape in a path": ('[[streams]]\nname = "a"\nurl = "https://h/%1b%c2%9b.m3u8"', "3: streams[a].url: contains a line break"),
    "login without a scheme": (f'[[streams]]\nname = "a"\nurl = "u:{PLANTED}@h/x"', "3: streams[a].url: looks like a network address"),
    "one slash": (f'[[streams]]\nname = "a"\nurl = "rtsp:/u:{PLANTED}@h/x"', "3: streams[a].url: looks like a network address"),
    "file url without a path": ('[[streams]]\nname = "a"\nurl = "file://a.mp4"', "3: streams[a].url: needs three slashes"),
    "url is a number": ('[[streams]]\nname = "a"\nurl = 0', "3: streams[a].url: must be a text in quotes"),
    "transport of a file": ('[[streams]]\nname = "a"\nurl = "a.mp4"\ntransport = "udp"', "4: streams[a].transport: applies to rtsp:// only"),
    "loop of a camera": (f"{STREAM}loop = true", "4: streams[yard].loop: applies to files and http:// and https:// only; delete it here"),
    "TLS without TLS": (f"{STREAM}tls_verify = false", "4: streams[yard].tls_verify: applies to https:// and rtsps:// only"),
    "TLS file is missing": (f"{STREAM.replace('rtsp:', 'rtsps:')}tls_ca_file = '/nowhere/ca.pem'", "4: streams[yard].tls_ca_file: there is no file /nowhere/ca.pem"),
    "unknown hwaccel": (f"{STREAM}hwaccel = 'cudaa'", '4: streams[yard].hwaccel: is "cudaa"; must be one of none, auto, cuda'),
    "unknown backend": (f"{STREAM}backend = 'ffmpeg'", '4: streams[yard].backend: is "ffmpeg"; must be one of "auto", "av", "opencv"'),
    "substream of a file": ('[[streams]]\nname = "a"\nurl = "a.mp4"\ndetect_url = "rtsp://h/x"', "4: streams[a].detect_url: is for cameras with two streams over the network"),
    "substream in a file": (f"{STREAM}detect_url = 'a.mp4'", "4: streams[yard].detect_url: is for cameras with two streams over the network"),
    "substream nowhere": (f"{STREAM}detect_url = 'rtsp:/u:{PLANTED}@h/x'", "4: streams[yard].detect_url: looks like a network address"),
    "substream of all": (f"[stream_defaults]\ndetect_url = 'rtsp://h/x'\n{STREAM}", "2: stream_defaults.detect_url: "),
    "decode of a device": ('[[streams]]\nname = "a"\nurl = "/dev/video0"\ndecode = "keyframes"', "4: streams[a].decode: applies to "),
    "unknown decode": (f"{STREAM}decode = 'some'", '4: streams[yard].decode: is "some"; must be one of "auto", "all", "reference", "keyframes"'),
    "switch in quotes": (f"{STREAM}loop = 'yes'", '4: streams[yard].loop: is "yes"; must be true or false, without quotes'),
    "number in quotes": (f"{STREAM}max_fps = '5'", '4: streams[yard].max_fps: is "5"; must be a number without quotes'),
    "number is a switch": (f"{STREAM}max_fps = true", "4: streams[yard].max_fps: is true; must be a number"),
    "not a number": (f"{STREAM}max_fps = nan", "4: streams[yard].max_fps: is nan; must be a number above 0 and at most 1,000"),
    "infinite": (f"{STREAM}stall_seconds = inf", "4: streams[yard].stall_seconds: is inf; must be a number above 0 and at most 3,600 seconds"),
    "very large": (f"{STREAM}max_fps = 0x{'f' * 5000}", "4: streams[yard].max_fps: is a very large number; must be"),
    "unknown unit": (f"{STREAM}stall_seconds = '10 days'", '4: streams[yard].stall_seconds: is "10 days"; must be a number, or one with a unit, ms, s, min, h'),
    "negative duration": (f"{STREAM}stall_seconds = '-1 s'", '4: streams[yard].stall_seconds: is "-1 s"; must be a number, or one with a unit'),
    "too many": (f"[detector]\nmax_batch_size = 65\n{STREAM}", '2: detector.max_batch_size: is 65; must be "auto" or a whole number from 1 to 64'),
    "a half": (f"[detector]\nmax_batch_size = 1.5\n{STREAM}", "2: detector.max_batch_size: is 1.5; must be a whole number"),
    "threshold of a label": (f"[detector.score_thresholds]\nperson = 2\n{STREAM}", "2: detector.score_thresholds.person: is 2; must be a number from 0 to 1"),
    "thresholds not a table": (f"[detector]\nscore_thresholds = 1\n{STREAM}", "2: detector.score_thresholds: is 1; must be a table"),
    "labels not a list": (f"[detector]\nlabels = 'person'\n{STREAM}", '2: detector.labels: is "person"; must be a list of words'),
    "coco without a model": (f"[detector]\nweights = 'coco'\n{STREAM}", '1: detector.model: is missing; weights = "coco" needs a model'),
    "embedded with a model": (f"[detector]\nmodel = 'fasterrcnn_resnet50_fpn'\n{STREAM}", "2: detector.model: does not go with"),
    "unknown model": (f"[detector]\nweights = 'coco'\nmodel = 'yolo'\n{STREAM}", '3: detector.model: is "yolo"; must be one of "fasterrcnn_mobilenet'),
    "weights misspelt": (f"[detector]\nweights = 'embeded'\n{STREAM}", '2: detector.weights: is "embeded", which is not a file; did you mean "embedded"?'),
    "weights missing": (f"[detector]\nweights = 'a.safetensors'\n{STREAM}", "2: detector.weights: there is no file"),
    "weights empty": (f"[detector]\nweights = ''\n{STREAM}", "2: detector.weights: is empty"),
    "unknown device": (f"[detector]\ndevice = 'gpu'\n{STREAM}", '2: detector.device: is "gpu"; must be "auto", "cpu", "cuda" or "cuda:1"'),
    "publisher off loopback": (f"[publisher]\nendpoint = 'tcp://*:5555'\n{STREAM}", '2: publisher.endpoint: is "tcp://*:5555"; must be like tcp://127.0.0.1:5555; every address of this machine is tcp://0.0.0.0:5555'),
    "publisher on all addresses": (f"[publisher]\nendpoint = 'tcp://[::]:5555'\n{STREAM}", "2: publisher.endpoint: would be open to other machines without any check: make keys with `streamdet keys generate` and set curve_server_key_file and curve_allowed_clients_directory; or use"),
    "publisher without a port": (f"[publisher]\nendpoint = 'tcp://127.0.0.1'\n{STREAM}", '2: publisher.endpoint: is "tcp://127.0.0.1"; must be like tcp://127.0.0.1:5555'),
    "publisher of another kind": (f"[publisher]\nendpoint = 'http://127.0.0.1:1'\n{STREAM}", "must be like tcp://127.0.0.1:5555"),
    "publisher path too long": (f"[publisher]\nendpoint = 'ipc:///{'x' * 200}'\n{STREAM}", "a path of at most 107 bytes"),
    "publisher with half of the keys": (f"[publisher]\ncurve_allowed_clients_directory = '/'\n{STREAM}", "2: publisher.curve_allowed_clients_directory: needs curve_server_key_file as well"),
    "publisher without its key": (f"[publisher]\ncurve_server_key_file = '/nowhere/a.key_secret'\ncurve_allowed_clients_directory = '/'\n{STREAM}", "2: publisher.curve_server_key_file: cannot read the key file /nowhere/a.key_secret: No such file or directory; make one with: streamdet keys generate"),
    "metrics off loopback": (f"[metrics]\nendpoint = '0.0.0.0:9095'\n{STREAM}", "2: metrics.endpoint: would be open to other machines without any check: set tls_certificate_file, tls_key_file and password_file"),
    "metrics with half of the TLS": (f"[metrics]\ntls_key_file = '/etc/passwd'\n{STREAM}", "2: metrics.tls_key_file: needs tls_certificate_file as well"),
    "metrics with a colon in a name": (f"[metrics]\nusername = 'a:b'\n{STREAM}", '2: metrics.username: is "a:b"; must be up to 100 letters'),
    "metrics for every host": (f"[metrics]\nendpoint = ':9095'\n{STREAM}", '2: metrics.endpoint: is ":9095"; must name an address, like 127.0.0.1:9095; every one of this machine is 0.0.0.0:9095'),
    "metrics as a url": (f"[metrics]\nendpoint = 'http://127.0.0.1:9095'\n{STREAM}", "must be host:port, without http://"),
    "metrics port": (f"[metrics]\nendpoint = '[::1]:70000'\n{STREAM}", "must be host:port"),
    "url without end": (f"[[streams]]\nname = 'a'\nurl = 'rtsp://u:pl4nted-Secret@h/{'x' * 4096}'", "3: streams[a].url: has more than 4,096 characters"),
    "control port of another table": (f"[control]\nlisten = 'localhost:9095'\n{STREAM}", "2: control.listen: port 9095 is used by [metrics] and [control] both"),
    "control open to others": (f"[control]\nlisten = '0.0.0.0:9096'\n{STREAM}", "2: control.listen: would be open to other machines: set tls_certificate_file"),
    "control open to others as metrics are": (f"[metrics]\nendpoint = '0.0.0.0:9095'\ninsecure = true\n[control]\nlisten = '[::]:9096'\n{STREAM}", "5: control.listen: would be open to other machines"),
    "control at no place": (f"[control]\nlisten = '9096'\n{STREAM}", '2: control.listen: is "9096"; must be host:port'),
    "one port for two": (f"[metrics]\nendpoint = 'localhost:5555'\n{STREAM}", "2: metrics.endpoint: port 5555 is used by [publisher] and [metrics] both"),
    "level": (f"[log]\nlevel = 'loud'\n{STREAM}", '2: log.level: is "loud"; must be one of "debug", "info", "warning", "error"'),
    "date": (f"[log]\nlevel = 2026-01-01\n{STREAM}", "2: log.level: is 2026-01-01; must be one of"),
    "default for names": (f"[stream_defaults]\nname = 'a'\n{STREAM}", "2: stream_defaults.name: is not a key of this table; it belongs to [[streams]]"),
    "default wrong": (f"[stream_defaults]\nmax_fps = -1\n{STREAM}{STREAM.replace('yard', 'b')}", "2: stream_defaults.max_fps: is -1; must be a number above 0"),
    "default unknown": (f"[stream_defaults]\nhwaccel = 'gpu'\n{STREAM}", '2: stream_defaults.hwaccel: is "gpu"; must be one of none'),
    "default time zone": (f"[stream_defaults]\ntime_zone = 'Europe/Berlinn'\n{STREAM}", '2: stream_defaults.time_zone: is "Europe/Berlinn", which is not'),
    "defaults not a table": (f"stream_defaults = 1\n{STREAM}", "1: stream_defaults: is 1; must be a table; write [stream_defaults]"),
    "reference unset": (f"{STREAM}max_fps = '${{FPS}}'", "4: streams[yard].max_fps: ${FPS} is not set: no environment variable FPS is set, and $CREDENTIALS_DIRECTORY is not set either"),
    "reference broken": (f"{STREAM}backend = '${{a b}}'", '4: streams[yard].backend: contains a "${" that does not begin a name; write ${NAME}, or $${'),
    "reference to elsewhere": (f"{STREAM}backend = '${{../x}}'", 'contains a "${" that does not begin a name'),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_clear_line(file: Path, text: str, expected: str) -> None:
    lines = problems(file, text)
    assert len(lines) == 1, lines
    assert expected in lines[0]


def test_all_problems_are_reported_at_once_in_the_order_of_lines(file: Path) -> None:
    lines = problems(
        file,
        f"""[detector]
score_threshold = 1.5
[stream_defaults]
stall_seconds = 0
[[streams]]
name = "A"
url = "rtsp://admin:{PLANTED}@192.0.2.5/x"
max_fps = "many {PLANTED}"
[[streams]]
name = "b"
url = "${{UNSET}}"
[[streams]]
name = "b"
url = "nope://{PLANTED}"
[metrics]
endpoint = "127.0.0.1:5555"
""",
    )
    assert [line.split(":")[0] for line in lines] == ["2", "4", "6", "8", "11", "13", "14", "16"]
    assert [line.split(": ")[1] for line in lines] == [
        "detector.score_threshold",
        "stream_defaults.stall_seconds",
        "streams[#1].name",
        "streams[#1].max_fps",
        "streams[b].url",
        "streams[b].name",
        "streams[b].url",
        "metrics.endpoint",
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such file; give the path") as caught:
        load_config(tmp_path / "nowhere.toml", {})
    assert caught.value.exit_code == EXIT_USAGE == 2


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbf[log]\n", ":1: begins with a byte order mark; save the file as UTF-8 without one"),
        ("[log]".encode("utf-16"), ":1: begins with a byte order mark"),
        (b"[log]\n# caf\xe9\n", ":2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), ": is larger than 1 MiB"),
        (b"\0", ":1:1: is not TOML"),
    ],
)
def test_bytes_that_are_no_text(file: Path, data: bytes, expected: str) -> None:
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    (line,) = caught.value.problems
    assert line.startswith(f"{file}{expected}")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "file/below", "new\nline"])
def test_paths_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / name, {})
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def not_root() -> Iterator[None]:
    """Not root while the test runs: root may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.usefixtures("not_root")
def test_a_file_without_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "streamdet.toml"
        file.write_text(STREAM)
        file.chmod(0)
        with pytest.raises(ConfigError, match="may not be read by this user"):
            load_config(file, {})


@pytest.mark.parametrize("key", ["max_fps", "stall_seconds", "hwaccel", "loop", "name", "url", "transport"])
def test_a_wrong_value_from_elsewhere_is_not_shown(file: Path, key: str) -> None:
    table = {"name": "yard", "url": "rtsp://h/", key: "${SECRET}"}
    text = "[[streams]]\n" + "".join(f'{name} = "{value}"\n' for name, value in table.items())
    (line,) = problems(file, text, SECRET=f"A://{PLANTED}")
    assert key in line


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "there is no file"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8"),
        (b"x" * 100_000, "cannot be read: it is larger than 64 KiB"),
        ("folder", "cannot be read: Is a directory"),
    ],
)
def test_a_bad_credential_file_is_reported(file: Path, tmp_path: Path, data: bytes | str | None, expected: str) -> None:
    if isinstance(data, bytes):
        (tmp_path / "LOGIN").write_bytes(data)
    elif data == "folder":
        (tmp_path / "LOGIN").mkdir()
    (line,) = problems(file, STREAM.replace("rtsp://", "rtsp://${LOGIN}@"), CREDENTIALS_DIRECTORY=str(tmp_path))
    assert line.startswith("3: streams[yard].url: ")
    assert expected in line
    assert str(tmp_path / "LOGIN") in line


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.text(st.characters(exclude_categories=("C",)), max_size=6) | st.integers(-9, 9) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab. '\"é", max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(key)} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", # ]\n".join(map(_inline, value)) + "]"
    return str(value) if isinstance(value, int) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _config_or_problems(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    try:
        load_config(file, {"X": "x", "CREDENTIALS_DIRECTORY": "/nowhere"})
        lines = ["none"]
    except ConfigError as error:
        lines = error.problems
    assert lines
    assert all(len(line.splitlines()) == 1 for line in lines)


KEYS = [
    key
    for table in ("detector", "publisher", "metrics", "log", "control")
    for key in Config.model_fields[table].annotation.model_fields
]  # type: ignore[union-attr] # tables all
KEYS += [*StreamConfig.model_fields, *RuleConfig.model_fields]
LINES = st.one_of(
    st.sampled_from(["[detector]", "[[streams]]", "[stream_defaults]", "[publisher]", "[metrics]", "[log]", "[control]", "[[rules]]", "[streams]", "[x.y]"]),
    st.tuples(
        st.sampled_from([*KEYS, "stream_defaults", "streams", "detector", "zzz", "detector.labels.x"]),
        VALUES | st.sampled_from(["${X}", "${Y}", "rtsp://a:b@h/", "10 s", ["22:00", "06:00"], "$${", "\0", "tcp://127.0.0.1:1", "coco", math.inf]),
    ).map(lambda pair: f"{pair[0]} = {_inline(pair[1]) if pair[1] != math.inf else 'inf'}"),
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=200))
def test_any_bytes_make_a_config_or_problems(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    _config_or_problems(tmp_path_factory.getbasetemp() / "bytes.toml", data)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lines=st.lists(LINES, max_size=12))
def test_any_file_makes_a_config_or_problems(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    _config_or_problems(tmp_path_factory.getbasetemp() / "lines.toml", "\n".join(lines).encode("utf-8", "replace"))


@pytest.mark.parametrize(
    "text",
    [
        f"a{'.a' * 200_000} = 1\n", "'a'" + '."a"' * 100_000 + " = 1\n", f"[a{' . a' * 100_000}]\n", "x = {a" + ".a" * 200_000 + " = 1}\n",
        "".join(f"k{number} = 1\n" for number in range(80_000)), "[[streams]]\n" * 80_000,
        'x = """' + '\\"""' * 200_000, f"x = {'a' * 1_000_000}", f"x = {'[' * 900_000}", f"x = {'{a=' * 200_000}",
        "[[streams]]\nname = 'A'\n" * 40_000, f"[[streams]]\nname = 'a'\nurl = 'rtsp://{'a:b@' * 200_000}h/'\n",
    ],
    ids=range(12),
)  # fmt: skip
def test_no_file_takes_long_to_refuse(file: Path, text: str) -> None:
    began = time.process_time()
    lines = problems(file, text)
    # Each took up to a second; the first took minutes when its parts were not counted before.
    assert time.process_time() - began < 8
    assert len(lines) <= 250


@pytest.mark.parametrize("value", ["a.b" * 40, "/".join(["a.b.c.d.e.f"] * 20)])
def test_dots_in_texts_and_comments_are_no_depth(file: Path, value: str) -> None:
    file.write_text(f'[[streams]]  # {"a." * 100}a\nname = "a"\nurl = "{value}"\n')
    assert load_config(file, {}).streams[0].url.endswith(value)


def test_a_folder_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"ros\xe9")
    folder.mkdir()
    file = folder / "streamdet.toml"
    file.write_text('streams = []\n[spool]\ndirectory = "spool"\n')
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    (problem,) = refused.value.problems
    assert problem.endswith('"; must be UTF-8; give the file or folder another name')

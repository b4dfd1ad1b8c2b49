"""What strangers write is one line of a stated length, and turns nothing around."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from streamdet.cli.watch import Seen
from streamdet.monitoring.log import TextFormatter
from streamdet.security.plain_text import MAX_CHARACTERS, plain, plain_json, plain_lines
from streamdet.types import Crossing, Detection, DetectionEvent, FrameInfo, Reason, State, StateEvent
from support.capturing import SECRET, Recorder, stream_config
from support.mjpeg import camera
from support.rtsp_door import RtspDoor

HOSTILE = "a\u202eb\x1b[31mc\r\nd\u2066e\u200bf\x9bg\U000e0041h\ufeff\u2028"


def is_plain(text: str) -> bool:
    return not any(character in text for character in HOSTILE if character not in "abcdefgh[31m\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("café 日本語 🚦 العربية", "café 日本語 🚦 العربية"),
        ("a\u202eb\x1b[31m", "a\\u202eb\\x1b[31m"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("x" * 1000, "x" * (MAX_CHARACTERS - 3) + "..."),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text())
def test_no_text_is_more_than_a_line(text: str) -> None:
    assert len(plain(text, 40)) <= 40
    assert plain(text).isprintable() or not text.isprintable()
    assert is_plain(plain(text))
    assert is_plain(plain_lines(text).replace("\r", ""))
    assert json.loads(plain_json(json.dumps(text, ensure_ascii=False))) == text


def test_a_log_line_turns_nothing_around() -> None:
    record = logging.LogRecord("streamdet.x", logging.INFO, "", 0, "%s", (HOSTILE,), None)
    line = TextFormatter(colours=False).format(record)
    assert is_plain(line)
    assert "\\u202e" in line


def seen(*events: object) -> str:
    output = io.StringIO()
    console = Console(file=output, width=400)
    shown = Seen("tcp://127.0.0.1:5555")
    for event in events:
        if (line := shown.add(event)) is not None:  # type: ignore[arg-type]
            console.print(line, soft_wrap=True)
    console.print(shown.live())
    console.print(shown.summary())
    return output.getvalue()


def test_watch_shows_events_of_any_origin() -> None:
    frame = FrameInfo(1, None, 1.0, "daemon", 64, 48)
    found = (Detection(HOSTILE, 0.9, (0, 0, 1, 1), 1, (HOSTILE,)),)
    crossings = (Crossing(HOSTILE, "in", 1, HOSTILE),)
    output = seen(
        StateEvent(HOSTILE, "e", 1, 1.0, State.DOWN, Reason.REFUSED, HOSTILE * 100, 1.0),
        DetectionEvent(HOSTILE, "e", 1, 1.0, frame, found, crossings),
    )
    assert is_plain(output)
    assert "\\u202e" in output


def test_watch_remembers_no_endless_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.cli.watch._MOST_STREAMS", 3)
    output = seen(*(StateEvent(f"s{n}", "e", 1, 1.0, State.UP, None, "", 1.0) for n in range(10)))
    assert "s9" in output.splitlines()[-1]
    assert len([line for line in output.splitlines() if line.startswith("s")]) == 2 * 3 + 2


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_long_status_text_is_cut(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "B\u202eusy " * 7000
    if scheme == "http":
        server = camera(None, lambda: iter(()), status=f"503 {text}")
    else:
        monkeypatch.setattr(RtspDoor, "_answer", lambda *_: f"RTSP/1.0 503 {text}\r\nCSeq: 1\r\n\r\n".encode())
        server = RtspDoor()
    with server as found, Recorder(stream_config(found if isinstance(found, str) else found.url("/x"))) as recorder:
        status = recorder.wait_for(State.DOWN, Reason.REFUSED)
    assert 20 < len(status.detail) <= 150
    assert is_plain(status.detail)
    assert SECRET not in status.detail

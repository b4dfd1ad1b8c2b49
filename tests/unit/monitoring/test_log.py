from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.config import LogConfig
from streamdet.monitoring.log import JsonFormatter, LogHandler, LogThrottle, TextFormatter, configure_logging
from streamdet.security.redact import forget_secrets, remember_secret
from support.waiting import join

PLANTED = "hunter2-planted"
URL = f"rtsp://user:{PLANTED}@192.0.2.5/x"
JSON = LogConfig(format="json", level="debug")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, sys.excepthook, threading.excepthook, sys.unraisablehook)
    forget_secrets()
    yield
    forget_secrets()
    for handler in [handler for handler in root.handlers if isinstance(handler, LogHandler)]:
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(capture=False)
    level, sys.excepthook, threading.excepthook, sys.unraisablehook = before
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logged(config: LogConfig = JSON) -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    configure_logging(config, stream)
    return logging.getLogger("streamdet.capture.thread"), stream


def flush() -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            handler.flush()


def test_a_json_line_says_when_what_and_where() -> None:
    log, stream = logged()
    log.info("frame %d of %s", 7, "é", extra={"stream": "yard", "seq": 7})
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "streamdet.capture.thread",
        "message": "frame 7 of é",
        "stream": "yard",
        "seq": 7,
    }


def test_times_are_rfc_3339_in_utc() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "m", None, None)
    record.created = 1_700_000_000.25
    time = json.loads(JsonFormatter().format(record))["time"]
    assert time == "2023-11-14T22:13:20.250Z"
    assert datetime.fromisoformat(time).timestamp() == record.created


def test_text_everywhere_unless_json_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal, pipe, program = Terminal(), io.StringIO(), io.StringIO()
    configure_logging(LogConfig(), terminal)
    logging.getLogger("streamdet.capture.thread").warning("slow", extra={"stream": "yard"})
    configure_logging(LogConfig(), pipe)
    logging.getLogger("streamdet.capture.thread").warning("slow")
    configure_logging(JSON, program)
    logging.getLogger("streamdet.capture.thread").warning("slow")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \x1b\[33mwarning \x1b\[0m yard: slow\n", terminal.getvalue())
    time, _, rest = pipe.getvalue().partition(" warning ")
    assert datetime.fromisoformat(time).utcoffset() is not None
    assert rest == " capture.thread: slow\n"
    assert lines(program)[0]["message"] == "slow"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    terminal = Terminal()
    configure_logging(LogConfig(format="text"), terminal)
    logging.getLogger("streamdet.capture.thread").error("broken")
    assert "\x1b" not in terminal.getvalue()
    assert terminal.getvalue().endswith("error    capture.thread: broken\n")


def test_the_level_is_honoured_and_changes_on_reload() -> None:
    log, stream = logged(LogConfig(format="json", level="warning"))
    log.info("one")
    log.warning("two")
    configure_logging(JSON, stream)
    log.debug("three")
    assert [line["message"] for line in lines(stream)] == ["two", "three"]


def test_configuring_again_writes_each_line_once() -> None:
    log, first = logged()
    second = io.StringIO()
    configure_logging(JSON, second)
    configure_logging(JSON, second)
    log.info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


def test_no_secret_gets_through_anywhere() -> None:
    log, stream = logged()
    remember_secret(f"user:{PLANTED}")
    log.info("%s", URL)
    log.info(f"in the template {URL}")  # noqa: G004 - what must not leak even so
    log.info("as a value %r", {"url": URL})
    log.info("alone %s", PLANTED, extra={"stream": PLANTED})
    try:
        _fail_twice()
    except RuntimeError:
        log.exception("it broke at %s", URL, stack_info=True)
    assert len(lines(stream)) == 5
    assert PLANTED not in stream.getvalue()
    exception = lines(stream)[4]["exception"]
    assert "RuntimeError: ***" in exception
    assert "ValueError: rtsp://***@192.0.2.5/x" in exception
    assert "test_log.py" in exception


def _fail() -> None:
    raise ValueError(URL)


def _fail_twice() -> None:
    try:
        _fail()
    except ValueError as inner:
        raise RuntimeError(PLANTED) from inner


class _Unshowable:
    def __str__(self) -> str:
        raise OSError(URL)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter(colours=False)])
def test_a_line_whose_values_do_not_fit_is_reported_all_the_same(
    formatter: logging.Formatter, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    handler = LogHandler(stream, formatter)
    for template, values in (("many %s %s", (URL,)), ("number %d", (URL,)), ("odd %s", (_Unshowable(),))):
        handler.handle(logging.LogRecord("x", logging.INFO, "", 1, template, values, None))
    assert "many %s %s (its values cannot be shown: TypeError)" in stream.getvalue()
    assert "number %d (its values cannot be shown: TypeError)" in stream.getvalue()
    assert "odd %s (its values cannot be shown: OSError)" in stream.getvalue()
    assert PLANTED not in stream.getvalue()
    assert capsys.readouterr() == ("", "")


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def messages(stream: io.StringIO) -> list[str]:
    return [line["message"] for line in lines(stream)]


def test_no_line_of_ours_is_left_out() -> None:
    log, stream = logged()
    for _ in range(3):
        log.warning("the disk is full")
        log.warning("attempt %d", 7)
    assert messages(stream) == ["the disk is full", "attempt 7"] * 3


def test_what_a_library_repeats_is_a_line_a_minute_with_a_count(clock: _Clock) -> None:
    stream = io.StringIO()
    handler = LogHandler(stream, JsonFormatter(), clock)

    def say(template: str, *values: object, name: str = "opentelemetry.exporter") -> None:
        handler.handle(logging.LogRecord(name, logging.WARNING, "", 1, template, values, None))

    for attempt in range(5):
        say("retrying in %d s", attempt)
        say("retrying in %d s", attempt, name="urllib3")
        say("%s", "one warning", name="py.warnings")
        say("%s", "another", name="py.warnings")
    assert messages(stream) == ["retrying in 0 s", "retrying in 0 s", "one warning", "another"]
    clock.now = 60.0
    say("retrying in %d s", 9)
    assert messages(stream)[4:] == ["retrying in 9 s (4 more like this since the last such line)"]
    handler.close()


def test_a_throttled_line_is_logged_once_a_minute_for_each_stream(
    clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    throttle, log = LogThrottle(clock=clock), logging.getLogger("streamdet.test")
    for number in range(100):
        for name in ("yard", "door", None):
            throttle.log(log, logging.WARNING, "left out %d boxes", number, stream=name)
        throttle.log(log, logging.WARNING, "another line")
        clock.now += 1
    assert [(getattr(record, "stream", None), record.getMessage()) for record in caplog.records] == [
        ("yard", "left out 0 boxes"),
        ("door", "left out 0 boxes"),
        (None, "left out 0 boxes"),
        (None, "another line"),
        ("yard", "left out 60 boxes (59 more like this since the last such line)"),
        ("door", "left out 60 boxes (59 more like this since the last such line)"),
        (None, "left out 60 boxes (59 more like this since the last such line)"),
        (None, "another line (59 more like this since the last such line)"),
    ]


def test_a_million_different_lines_need_no_memory_and_hide_none_that_repeats(clock: _Clock) -> None:
    throttle = LogThrottle(clock=clock)
    assert throttle.admit("often") == 0
    for number in range(3000):
        assert throttle.admit(number) == 0
        assert throttle.admit("often") is None
    assert len(throttle._keys) == 1000


def test_threads_write_whole_lines() -> None:
    log, stream = logged()

    def write(name: str) -> None:
        for number in range(100):
            log.info(f"{name} {number}", extra={"stream": name})  # noqa: G004 - none may be left out

    threads = [threading.Thread(target=write, args=(f"s{n}",), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert len(lines(stream)) == 400


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(st.text())
def test_any_text_is_one_line_that_a_terminal_can_show(text: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, text, None, None)
    assert "\n" not in JsonFormatter().format(record)
    shown = TextFormatter(colours=False).format(record)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    # Only the first line begins at the margin, so that no text can pretend to be a line of the log.
    assert all(line.startswith("    ") for line in shown.split("\n")[1:])


def test_a_stream_that_cannot_show_a_character_gets_it_escaped() -> None:
    data = io.BytesIO()
    configure_logging(LogConfig(format="text"), io.TextIOWrapper(data, encoding="ascii"))
    logging.getLogger("streamdet.capture.thread").info("caf\xe9 \udc80")
    assert rb"caf\xe9 \udc80" in data.getvalue()


def test_a_closed_stream_stops_no_one(capsys: pytest.CaptureFixture[str]) -> None:
    log, stream = logged()
    stream.close()
    log.info("no one reads this")
    assert capsys.readouterr() == ("", "")


def test_warnings_go_into_the_log() -> None:
    _, stream = logged()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn(f"careful with {URL}", UserWarning, stacklevel=1)
    (line,) = lines(stream)
    assert line["logger"] == "py.warnings"
    assert "careful with rtsp://***@192.0.2.5/x" in line["message"]
    assert PLANTED not in stream.getvalue()


def test_on_the_way_to_the_journal_each_line_begins_with_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        about = os.fstat(stream.fileno())
        configure_logging(LogConfig(format="text"), stream)
        logging.getLogger("streamdet.x").warning("to a file")
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        configure_logging(LogConfig(format="text"), stream)
        logging.getLogger("streamdet.x").error("first\nsecond")
        logging.getLogger("streamdet.x").info("third")
    flush()
    lines = path.read_text().splitlines()
    assert lines[1:] == ["<3>error    x: first", "<3>    second", "<6>info     x: third"]
    assert not lines[0].startswith("<")

from __future__ import annotations

import pytest
from prometheus_client import Counter

from streamdet.monitoring.unexpected import QUIET_SECONDS, UnexpectedErrors


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def error_here(text: str = "a bug") -> ValueError:
    try:
        raise ValueError(text)  # noqa: TRY301 - it needs a traceback
    except ValueError as error:
        return error


def error_there() -> ValueError:
    try:
        message = "another"
        raise ValueError(message)  # noqa: TRY301 - it needs a traceback
    except ValueError as error:
        return error


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    return [(record.getMessage(), record.exc_info is not None) for record in caplog.records]


def test_each_distinct_error_has_its_traceback_once_and_repetitions_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    counters = {"capture": Counter("errors", "", registry=None)}
    errors = UnexpectedErrors(counters, clock)
    for _ in range(5):
        errors.report("capture", error_here(), "the stream is connected again", "yard")
    errors.report("capture", error_here(), "the stream is connected again", "door")
    errors.report("capture", error_there(), "the stream is connected again", "yard")
    clock.now += QUIET_SECONDS
    errors.report("capture", error_here(), "the stream is connected again", "yard")
    text = "unexpected error, the stream is connected again: ValueError: "
    assert said(caplog) == [
        (text + "a bug", True),
        (text + "a bug", False),
        (text + "another", True),
        (text + "a bug (4 more like this since the last such line)", False),
    ]
    (samples,) = counters["capture"].collect()
    assert samples.samples[0].value == 8
    assert [getattr(record, "stream", None) for record in caplog.records] == ["yard", "door", "yard", "yard"]


def test_an_error_without_text_or_with_too_much_of_it_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    class UnshowableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    errors = UnexpectedErrors()
    for error in (UnshowableError(), KeyError(), ValueError("first\nsecond"), OSError("x" * 10_000)):
        errors.report("control", error, "refused")
    assert [text.rpartition("refused: ")[2] for text, _ in said(caplog)] == [
        "UnshowableError", "KeyError", "ValueError: first", "OSError: " + "x" * 200
    ]  # fmt: skip


def test_what_is_remembered_is_bounded() -> None:
    errors = UnexpectedErrors()
    for number in range(1500):
        errors.report("replay", ValueError("a bug"), "refused", f"stream-{number}")
    assert len(errors._throttle._keys) == 1000

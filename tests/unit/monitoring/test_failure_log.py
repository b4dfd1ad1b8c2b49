from __future__ import annotations

import logging

import pytest

from streamdet.monitoring.log import QUIET_SECONDS, FailureLog


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def failures(clock: Clock, caplog: pytest.LogCaptureFixture) -> FailureLog:
    caplog.set_level(logging.INFO)
    return FailureLog(logging.getLogger("streamdet.test"), "{} events were not kept", clock)


def test_two_lines_a_minute_and_every_loss_in_one_of_them(
    failures: FailureLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(90):
        failures.failed("the disk is full", 10)
        failures.works("it works")
        clock.now += 1
    failures.end("at the end")
    assert [record.getMessage() for record in caplog.records] == [
        "the disk is full (10 events were not kept since the last such line)",
        "it works",
        "the disk is full (600 events were not kept since the last such line)",
        "it works",
        "at the end (290 events were not kept since the last such line)",
    ]


def test_recovery_is_said_at_once_and_only_after_a_failure(
    failures: FailureLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    failures.works("it works")
    for _ in range(3):
        failures.failed("the disk is full", 10)
        failures.works("it works")
        failures.works("it works")
    for _ in range(3):
        clock.now += QUIET_SECONDS
        failures.works("it works")
    failures.end("at the end")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the disk is full (10 events were not kept since the last such line)"),
        ("INFO", "it works"),
        ("INFO", "it works (20 events were not kept since the last such line)"),
    ]

from __future__ import annotations

import pytest

from streamdet.monitoring.rates import Recent, RecentEvents


def test_events_per_second_are_those_of_the_last_seconds() -> None:
    recent = RecentEvents()
    assert recent.per_second(0.0) == 0.0
    recent.add(0.0, 0.5)
    assert recent.per_second(1.0) == 0.0, "one event has no rate"
    for tenth in range(1, 101):
        recent.add(tenth / 10, tenth / 1000)
    assert recent.per_second(10.0) == pytest.approx(10.0)
    assert recent.values() == pytest.approx([tenth / 1000 for tenth in range(50, 101)])
    assert recent.per_second(14.0) == pytest.approx(10 / 5)
    assert recent.per_second(30.0) == 0.0
    assert recent.values() == []


def test_what_happened_in_a_stream_lately() -> None:
    now = 0.0
    recent = Recent(lambda: now)
    assert recent.latency_seconds() is None
    for number in range(100):
        recent.published(number / 1000)
    recent.alert_raised()
    assert recent.latency_seconds() == (0.05, 0.095)
    now = 5.5
    recent.published(0.2)
    assert recent.latency_seconds() == (0.2, 0.2)
    recent.alert_raised()
    assert recent.alerts_last_hour() == 2
    now = 3602.0
    assert recent.alerts_last_hour() == 1
    assert recent.latency_seconds() is None

from __future__ import annotations

import pytest

from streamdet.monitoring.rates import RecentEvents


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

from __future__ import annotations

import threading

import pytest

from streamdet.monitoring.ledger import Ledger
from streamdet.types import Drop


def test_every_frame_is_somewhere() -> None:
    ledger = Ledger()
    ledger.set_stream("a")
    for _ in range(5):
        ledger.captured("a")
    ledger.published("a")
    ledger.dropped("a", Drop.STALE)
    counts = ledger.snapshot()["a"]
    assert (counts.captured, counts.published, counts.in_flight) == (5, 1, 3)
    assert counts.dropped == {**dict.fromkeys(Drop, 0), Drop.STALE: 1}


def test_adding_a_stream_twice_keeps_its_counts() -> None:
    ledger = Ledger()
    ledger.set_stream("a")
    ledger.captured("a")
    ledger.set_stream("a")
    assert ledger.snapshot()["a"].captured == 1
    assert ledger.counts_of("a") == ledger.snapshot()["a"]
    assert ledger.counts_of("b") is None


def test_an_unknown_stream_is_not_counted() -> None:
    ledger = Ledger()
    ledger.captured("a")
    ledger.published("a")
    ledger.dropped("a", Drop.STALE)
    assert ledger.snapshot() == {}
    ledger.set_stream("a")
    assert ledger.snapshot()["a"].captured == 0


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_stream_that_comes_back_takes_over_the_frames_still_on_their_way(late: int) -> None:
    ledger = Ledger()
    ledger.set_stream("a")
    for _ in range(3):
        ledger.captured("a")
    ledger.published("a")
    ledger.remove_stream("a")
    assert ledger.snapshot() == {}
    for _ in range(late):
        ledger.published("a")
    ledger.set_stream("a")
    counts = ledger.snapshot()["a"]
    assert (counts.captured, counts.in_flight) == (2 - late, 2 - late)
    for _ in range(2 - late):
        ledger.dropped("a", Drop.SHUTDOWN)
    assert ledger.snapshot()["a"].in_flight == 0


def test_a_frame_that_a_removed_stream_puts_and_loses_changes_nothing() -> None:
    ledger = Ledger()
    ledger.set_stream("a")
    ledger.captured("a")
    ledger.remove_stream("a")
    ledger.captured("a")
    ledger.dropped("a", Drop.SHUTDOWN)
    ledger.set_stream("a")
    assert ledger.snapshot()["a"].in_flight == 1


def test_counts_are_exact_and_snapshots_consistent_under_many_threads() -> None:
    ledger = Ledger()
    names = [f"stream-{n}" for n in range(4)]
    for name in names:
        ledger.set_stream(name)
    rounds, threads_per_stream = 500, 4

    def count(name: str) -> None:
        for n in range(rounds):
            ledger.captured(name)
            ledger.published(name) if n % 2 else ledger.dropped(name, Drop.SUPERSEDED)

    counting = [threading.Thread(target=count, args=(name,), daemon=True) for name in names * threads_per_stream]
    for thread in counting:
        thread.start()
    while any(thread.is_alive() for thread in counting):
        for name, counts in ledger.snapshot().items():
            assert 0 <= counts.in_flight <= threads_per_stream, name
    for counts in ledger.snapshot().values():
        assert counts.captured == rounds * threads_per_stream
        assert counts.published == counts.dropped[Drop.SUPERSEDED] == rounds * threads_per_stream // 2
        assert counts.in_flight == 0

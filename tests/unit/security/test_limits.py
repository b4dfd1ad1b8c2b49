from __future__ import annotations

import asyncio
import time

import pytest

from streamdet.security.limits import FairRate, Rate, Share


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_so_many_pass_a_second() -> None:
    clock = Clock()
    rate = Rate(5, clock)
    assert [rate.passes() for _ in range(7)] == [True] * 5 + [False] * 2
    clock.seconds += 0.5
    assert [rate.passes() for _ in range(3)] == [True, True, False]


def test_work_takes_its_share_of_the_time_and_no_more() -> None:
    clock = Clock()
    share = Share(0.1, 0.5, clock)
    worked = 0.0
    for _ in range(1000):
        clock.seconds += share.wait_seconds()
        assert share.wait_seconds() == pytest.approx(0.0, abs=1e-9)
        clock.seconds += 0.02
        share.worked(0.02)
        worked += 0.02
    assert worked / (clock.seconds - 1000.0) == pytest.approx(0.1, rel=0.03)


def test_after_a_pause_a_burst_is_done_at_once_however_long_the_pause_was() -> None:
    clock = Clock()
    share = Share(0.1, 0.5, clock)
    share.worked(2.0)
    assert share.wait_seconds() == pytest.approx(15.0)
    clock.seconds += 1e6
    for _ in range(5):
        assert share.wait_seconds() == 0.0
        share.worked(0.1)
    clock.seconds += 1e-6
    share.worked(0.1)
    assert share.wait_seconds() == pytest.approx(1.0, rel=1e-3)


def _here() -> bool:
    return False


async def _passed(rate: FairRate, requests: list[str]) -> list[str]:
    """The clients in the order in which their requests pass; with a "-" before those that are refused."""
    order: list[str] = []

    async def ask(client: str) -> None:
        order.append(client if await rate.turn(client, _here) else f"-{client}")

    await asyncio.gather(*map(ask, requests))
    return order


def test_clients_take_turns_and_none_is_refused_because_of_another() -> None:
    async def run() -> None:
        rate = FairRate(100, most_waiting=20)
        assert await _passed(rate, ["greedy"] * 100) == ["greedy"] * 100
        began = time.monotonic()
        order = await _passed(rate, ["greedy"] * 30 + ["prometheus", "other"])
        assert sorted(order) == sorted(["greedy"] * 20 + ["-greedy"] * 10 + ["prometheus", "other"])
        passed = [client for client in order if not client.startswith("-")]
        assert max(passed.index("prometheus"), passed.index("other")) <= 5
        assert time.monotonic() - began >= 0.15

    asyncio.run(run())


def test_who_has_gone_takes_no_turn_and_no_place() -> None:
    async def run() -> None:
        rate = FairRate(50, most_waiting=2)
        await _passed(rate, ["a"] * 50)
        gone = [asyncio.create_task(rate.turn("a", lambda: True)) for _ in range(20)]
        await asyncio.sleep(0)
        assert await _passed(rate, ["a", "a"]) == ["a", "a"]
        await asyncio.gather(*gone)

    asyncio.run(run())

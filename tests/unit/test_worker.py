from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest

from streamdet.worker import Stop, Wakeup, Worker
from support.waiting import join, wait_until


class Sleeper(Worker):
    def run(self) -> None:
        while not self.sleep(60):
            self.beat()


class Failing(Worker):
    def run(self) -> None:
        message = "as wanted"
        raise ValueError(message)


class Stubborn(Worker):
    join_timeout_seconds = 0.1

    def __init__(self) -> None:
        super().__init__("stubborn")
        self.release = threading.Event()

    def run(self) -> None:
        self.release.wait(60)


class Waiting(Worker):
    def __init__(self) -> None:
        super().__init__("waiting")
        self.woken = threading.Event()

    def wake(self) -> None:
        self.woken.set()

    def run(self) -> None:
        self.woken.wait(60)
        assert self.stopping


def test_runs_while_entered() -> None:
    with Sleeper("sleeper") as worker:
        assert worker.is_alive()
    assert not worker.is_alive()
    assert worker.error is None


def test_error_is_stored_and_reported() -> None:
    reported: list[Worker] = []
    with Failing("failing", reported.append) as worker:
        worker.join()
    assert isinstance(worker.error, ValueError)
    assert reported == [worker]


def test_stop_wakes_a_wait_of_the_worker() -> None:
    with Waiting() as worker:
        pass
    assert not worker.is_alive()
    assert worker.error is None


def test_join_says_when_it_takes_too_long() -> None:
    worker = Stubborn()
    worker.start()
    worker.stop()
    assert not worker.join()
    worker.release.set()
    worker.join_timeout_seconds = 30
    assert worker.join()


def test_join_before_start_and_beat() -> None:
    worker = Sleeper("sleeper")
    before = worker.heartbeat_monotonic_seconds
    worker.beat()
    assert worker.heartbeat_monotonic_seconds >= before
    with pytest.raises(RuntimeError):
        worker._thread.join()
    assert worker.join()


class Busy(Worker):
    def __init__(self) -> None:
        super().__init__("busy")
        self.done = threading.Event()

    def run(self) -> None:
        while time.thread_time() < 0.1:
            pass
        self.done.set()
        self.sleep(60)


def test_the_cpu_time_of_a_worker_is_its_own() -> None:
    worker, idle = Busy(), Sleeper("sleeper")
    assert worker.cpu_seconds() == 0
    with worker, idle:
        assert worker.done.wait(20)
        assert 0.1 <= worker.cpu_seconds() < 5
        assert idle.cpu_seconds() < 0.1
    assert worker.cpu_seconds() == 0


def test_a_wait_ends_when_woken() -> None:
    wakeup = Wakeup()
    waker = threading.Timer(0.1, wakeup.wake)
    waker.start()
    began = time.monotonic()
    wakeup.wait(60)
    assert time.monotonic() - began < 50
    join(waker)
    wakeup.close()


def test_waking_before_the_wait_is_not_lost_and_counts_once() -> None:
    wakeup = Wakeup()
    for _ in range(100_000):
        wakeup.wake()
    began = time.monotonic()
    wakeup.wait(60)
    assert time.monotonic() - began < 50
    while select.select([wakeup._receive], [], [], 0)[0]:
        wakeup.wait(0)
    began = time.monotonic()
    wakeup.wait(0.05)
    assert time.monotonic() - began >= 0.04
    wakeup.close()


def test_waking_after_the_end_does_nothing() -> None:
    wakeup = Wakeup()
    wakeup.close()
    wakeup.wake()


def test_the_system_shows_a_thread_by_its_name() -> None:
    worker = Sleeper("capture-front-door")
    with worker:
        wait_until(lambda: "capture-front-d" in _names_of_threads())
    # The system may show it a moment longer than it lasts.
    wait_until(lambda: "capture-front-d" not in _names_of_threads())


def _names_of_threads() -> set[str]:
    names = set()
    for path in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            names.add((path / "comm").read_text("utf-8").rstrip())
    return names


def test_a_stop_can_be_asked_for_by_a_signal_at_any_moment_of_the_wait() -> None:
    handled = 0

    def handle(_number: int, _frame: object) -> None:
        nonlocal handled
        handled += 1
        stop.set()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        for sent in range(1, 1001):
            stop = Stop()
            timer = threading.Timer(sent % 10 * 1e-5, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            while not stop.wait(0.00005):
                pass
            timer.join()
            assert handled == sent
            assert stop.wait(60)
            stop.close()
    finally:
        signal.signal(signal.SIGUSR1, before)

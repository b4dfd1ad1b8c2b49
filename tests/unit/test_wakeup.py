from __future__ import annotations

import select
import threading
import time

from streamdet.worker import Wakeup


def test_a_wait_ends_when_woken() -> None:
    wakeup = Wakeup()
    waker = threading.Timer(0.1, wakeup.wake)
    waker.start()
    began = time.monotonic()
    wakeup.wait(60)
    assert time.monotonic() - began < 50
    waker.join()
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

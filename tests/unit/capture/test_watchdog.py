from __future__ import annotations

import threading

from streamdet.capture.watchdog import StallWatch
from support.waiting import wait_until


def watch_threads() -> int:
    return sum(t.name == "stall-watch" for t in threading.enumerate())


def test_what_is_late_is_reported_once_and_others_are_not() -> None:
    watch = StallWatch()
    late, reported = threading.Event(), []
    with (
        watch.watched(lambda: (reported.append("late"), late.set()), reported.append) as one,
        watch.watched(lambda: reported.append("x"), reported.append) as two,
    ):
        two.begin(60)
        one.begin(0.05)
        assert late.wait(30)
        assert one.end()
        assert not two.end()
        one.begin(60)
        assert not one.end()
    assert reported == ["late"]


def test_one_thread_for_all_that_ends_with_the_last() -> None:
    watch = StallWatch()
    before = watch_threads()
    with watch.watched(lambda: None, print), watch.watched(lambda: None, print):
        assert watch_threads() == before + 1
    wait_until(lambda: watch_threads() == before, "the end of the thread")
    with watch.watched(lambda: None, print):
        assert watch_threads() == before + 1


def test_an_error_is_reported_to_its_owner_and_the_others_are_still_watched() -> None:
    watch = StallWatch()
    late, reported = threading.Event(), []

    def fail() -> None:
        raise ValueError

    with watch.watched(fail, reported.append) as broken, watch.watched(late.set, reported.append) as healthy:
        broken.begin(0.01)
        wait_until(lambda: reported, "the error")
        healthy.begin(0.01)
        assert late.wait(30)
    assert [type(error) for error in reported] == [ValueError]

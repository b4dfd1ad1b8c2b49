from __future__ import annotations

import pytest

from streamdet.inference.batch_limit import BatchLimit


def detect(limit: BatchLimit, batches: int, seconds: float, picture_seconds: float) -> list[int]:
    """Detects batches as large as they may be, each of which takes a time, and a time for each picture."""
    sizes = []
    for _ in range(batches):
        sizes.append(limit.pictures)
        limit.note(limit.pictures, seconds + picture_seconds * limit.pictures)
    return sizes


def test_batches_that_are_over_in_time_stay_as_large_as_they_may_be() -> None:
    assert set(detect(BatchLimit(4, 0.1), 100, 0.01, 0.02)) == {4}


def test_batches_become_smaller_while_they_take_too_long_and_larger_again() -> None:
    limit = BatchLimit(8, 0.1)
    assert detect(limit, 50, 0.01, 0.04)[-1] == 2
    assert detect(limit, 200, 0.001, 0.005)[-1] == 8


def test_a_limit_does_not_go_up_and_down() -> None:
    limit = BatchLimit(8, 0.1)
    detect(limit, 50, 0.01, 0.025)
    assert len(set(detect(limit, 500, 0.01, 0.025))) == 1


def test_after_a_slow_start_batches_become_as_large_as_they_would_have_stayed() -> None:
    limit, steady = BatchLimit(4, 0.226), BatchLimit(4, 0.226)
    assert detect(limit, 40, 0.04, 0.15)[-1] == 1
    assert detect(limit, 200, 0.02, 0.075)[-1] == detect(steady, 200, 0.02, 0.075)[-1] == 2


def test_one_slow_batch_among_many_changes_nothing() -> None:
    limit = BatchLimit(4, 0.1)
    detect(limit, 20, 0.0, 0.01)
    limit.note(4, 0.2)
    assert limit.pictures == 4


def test_a_batch_has_at_least_one_picture_however_long_it_takes() -> None:
    assert detect(BatchLimit(4, 0.1), 10, 5.0, 5.0)[-1] == 1


@pytest.mark.parametrize("seconds", [0.0, 0.1, 1000.0])
def test_without_a_longest_time_every_batch_is_in_time(seconds: float) -> None:
    assert set(detect(BatchLimit(16, None), 20, seconds, seconds)) == {16}

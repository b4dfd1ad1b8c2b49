from __future__ import annotations

from streamdet.capture.sources.clocks import FrameRate


def measured(times: list[tuple[float | None, float]]) -> float | None:
    rate = FrameRate()
    known = [rate.add(pts, at) for pts, at in times]
    assert sum(known) == (rate.fps is not None)
    return rate.fps


def test_presentation_times_count_however_frames_come() -> None:
    # Two seconds that a server has kept come at once.
    assert measured([(n / 25, max(2, n / 25)) for n in range(150)]) == 25
    assert measured([(None, 0)] + [(n * 0.04004, 0) for n in range(150)]) == 25


def test_arrival_counts_where_there_are_none_but_not_that_of_the_first_burst() -> None:
    assert measured([(None, 0.01 * n) for n in range(50)] + [(None, 1 + n / 2) for n in range(30)]) == 2


def test_pictures_that_are_not_decoded_count() -> None:
    rate = FrameRate()
    for number in range(200):
        if number % 10 in (0, 7):
            rate.add(number / 25, number / 25)
        else:
            rate.add_left_out()
    assert rate.fps == 25


def test_it_is_unknown_until_it_was_measured_long_enough() -> None:
    assert measured([(n / 25, n / 25) for n in range(120)]) is None
    assert measured([(n * 4.0, n * 4.0) for n in range(11)]) == 0.25


def test_a_jump_begins_the_measurement_again() -> None:
    assert measured([(n / 10, n / 10) for n in range(20)] + [(7000 + n / 10, 0) for n in range(60)]) == 10

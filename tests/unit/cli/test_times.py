"""Times as people type them."""

from __future__ import annotations

import time

import pytest

from streamdet.cli.times import Time


@pytest.mark.parametrize("text", ["1950-01-01", "1969-12-31T00:00Z", "999999999999 h ago"])
def test_a_time_before_all_that_is_known_is_the_beginning(text: str) -> None:
    assert Time().convert(text, None, None) == 0.0


def test_a_duration_counts_from_now() -> None:
    assert Time().convert("2 h ago", None, None) == pytest.approx(time.time() - 7200, abs=60)

from __future__ import annotations

import pytest

from streamdet.config.values import in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "0.0 s"),
        (3.24, "3.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (320, "5 min 20 s"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (259_200, "3 days"),
    ],
)
def test_durations_are_easy_to_read(seconds: float, words: str) -> None:
    assert in_words(seconds) == words

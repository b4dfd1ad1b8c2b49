from __future__ import annotations

from streamdet.cli.plural import all_of, counted, several


def test_things_are_counted_as_one_says_it() -> None:
    assert [counted(number, "stream") for number in (0, 1, 2)] == ["0 streams", "1 stream", "2 streams"]
    assert [several(number, "person") for number in (0, 1, 3)] == ["0 people", "1 person", "3 people"]
    assert [several(number, "Fußgänger") for number in (1, 2)] == ["1 Fußgänger", "2 x Fußgänger"]


def test_the_most_frequent_is_first_and_what_is_not_there_is_left_out() -> None:
    assert all_of({"car": 1, "bus": 0, "person": 3}) == "3 people, 1 car"
    assert all_of({}) == ""


def test_a_label_cannot_write_lines_of_its_own() -> None:
    assert several(2, "a\nb\x1b[31m") == "2 x a\\nb\\x1b[31m"
    assert len(several(2, "x" * 500)) < 100

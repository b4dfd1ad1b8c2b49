from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from streamdet.web import marks as module
from streamdet.web.marks import Marks


def test_marks_last_and_are_private(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "state")
    marks.mark(["a", "b", "c"], reviewed=True)
    marks.mark(["b", "unknown"], reviewed=False)
    assert [of in marks for of in "abc"] == [True, False, True]
    again = Marks(tmp_path / "state")
    assert [of in again for of in "abc"] == [True, False, True]
    assert again.problem == ""
    file = tmp_path / "state" / "reviewed.sqlite"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_directory_that_is_deleted_is_made_again(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "state")
    marks.mark(["a"], reviewed=True)
    shutil.rmtree(tmp_path / "state")
    marks.mark(["b"], reviewed=True)
    assert marks.problem == ""
    assert "b" in Marks(tmp_path / "state")


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MARKS", 3)
    marks = Marks(tmp_path)
    for of in "abcde":
        marks.mark([of], reviewed=True)
    assert [of for of in "abcde" if of in marks] == ["c", "d", "e"]
    assert [of for of in "abcde" if of in Marks(tmp_path)] == ["c", "d", "e"]


def test_changes_are_known_since_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHANGES", 3)
    monkeypatch.setattr(module, "MAX_MARKS", 2)
    marks = Marks(None)
    first = marks.last_number
    assert marks.changed(first) == {}
    marks.mark(["a", "b"], reviewed=True)
    marks.mark(["a"], reviewed=True)  # changes nothing
    assert marks.changed(first) == {"a": True, "b": True}
    second = marks.last_number
    marks.mark(["b"], reviewed=False)
    assert marks.changed(second) == {"b": False}
    # More than are known: a page that has only the first number must read everything again.
    marks.mark(["c"], reviewed=True)
    assert marks.changed(second) == {"b": False, "c": True}
    assert marks.changed(first) is None
    # One that makes room is no longer marked.
    third = marks.last_number
    marks.mark(["d"], reviewed=True)
    assert marks.changed(third) == {"d": True, "a": False}


def test_without_a_directory_they_last_until_the_end() -> None:
    marks = Marks(None)
    marks.mark(["a"], reviewed=True)
    assert "a" in marks
    assert "no directory" in marks.problem


@pytest.mark.parametrize("broken", ["a file", "a link", "not a database"])
def test_a_place_that_cannot_be_used_is_a_problem_and_no_end(tmp_path: Path, broken: str) -> None:
    directory = tmp_path / "state"
    if broken == "a file":
        directory.write_text("in the way")
    else:
        directory.mkdir()
        file = directory / "reviewed.sqlite"
        if broken == "a link":
            (tmp_path / "other").write_bytes(b"")
            file.symlink_to(tmp_path / "other")
        else:
            file.write_bytes(b"no database " * 100)
    marks = Marks(directory)
    assert "cannot be used" in marks.problem
    marks.mark(["a"], reviewed=True)
    assert "a" in marks
    assert "cannot be used" in marks.problem


def test_what_could_not_be_written_is_written_with_the_next_that_can_be(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.mark(["a", "b"], reviewed=True)
    file = tmp_path / "reviewed.sqlite"
    file.rename(tmp_path / "kept")
    file.mkdir()
    marks.mark(["c"], reviewed=True)
    marks.mark(["a"], reviewed=False)
    assert "cannot be used" in marks.problem
    file.rmdir()
    (tmp_path / "kept").rename(file)
    marks.mark(["d"], reviewed=True)
    assert marks.problem == ""
    again = Marks(tmp_path)
    assert [of in again for of in "abcd"] == [False, True, True, True]

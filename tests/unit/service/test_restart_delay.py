from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from streamdet.service.restart_delay import FORGET_AFTER_SECONDS, RestartDelay


def _starts(folder: Path, count: int) -> list[float]:
    """The delays of so many starts in a row without an orderly end."""
    slept: list[float] = []
    delays = []
    for _ in range(count):
        slept.clear()
        RestartDelay({"RUNTIME_DIRECTORY": str(folder)}, slept.append).wait()
        delays.append(sum(slept))
    return delays


def test_the_delay_grows_with_each_failure_up_to_a_minute(tmp_path: Path) -> None:
    # With the second that systemd waits: 1, 1, 2, 4, ... 60.
    assert _starts(tmp_path, 10) == [0, 0, 1, 3, 7, 15, 31, 59, 59, 59]


@pytest.mark.parametrize("failures", [1024, 1025, 10**6])
def test_after_a_day_of_failures_it_is_still_a_minute(failures: int, tmp_path: Path) -> None:
    (tmp_path / "starts").write_text(f"{failures}\n")
    assert _starts(tmp_path, 1) == [59]
    assert (tmp_path / "starts").read_text() == f"{failures + 1}\n"


def test_an_orderly_end_forgets_the_failures(tmp_path: Path) -> None:
    _starts(tmp_path, 5)
    RestartDelay({"RUNTIME_DIRECTORY": str(tmp_path)}).forget()
    assert _starts(tmp_path, 2) == [0, 0]


def test_a_process_that_lived_long_did_not_fail_to_start(tmp_path: Path) -> None:
    _starts(tmp_path, 5)
    long_ago = time.time() - FORGET_AFTER_SECONDS - 1
    os.utime(tmp_path / "starts", (long_ago, long_ago))
    assert _starts(tmp_path, 1) == [0]


def test_a_count_cut_short_is_a_first_start(tmp_path: Path) -> None:
    (tmp_path / "starts").write_text("")
    assert _starts(tmp_path, 3) == [0, 0, 1]


def test_of_several_folders_the_first_is_used(tmp_path: Path) -> None:
    RestartDelay({"RUNTIME_DIRECTORY": f"{tmp_path}:/nowhere"}).wait()
    assert (tmp_path / "starts").read_text() == "1\n"


def test_outside_of_systemd_nothing_happens() -> None:
    delay = RestartDelay({})
    delay.wait()
    delay.forget()


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        RestartDelay({"RUNTIME_DIRECTORY": str(tmp_path / "gone")}).wait()
    assert ["the next start after a failure will not be delayed" in r.getMessage() for r in caplog.records] == [True]

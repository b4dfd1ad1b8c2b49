from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamdet import DetectionEvent, Restart, subscribe, wire
from streamdet.client.recovery import RecoveryTimes
from streamdet.config import ReplayConfig
from streamdet.delivery.event_store import EventStore, Record
from streamdet.delivery.publisher import Publisher
from streamdet.errors import SpoolError
from streamdet.monitoring.trusted_clock import TrustedClock
from streamdet.wire.replay import Refused, Replayed, ReplayRequest
from support.disks import run_on_small_disk
from support.occurring import alert_event, object_event
from support.paths import TESTS
from support.publishing import PERSON, frame_of, publisher_at
from support.spools import TOPIC, Counted, kept_and_not_kept, payload_of
from support.waiting import wait_until

PATIENCE_SECONDS = 30.0


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_kept_is_there_after_restarts_epoch_by_epoch(tmp_path: Path) -> None:
    for epoch, last in (("e1", 700), ("e2", 5), ("e3", 0), ("e4", 3)):
        with Counted(tmp_path, epoch) as spool:
            spool.put(range(1, last + 1))
            spool.put(range(1, 4), "state/a/")
    with Counted(tmp_path, "e5") as spool:
        assert spool.all_of("e1") == list(range(1, 701))
        assert spool.all_of("e1", 650) == list(range(650, 701))
        assert spool.ask("e1", 10, 12).seqs == (10, 11, 12)
        end = spool.ask("e1", 701)
        assert (end.seqs, end.next_epoch, end.end_is_known) == ((), "e2", True)
        # There was nothing of this topic in e3.
        assert spool.ask("e2", 6).next_epoch == "e4"
        assert spool.ask("e4", 4).next_epoch == "e5"
        unknown = spool.ask("e0", 1)
        assert (unknown.seqs, unknown.next_epoch, unknown.end_is_known) == ((), "e5", False)
        spool.put(range(1, 11))
        assert spool.ask("e5", 1, 10).seqs == tuple(range(1, 11))


def test_the_files_are_for_the_user_of_the_daemon_alone(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with Counted(folder) as spool:
        spool.put(range(1, 11))
        assert spool.all_of("e1")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(("events.sqlite", "events.sqlite-wal", "events.sqlite-shm"), 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_large_answer_comes_in_parts(tmp_path: Path) -> None:
    with Counted(tmp_path) as spool:
        spool.put(range(1, 41), size=100_000)
        answer = spool.ask("e1", 1)
        assert 1 < len(answer.events) < 40
        assert answer.more
        assert spool.all_of("e1") == list(range(1, 41))


def test_it_stays_within_its_bounds_and_keeps_the_newest(tmp_path: Path) -> None:
    with Counted(tmp_path, max_bytes=2**22) as spool:
        for first in range(1, 8001, 400):
            spool.put(range(first, first + 400), size=1000)
            wait_until(lambda count=first + 399: spool.count("events_kept_total") >= count)
            assert folder_bytes(tmp_path) <= 2**22
        seqs = spool.all_of("e1")
    assert seqs[-1] == 8000
    assert seqs == list(range(seqs[0], 8001))
    assert 2000 < len(seqs) < 4000


def phase_of(kind: str, number: int, phase: str, seq: int, size: int = 10) -> Record:
    """An event of an object, or of an alert."""
    object_ = {"object": {"object_id": f"e-{number}", "label": "person", "seconds": 1.0, "zones": []}}
    alert = {"alert": {"alert_id": f"e-a{number}", "rule": "night", "raised_at": 1.0, "seconds": 1.0}}
    frame = {"captured_at": 1.0, "clock": "daemon"}
    of = {"frame": frame, **(object_ if kind == "objects" else alert)}
    event = {"type": kind, "seq": seq, "phase": phase, "published_at": 1.0, **of, "fill": "x" * size}
    return Record("", f"{kind}/a/", seq, 0.0, json.dumps(event).encode())


def keep_phases(spool: Counted, *records: Record) -> None:
    before = spool.count("events_kept_total")
    for record in records:
        spool.spool.keep(record.topic, record.seq, record.payload)
    wait_until(lambda: spool.count("events_kept_total") >= before + len(records))


def test_it_knows_what_has_begun_and_not_ended_over_restarts(tmp_path: Path) -> None:
    with Counted(tmp_path, "e1") as spool:
        keep_phases(
            spool,
            phase_of("objects", 1, "begin", 1),
            phase_of("objects", 2, "begin", 2),
            phase_of("alerts", 1, "raised", 1),
            phase_of("alerts", 2, "raised", 2),
            phase_of("objects", 1, "update", 3),
            phase_of("objects", 2, "end", 4),
            phase_of("objects", 3, "begin", 5),
            phase_of("objects", 3, "end", 6),
            phase_of("alerts", 2, "cleared", 3),
        )
        # Those of the present epoch are the publisher's own.
        assert spool.left_behind() == ([], [])
    with Counted(tmp_path, "e2") as spool:
        assert spool.unfinished() == [("alerts", 1), ("objects", 3)]
        assert [json.loads(event)["seq"] for event in spool.left_behind().raised] == [2]
        keep_phases(spool, phase_of("objects", 1, "end", 1), phase_of("objects", 4, "begin", 2))
    # It ended before the last event of the alert could be published.
    with Counted(tmp_path, "e3") as spool:
        assert spool.unfinished() == [("alerts", 1), ("objects", 2)]
        keep_phases(spool, phase_of("alerts", 1, "cleared", 1), phase_of("objects", 4, "end", 1))
    with Counted(tmp_path, "e4") as spool:
        assert spool.unfinished() == []
        # A rule counts its cooldown from when it last raised an alert, whether that was cleared or not.
        assert [json.loads(event)["phase"] for event in spool.left_behind().raised] == ["raised"]


def test_what_has_begun_is_forgotten_with_its_events(tmp_path: Path) -> None:
    with Counted(tmp_path, "e1", max_bytes=2**20) as spool:
        keep_phases(spool, phase_of("objects", 1, "begin", 1))
        spool.put(range(1, 1001), size=1000)
    with Counted(tmp_path, "e2") as spool:
        assert spool.unfinished() == []


def test_an_end_that_found_no_room_is_not_published_again_after_a_restart(tmp_path: Path) -> None:
    store = EventStore(tmp_path, 2**30, "e1", {})
    store.append([phase_of("objects", 1, "begin", 1), phase_of("objects", 2, "begin", 2)])
    with contextlib.closing(sqlite3.connect(store.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError):
            store.append([phase_of("objects", 1, "end", 3)])
    store.append([phase_of("objects", 2, "update", 4)])
    store.close()
    with Counted(tmp_path, "e2") as spool:
        assert spool.unfinished() == [("objects", 4)]


def test_a_database_of_an_earlier_version_gets_what_it_lacks(tmp_path: Path) -> None:
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 11))
    with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite")) as database:
        database.execute("DROP TABLE newest")
    with Counted(tmp_path, "e2") as spool:
        assert spool.unfinished() == []
        assert spool.all_of("e1") == list(range(1, 11))
        keep_phases(spool, phase_of("objects", 1, "begin", 1))
    with Counted(tmp_path, "e3") as spool:
        assert spool.unfinished() == [("objects", 1)]


def clock_at(seconds: float) -> TrustedClock:
    """A clock that stands still."""
    return TrustedClock(lambda: 1.8e9 + seconds, lambda: 50.0)


def test_old_events_are_deleted(tmp_path: Path) -> None:
    for epoch, at in (("e1", 0), ("e2", 7140)):
        with Counted(tmp_path, epoch, clock=clock_at(at)) as spool:
            spool.put(range(1, 2001))
    with Counted(tmp_path, "e3", max_age_seconds=3600, clock=clock_at(7200)) as spool:
        wait_until(lambda: not spool.all_of("e1"))
        assert spool.all_of("e2") == list(range(1, 2001))
        spool.put(range(1, 11))
    with Counted(tmp_path, "e4", max_age_seconds=3600, clock=clock_at(10_750)) as spool:
        wait_until(lambda: not spool.all_of("e2"))
        assert spool.all_of("e3") == list(range(1, 11))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_start_with_a_clock_that_is_wrong_deletes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epochs: int
) -> None:
    for number in range(epochs):
        with Counted(tmp_path, f"e{number}", clock=clock_at(0)) as spool:
            spool.put(range(1, 2))
    with Counted(tmp_path, "next", max_age_seconds=3600, clock=clock_at(2 * 86400)) as spool:
        spool.put(range(1, 4))
        wait_until(lambda: "look older than max_age_seconds" in caplog.text)
        assert [spool.all_of(f"e{number}") for number in range(epochs)] == [[1]] * epochs
    assert caplog.text.count("the clock is 2.0 days ahead of the newest event") == 1


def test_events_from_a_clock_that_was_a_year_early_hold_up_no_others(tmp_path: Path) -> None:
    year = 365 * 86400
    for epoch, at in (("early", year), ("late", -year), ("right", 0), ("later", 3000)):
        with Counted(tmp_path, epoch, clock=clock_at(at)) as spool:
            spool.put(range(1, 11))
    with Counted(tmp_path, "now", max_age_seconds=5000, clock=clock_at(5500)) as spool:
        wait_until(lambda: not spool.all_of("late") and not spool.all_of("right"))
        assert [len(spool.all_of(epoch)) for epoch in ("early", "later")] == [10, 10]


def test_names_of_which_no_event_is_left_are_forgotten(tmp_path: Path) -> None:
    last_seqs: dict[str, int] = {}
    with contextlib.closing(EventStore(tmp_path, 2**30, "e1", last_seqs)) as store:
        store.append([Record("e1", "detections/gone/", 1, 1000.0, b"{}")])
        down = b'{"state": "down", "reason": "timeout", "since": 1000.0}'
        store.append([Record("e1", "state/gone/", 1, 1000.0, down)])
        store.end_epoch({"detections/gone/": 1})
    with contextlib.closing(EventStore(tmp_path, 2**30, "e2", last_seqs)) as store:
        store.append([Record("e2", TOPIC, 1, 5000.0, b"{}")])
        assert store.delete_older(2000.0, 6000.0)
        assert not store.delete_older(2000.0, 6000.0)
        end = store.answer(ReplayRequest(1, "detections/gone/", 1, None, "e1"))
        assert (end.next_seq, end.end_is_known) == (2, True)
        store.forget_names()
        end = store.answer(ReplayRequest(1, "detections/gone/", 1, None, "e1"))
        assert (end.next_seq, end.end_is_known) == (1, False)
        with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite")) as database:
            assert database.execute("SELECT epoch FROM epochs").fetchall() == [("e2",)]
            assert database.execute("SELECT topic FROM topics").fetchall() == [(TOPIC,)]
            assert database.execute("SELECT * FROM outages").fetchall() == []  # another topic may get the id
        store.append([Record("e2", "detections/gone/", 1, 5000.0, b"{}")])
        last_seqs["detections/gone/"] = 1
        assert store.answer(ReplayRequest(1, "detections/gone/", 1, None, "e2")).seqs == (1,)


def test_a_clock_is_believed_again_an_hour_after_it_jumped() -> None:
    wall, steady = 1e9, 50.0
    clock = TrustedClock(lambda: wall, lambda: steady)
    assert clock.now() == 1e9
    wall, steady = wall + 7000, steady + 7000
    assert clock.now() == wall
    clock.compare(wall - 1800)
    assert clock.now() == wall, "half an hour without events is nothing strange"
    wall += 3 * 3600
    assert clock.now() is None
    assert clock.doubt == "the clock was set 3.0 hours forward"
    wall, steady = wall + 3599, steady + 3599
    assert clock.now() is None
    wall, steady = wall + 2, steady + 2
    assert (clock.now(), clock.doubt) == (wall, "")
    wall -= 120
    assert clock.now() is None
    assert clock.doubt == "the clock was set 2 minutes back"
    clock.compare(wall + 86400)
    assert clock.doubt == "the clock is 24.0 hours behind the newest event"


WRITER = """
import sys, time
from pathlib import Path
from support.spools import Counted
with Counted(Path(sys.argv[1]), "e1") as spool:
    seq = 0
    while True:
        spool.put(range(seq + 1, seq + 21), size=2000)
        seq += 20
        while spool.count("events_kept_total") < seq:
            time.sleep(0.0005)
        print(seq, flush=True)
"""


@pytest.mark.parametrize("after", [3, 40, 200])
def test_a_kill_in_the_middle_of_writing_loses_nothing_that_was_kept(tmp_path: Path, after: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=TESTS
    ) as writer:
        assert writer.stdout is not None
        kept = 0
        for _ in range(after):
            kept = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            kept = int(line) if line.endswith("\n") else kept
    with Counted(tmp_path, "e2") as spool:
        seqs = spool.all_of("e1")
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= kept
        end = spool.ask("e1", len(seqs) + 1)
        assert (end.next_epoch, end.end_is_known) == ("e2", False)


@pytest.mark.parametrize("torn_bytes", [1, 5000, 100_000])
def test_a_write_ahead_log_that_is_torn_costs_its_end_alone(tmp_path: Path, torn_bytes: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=TESTS
    ) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
    log = tmp_path / "events.sqlite-wal"
    os.truncate(log, log.stat().st_size - torn_bytes)
    with Counted(tmp_path, "e2") as spool:
        seqs = spool.all_of("e1")
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= 20
        spool.put(range(1, 4))
        assert spool.ask("e2", 1, 3).seqs == (1, 2, 3)


def flip(path: Path) -> None:
    """Damages every page but the first."""
    with path.open("r+b") as file:
        for offset in range(4096, path.stat().st_size, 4096):
            file.seek(offset)
            file.write(b"\xff" * 100)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def replace_by_text(path: Path) -> None:
    path.write_text("dear diary, " * 1000)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def link_the_log(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"mine")
    path.with_name(path.name + "-wal").symlink_to("elsewhere")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def let_others_write(path: Path) -> None:
    path.chmod(0o666)


def give_away(path: Path) -> None:
    os.chown(path, 65534, 65534)


def make_newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")


def replace_by_another(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE records (id INTEGER)")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (flip, "malformed|btree|page|corrupt|ptrmap"),
        (cut, "malformed|page"),
        (replace_by_text, "not a database"),
        (link, "symbolic link"),
        (link_the_log, "symbolic link"),
        (make_pipe, "not a regular file"),
        (make_folder, "not a regular file"),
        (let_others_write, "others may write to it"),
        pytest.param(
            give_away, "belongs to another user", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
        ),
        (make_newer, "not those of this version"),
        (replace_by_another, "not those of this version"),
    ],
)
def test_a_file_that_is_damaged_or_foreign_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], why: str
) -> None:
    path = tmp_path / "events.sqlite"
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 1001))
    harm(path)
    elsewhere = tmp_path / "elsewhere"
    before = elsewhere.read_bytes() if elsewhere.exists() else path.read_bytes() if path.is_file() else None
    with Counted(tmp_path, "e2") as spool:
        spool.put(range(1, 1001))
        assert spool.all_of("e2") == list(range(1, 1001))
        assert spool.all_of("e1") == []
        assert path.stat().st_mode & 0o777 == 0o600
    aside = tmp_path / "set-aside-1.sqlite"
    assert os.path.lexists(aside)
    if before is not None and harm is not flip:
        assert (elsewhere if elsewhere.exists() else aside).read_bytes() == before
    (said,) = [record.getMessage() for record in caplog.records]
    expected = f"^{path} is set aside as {aside.name}, and a new one is created: .*({why})"
    assert re.search(expected, said, re.DOTALL), said


def test_damage_is_found_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "events.sqlite"
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 1001))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 100)
    with Counted(tmp_path, "e2"):
        wait_until((tmp_path / "set-aside-1.sqlite").exists)
    assert caplog.text.count("is set aside") == 1


def test_damage_that_shows_only_later_costs_what_was_kept_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 6001), size=1000)
        wait_until(lambda: spool.count("events_kept_total") == 6000)
        with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        flip(tmp_path / "events.sqlite")
        assert len(spool.all_of("e1")) < 6000
        spool.put(range(6001, 6011))
        wait_until(lambda: spool.count("events_kept_total") == 6010)
        assert spool.all_of("e1", 6001) == list(range(6001, 6011))
    assert caplog.text.count("is set aside") == 1


def test_what_was_set_aside_is_deleted_when_there_is_no_room_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "events.sqlite").write_bytes(b"x" * 600_000)
    with Counted(tmp_path, max_bytes=2**20) as spool:
        spool.put(range(1, 51), size=1000)
        wait_until(lambda: spool.count("events_kept_total") == 50)
        assert (tmp_path / "set-aside-1.sqlite").exists()
        spool.put(range(51, 401), size=1000)
        wait_until(lambda: spool.count("events_kept_total") == 400)
        assert not (tmp_path / "set-aside-1.sqlite").exists()
        assert spool.all_of("e1") == list(range(1, 401))
    assert "set-aside-1.sqlite is deleted to make room" in caplog.text


def test_a_database_that_is_deleted_while_it_is_used_is_begun_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.sqlite"
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 11))
        wait_until(lambda: spool.count("events_kept_total") == 10)
        for file in tmp_path.iterdir():
            file.unlink()
        wait_until(path.exists)
        spool.put(range(11, 21))
        assert spool.all_of("e1") == list(range(11, 21))
    assert caplog.text.count("was deleted, emptied or replaced") == 1


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("events.sqlite", "delete"), ("events.sqlite", "empty"), ("events.sqlite", "folder"),
        ("events.sqlite-wal", "delete"), ("events.sqlite-wal", "folder"),
    ],
)  # fmt: skip
def test_a_file_that_is_spoiled_while_it_is_used_costs_no_later_event(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / name
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 11))
        wait_until(lambda: spool.count("events_kept_total") == 10)
        if how == "empty":
            os.truncate(path, 0)
        else:
            path.unlink()
        if how == "folder":
            path.mkdir()
        time.sleep(2.5)  # it is looked at once a second
        kept = spool.count("events_kept_total")
        spool.put(range(11, 21))
        wait_until(lambda: spool.count("events_kept_total") == kept + 10)
        assert spool.all_of("e1")[-10:] == list(range(11, 21))
        with contextlib.closing(sqlite3.connect(f"file:{tmp_path / 'events.sqlite'}?mode=ro", uri=True)) as reader:
            assert reader.execute("SELECT count(*) FROM events WHERE seq > 10").fetchone() == (10,)
    with Counted(tmp_path, "e2") as spool:
        assert spool.all_of("e1")[-10:] == list(range(11, 21))


def test_a_file_in_place_of_the_directory_costs_events_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "spool"
    with Counted(directory, "e1", try_again_seconds=0.0) as spool:
        spool.put(range(1, 11))
        wait_until(lambda: spool.count("events_kept_total") == 10)
        shutil.rmtree(directory)
        directory.write_text("")
        wait_until(lambda: "Not a directory" in caplog.text)
        spool.put(range(11, 21))
        wait_until(lambda: spool.count("events_not_kept_total", reason="error") == 10)
        directory.unlink()
        wait_until((directory / "events.sqlite").exists)
        spool.put(range(21, 31))
        assert spool.all_of("e1") == list(range(21, 31))


def test_a_directory_that_is_deleted_while_it_is_used_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "spool"
    with Counted(directory, "e1") as spool:
        spool.put(range(1, 11))
        wait_until(lambda: spool.count("events_kept_total") == 10)
        shutil.rmtree(directory.parent)
        wait_until((directory / "events.sqlite").exists)
        spool.put(range(11, 21))
        assert spool.all_of("e1") == list(range(11, 21))
        assert directory.stat().st_mode & 0o777 == 0o700
        with pytest.raises(SpoolError, match="another process uses it"):
            Counted(directory, "e2")


def test_a_lower_limit_makes_the_file_smaller(tmp_path: Path) -> None:
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 8001), size=1000)
        wait_until(lambda: spool.count("events_kept_total") == 8000)
    assert (tmp_path / "events.sqlite").stat().st_size > 8_000_000
    with Counted(tmp_path, "e2", max_bytes=2**22) as spool:
        wait_until(lambda: 0 < spool.count("used_bytes") <= 2**22)
        assert folder_bytes(tmp_path) <= 2**22
        seqs = spool.all_of("e1")
    assert seqs == list(range(seqs[0], 8001))
    assert len(seqs) > 2000


def test_a_program_that_reads_for_long_does_not_make_it_larger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Counted(tmp_path, max_bytes=2**22) as spool:
        spool.put(range(1, 11))
        wait_until(lambda: spool.count("events_kept_total") == 10)
        with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM events").fetchone() == (10,)
            seq = 10
            while not spool.count("events_not_kept_total", reason="disk_full"):
                spool.put(range(seq + 1, seq + 51), size=1000)
                seq += 50
                wait_until(lambda put=seq: kept_and_not_kept(spool) >= put)
                assert folder_bytes(tmp_path) <= 2**22
            assert spool.count("events_kept_total") > 100
            reader.execute("COMMIT")
        wait_until(lambda: time.monotonic() > spool.spool._try_again_at)
        kept = spool.count("events_kept_total")
        spool.put(range(seq + 1, seq + 11))
        wait_until(lambda: spool.count("events_kept_total") == kept + 10)
    assert "another program has been reading the database for too long" in caplog.text


def documented_queries() -> list[tuple[str, str]]:
    """The commands that docs/replay.md gives, and the query in each."""
    documentation = (TESTS.parent / "docs" / "replay.md").read_text()
    found = re.findall(r"^(sqlite3 -readonly \S+ \"([^\"]+)\")$", documentation, re.MULTILINE)
    assert len(found) == 3
    return found


def test_a_user_can_query_it_while_the_daemon_writes(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with Counted(tmp_path, "e1") as spool:
        for seq in range(1, 201):
            event = {"seq": seq, "stream": "a", "detections": [{"label": "person"}] * (seq % 3)}
            spool.spool.keep(TOPIC, seq, json.dumps(event).encode())
            if seq % 20:
                continue
            number = seq // 20
            spool.spool.keep("objects/a/", number, wire.encode(object_event("a", number, phase="end")))
            spool.spool.keep("alerts/a/", number, wire.encode(alert_event("a", number)))
            wait_until(lambda kept=seq + 2 * number: spool.count("events_kept_total") == kept)
            counts = [sum(number % 3 for number in range(1, seq + 1)), number, number]
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as reader:
                rows = [reader.execute(query).fetchall() for _, query in documented_queries()]
                names = ("person", "person", "at the door")
                assert rows == [[(name, count)] for name, count in zip(names, counts, strict=True)]
                newest = reader.execute("SELECT epoch, topic, seq, kept_at FROM events ORDER BY seq DESC").fetchone()
                assert newest[:3] == ("e1", TOPIC, seq)
                assert abs(newest[3] - time.time()) < PATIENCE_SECONDS
        if shutil.which("sqlite3"):
            said = ""
            for command, _ in documented_queries():
                words = [str(path) if word.endswith("events.sqlite") else word for word in shlex.split(command)]
                said += subprocess.run(
                    words, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
                ).stdout
            assert said == "person|201\nperson|10\nat the door|10\n"


# ---- segments of an earlier version ----


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    """What an earlier version wrote: three epochs, the last of which ended with a crash in the middle of a record."""
    folder = tmp_path / "segments"
    shutil.copytree(TESTS / "data" / "spool_segments", folder)
    for path in folder.iterdir():
        path.chmod(0o600)
    return folder


def check_converted(spool: Counted) -> None:
    assert spool.all_of("epoch-1") == list(range(1, 21))
    assert spool.all_of("epoch-1", topic="detections/b/") == list(range(1, 6))
    assert spool.all_of("epoch-1", topic="state/a/") == [1, 2]
    assert spool.all_of("epoch-2", topic="state/a/") == [1, 2]
    assert spool.all_of("epoch-3") == list(range(1, 7))
    end = spool.ask("epoch-1", 21)
    assert (end.next_epoch, end.end_is_known) == ("epoch-3", True)
    end = spool.ask("epoch-3", 7)
    assert (end.next_epoch, end.end_is_known) == ("now", False)


def test_segments_of_an_earlier_version_are_taken_over(segments: Path) -> None:
    with Counted(segments, "now", max_age_seconds=1e9) as spool:
        spool.put(range(1, 11))
        check_converted(spool)
        assert spool.all_of("now") == list(range(1, 11))
        assert not list(segments.glob("*.log"))
    with contextlib.closing(sqlite3.connect(segments / "events.sqlite")) as database:
        in_order = database.execute("SELECT DISTINCT epoch_id FROM records ORDER BY id").fetchall()
        assert in_order == sorted(in_order)
        ages = database.execute("SELECT kept_at FROM events WHERE epoch = 'epoch-1' AND topic = ?", (TOPIC,)).fetchall()
        assert ages == [(1_790_000_000.0 + seq,) for seq in range(1, 21)]
    with Counted(segments, "later", max_age_seconds=1e9) as spool:
        check_converted(spool)


CONVERTER = """
import sys
from pathlib import Path
from support.spools import Counted
with Counted(Path(sys.argv[1]), sys.argv[2], max_age_seconds=1e9) as spool:
    spool.put(range(1, 11))
    spool.ask("epoch-1", 1)
"""


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 8, 13])
def test_a_kill_while_segments_are_taken_over_loses_and_doubles_nothing(segments: Path, step: int) -> None:
    kill = f"""
import os, sys
from streamdet.delivery import event_store
steps = 0
def step(frame, kind, argument):
    global steps
    code = frame.f_code
    if code.co_filename == event_store.__file__ and code.co_name in ("_append", "_end_epoch", "convert_next"):
        steps += kind in ("call", "return")
        if steps > {2 * step}:
            os.kill(os.getpid(), 9)
import threading
threading.setprofile(step)
"""
    arguments = [sys.executable, "-c", kill + CONVERTER, str(segments), "killed"]
    done = subprocess.run(arguments, cwd=TESTS, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == -signal.SIGKILL
    with Counted(segments, "now", max_age_seconds=1e9) as spool:
        check_events_once = spool.all_of("epoch-1")
        assert check_events_once == list(range(1, 21))
        assert spool.all_of("epoch-3") == list(range(1, 7))
        end = spool.ask("epoch-1", 21)
        assert (end.next_epoch, end.end_is_known) == ("epoch-3", True)
        killed = spool.all_of("killed")
        assert killed == list(range(1, len(killed) + 1))
        assert not list(segments.glob("*.log"))
    with contextlib.closing(sqlite3.connect(segments / "events.sqlite")) as database:
        in_order = database.execute("SELECT DISTINCT epoch_id FROM records ORDER BY id").fetchall()
        assert in_order == sorted(in_order)


def test_segments_that_take_all_the_room_make_room_from_the_oldest_on(tmp_path: Path) -> None:
    for number in range(1, 17):
        records = [(number * 100 + count, payload_of(number * 100 + count, 500)) for count in range(100)]
        write_segment(tmp_path / f"{number:010d}.log", [("old", TOPIC, seq, payload) for seq, payload in records])
    assert folder_bytes(tmp_path) > 850_000
    with Counted(tmp_path, "now", max_bytes=2**20) as spool:
        seqs = spool.all_of("old")
        assert seqs == list(range(seqs[0], 1700))
        assert len(seqs) > 1000
        assert folder_bytes(tmp_path) <= 2**20


def write_segment(path: Path, records: list[tuple[str, str, int, bytes]]) -> None:
    with path.open("wb") as file:
        file.write(b"SDSPOOL1")
        for epoch, topic, seq, payload in records:
            names = topic.encode() + epoch.encode()
            body = struct.pack("<IQHH", len(payload), seq, len(topic), len(epoch)) + names + payload
            file.write(struct.pack("<I", zlib.crc32(body)) + body)
    path.chmod(0o600)


@pytest.mark.parametrize("end", [b"dear diary", b"[1]", b'{"detections/a/": "7"}', b'{"detections/a/": -1}', b"\xff"])
def test_an_end_in_a_segment_that_makes_no_sense_is_left_out(tmp_path: Path, end: bytes) -> None:
    records = [("e1", TOPIC, seq, payload_of(seq, 1)) for seq in (1, 2)]
    too_large = ("e1", TOPIC, 2**60, payload_of(3, 1))
    write_segment(tmp_path / "0000000001.log", [*records, ("e1", "", 0, end), too_large])
    with Counted(tmp_path, "e2") as spool:
        assert spool.all_of("e1") == [1, 2]
        answer = spool.ask("e1", 3)
        assert (answer.end_is_known, answer.next_epoch) == (False, "e2")


def test_a_record_with_a_wrong_bit_ends_a_segment(tmp_path: Path) -> None:
    path = tmp_path / "0000000001.log"
    write_segment(path, [("e1", TOPIC, seq, payload_of(seq, 1)) for seq in (1, 2, 3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with Counted(tmp_path, "e2") as spool:
        assert spool.all_of("e1") == [1, 2]


@pytest.mark.parametrize("garbage", [b"", b"SD", b"SDSPOOL1", b"SDSPOOL1" + b"\0" * 500, b"SDSPOOL1" + b"\xff" * 500])
def test_segments_without_a_sound_record_do_no_harm(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "0000000007.log").write_bytes(garbage)
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 4))
        assert spool.ask("e1", 1, 3).seqs == (1, 2, 3)


def test_nothing_is_touched_that_others_have_put_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    folder.mkdir()
    write_segment(folder / "0000000001.log", [("e1", TOPIC, seq, payload_of(seq, 1)) for seq in (1, 2, 3)])
    elsewhere.write_bytes((folder / "0000000001.log").read_bytes())
    before = elsewhere.read_bytes()
    (folder / "notes.log").write_bytes(b"mine")
    (folder / "\u0665.log").touch()  # a five in Arabic
    (folder / "0000000002.log").symlink_to(elsewhere)
    (folder / "0000000003.log").symlink_to(folder / "gone")
    os.mkfifo(folder / "0000000004.log")
    (folder / "0000000005.log").mkdir()
    with (folder / "0000000006.log").open("wb") as sparse:
        sparse.truncate(60 << 30)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "0000000007.log"))
    (folder / "0000000008.log").write_bytes(before)
    (folder / "0000000008.log").chmod(0o666)
    (folder / "0000000009.log").write_bytes(b"a letter")
    os.mkfifo(folder / "set-aside-7.sqlite")
    if os.geteuid() == 0:
        (folder / "0000000010.log").write_bytes(before)
        os.chown(folder / "0000000010.log", 65534, 65534)
    names = {path.name for path in folder.iterdir()}
    with Counted(folder, "e2", max_bytes=2**20) as spool:
        spool.put(range(1, 11))
        assert spool.all_of("e2") == list(range(1, 11))
        assert spool.all_of("e1") == [1, 2, 3]
        with pytest.raises(SpoolError, match="another process uses it"):
            Counted(folder)
    assert {path.name for path in folder.iterdir()} == names - {"0000000001.log"} | {"events.sqlite"}
    assert elsewhere.read_bytes() == before
    assert (folder / "0000000008.log").read_bytes() == before
    (said,) = [record.getMessage() for record in caplog.records]
    assert "0000000009.log is not read: it does not begin like a segment" in said


# ---- disks ----


def test_a_disk_that_hovers_at_full_fills_no_log_and_loses_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    append, is_full = EventStore.append, itertools.cycle([False, True])

    def hover(store: EventStore, records: Sequence[Record]) -> None:
        if next(is_full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(store, records)

    monkeypatch.setattr(EventStore, "append", hover)
    with Counted(tmp_path, try_again_seconds=0.0) as spool:
        for seq in range(1, 101):
            spool.put(range(seq, seq + 1))
            wait_until(lambda put=seq: kept_and_not_kept(spool) == put)
        assert spool.count("events_not_kept_total", reason="disk_full") == 50
        assert len(spool.all_of("e1")) == 50
    reported = [record.getMessage() for record in caplog.records]
    assert len(reported) == 3, reported
    assert "No space left on device" in reported[0]
    assert "again" in reported[1]
    # The first one stands in the first line.
    assert "(49 events were not kept since the last such line)" in reported[2]


@pytest.mark.root
@pytest.mark.package("util-linux")
def test_a_full_disk_costs_events_of_the_log_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from support.spools import Counted, full_disk;"
        "folder = Path(sys.argv[1]); (folder / 'ballast').write_bytes(bytes(1_000_000));"
        "spool = Counted(folder / 'spool').__enter__(); full_disk(spool, (folder / 'ballast').unlink);"
        "spool.__exit__(); print('well')"
    )
    run_on_small_disk(tmp_path, code)


def test_a_limit_on_files_counts_as_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from support.spools import Counted, full_disk;"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard));"
        "spool = Counted(Path(sys.argv[1])).__enter__();"
        "full_disk(spool, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)));"
        "spool.__exit__(); print('well')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=TESTS, timeout=100,
    )  # fmt: skip
    assert done.stdout.strip() == "well", done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_more_than_can_be_written_is_counted(tmp_path: Path) -> None:
    spool = Counted(tmp_path)
    spool.put(range(1, 20_011), size=1)
    assert spool.count("events_not_kept_total", reason="queue_full") == 10
    with spool:
        wait_until(lambda: spool.count("events_kept_total") == 20_000)


def test_one_directory_is_for_one_daemon(tmp_path: Path) -> None:
    with Counted(tmp_path), pytest.raises(SpoolError, match="another process uses it; give each its own"):
        Counted(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"cannot keep events in .*: Not a directory"):
        Counted(tmp_path / "file" / "spool")


def test_too_many_who_ask_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.delivery.spool._MAX_REQUESTS", 20)
    spool = Counted(tmp_path)
    answers: list[Replayed | Refused | Any] = []
    taken = [spool.spool.fetch(b"%d" % n, ReplayRequest(n, TOPIC, 1), answers.append) for n in range(21)]
    assert taken == [True] * 20 + [False]
    with spool:
        wait_until(lambda: len(answers) == 20)


def test_all_that_a_client_asks_is_answered_in_order_and_clients_take_turns(tmp_path: Path) -> None:
    spool = Counted(tmp_path)
    answers: list[tuple[str, int]] = []

    def ask(client: str, number: int) -> bool:
        request = ReplayRequest(number, f"detections/{number}/", 1)
        return spool.spool.fetch(client.encode(), request, lambda answer: answers.append((client, answer.id)))

    assert [ask("greedy", number) for number in range(1, 11)] == [True] * 8 + [False] * 2
    assert ask("greedy", 3), "asked again it keeps its place"
    assert [ask("modest", number) for number in (1, 2)] == [True, True]
    with spool:
        wait_until(lambda: len(answers) == 10)
        assert ask("greedy", 9), "there is room again"
        wait_until(lambda: len(answers) == 11)
    alternately = [("greedy", 1), ("modest", 1), ("greedy", 2), ("modest", 2)]
    assert answers == alternately + [("greedy", number) for number in range(3, 10)]


def test_a_request_repeated_with_another_end_is_answered_once_and_as_it_was_asked_last(tmp_path: Path) -> None:
    spool = Counted(tmp_path)
    spool.put(range(1, 11))
    answers: list[Any] = []
    for to_seq in (4, 7):
        assert spool.spool.fetch(b"me", ReplayRequest(1, TOPIC, 1, to_seq, "e1"), answers.append)
    with spool:
        assert spool.ask("e1", 9).seqs == (9, 10)
        wait_until(lambda: answers)
    assert [answer.seqs for answer in answers] == [(1, 2, 3, 4, 5, 6, 7)]


def test_reading_for_those_who_ask_takes_little_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Counted(tmp_path, burst_of_reading_seconds=0.001) as spool:
        spool.put(range(1, 6))
        wait_until(lambda: spool.count("events_kept_total") == 5)
        answer = spool.spool._store.answer

        def slow(request: ReplayRequest) -> Replayed:
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass
            return answer(request)

        monkeypatch.setattr(spool.spool._store, "answer", slow)
        began = time.monotonic()
        for _ in range(6):
            assert spool.ask("e1", 1, 3).seqs == (1, 2, 3)
        # Five pauses, each nineteen times as long as the reading before it.
        assert time.monotonic() - began > 0.8
        # Writing waits for none of them.
        spool.put(range(6, 10))
        wait_until(lambda: spool.count("events_kept_total") == 9)


def test_a_hundred_topics_are_healed_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.delivery.spool.Spool._end_epoch", lambda _: None)
    endpoint = f"ipc://{tmp_path}/events"
    streams = [f"s{number}" for number in range(100)]

    def put(publisher: Publisher, *seqs: int) -> None:
        for seq, stream in itertools.product(seqs, streams):
            publisher.put_detections(frame_of(stream, seq), [PERSON])

    @contextlib.contextmanager
    def publishing(epoch: str, where: str = endpoint) -> Iterator[Publisher]:
        replay = ReplayConfig(max_events=5)
        with (
            Counted(tmp_path / "spool", epoch) as spool,
            publisher_at(where, epoch, replay=replay, archive=spool.spool) as publisher,
        ):
            yield publisher
            wait_until(lambda: not publisher._pending and spool.spool._queue.empty())

    seen: dict[str, list[Any]] = {stream: [] for stream in streams}

    def take(item: object) -> None:
        assert isinstance(item, DetectionEvent | Restart), item
        seen[item.stream].append((item.epoch, item.seq) if isinstance(item, DetectionEvent) else item)

    times = RecoveryTimes(give_up_seconds=3.0, check_seconds=0.3, on_its_way_seconds=0.2)
    with subscribe(endpoint, kinds=["detections"], replay=True, recovery_times=times) as events:
        with publishing("e1") as publisher:
            put(publisher, 1)
            while not all(seen.values()):
                take(events.receive(PATIENCE_SECONDS))
        with publishing("e2", f"ipc://{tmp_path}/where-no-one-listens") as publisher:
            put(publisher, *range(1, 31))
        with publishing("e3") as publisher:
            last, due = 0, 0.0
            while not all(items[-1] == ("e3", last) for items in seen.values()):
                if last < 10 and time.monotonic() > due:
                    last, due = last + 1, time.monotonic() + 0.3
                    put(publisher, last)
                if (item := events.receive(0.05)) is not None:
                    take(item)
    for stream in streams:
        topic = f"detections/{stream}/"
        assert seen[stream] == [
            ("e1", 1),
            Restart(stream, topic, "e1", "e2", is_complete=False),
            *(("e2", seq) for seq in range(1, 31)),
            Restart(stream, topic, "e2", "e3", is_complete=False),
            *(("e3", seq) for seq in range(1, last + 1)),
        ]


def test_a_subscriber_gets_what_it_missed_over_a_restart(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    replay = ReplayConfig(max_events=5)

    def publish(epoch: str, last: int) -> None:
        with (
            Counted(tmp_path / "spool", epoch) as spool,
            publisher_at(
                f"ipc://{tmp_path}/where-no-one-listens", epoch, replay=replay, archive=spool.spool
            ) as publisher,
        ):
            for seq in range(1, last + 1):
                publisher.put_detections(frame_of("a", seq), [PERSON])

    times = RecoveryTimes(check_seconds=0.3, on_its_way_seconds=0.2)
    with subscribe(endpoint, kinds=["detections"], replay=True, recovery_times=times) as events:
        with (
            Counted(tmp_path / "spool", "e1") as spool,
            publisher_at(endpoint, "e1", replay=replay, archive=spool.spool) as publisher,
        ):
            publisher.put_detections(frame_of("a", 1), [PERSON])
            assert isinstance(events.receive(PATIENCE_SECONDS), DetectionEvent)
        seen: list[object] = []
        publish("e2", 600)
        with (
            Counted(tmp_path / "spool", "e3") as spool,
            publisher_at(endpoint, "e3", replay=replay, archive=spool.spool) as publisher,
        ):
            for seq in range(1, 51):
                publisher.put_detections(frame_of("a", seq), [PERSON])
            while not seen or seen[-1] != ("e3", 50):
                item = events.receive(PATIENCE_SECONDS)
                assert item is not None
                seen.append((item.epoch, item.seq) if isinstance(item, DetectionEvent) else item)
    assert seen == [
        Restart("a", TOPIC, "e1", "e2", is_complete=True),
        *(("e2", seq) for seq in range(1, 601)),
        Restart("a", TOPIC, "e2", "e3", is_complete=True),
        *(("e3", seq) for seq in range(1, 51)),
    ]

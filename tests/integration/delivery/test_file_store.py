"""Files in a directory of limited size: found again, deleted by size and age, lost one by one, read on request."""

from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streamdet.delivery import file_store
from streamdet.delivery.file_store import is_id, new_id
from streamdet.errors import StoreError
from streamdet.monitoring.trusted_clock import TrustedClock
from support.disks import run_on_small_disk
from support.paths import TESTS
from support.stores import Counted
from support.waiting import PATIENCE_SECONDS, wait_until

NOW = 1.8e9


def clock_at(seconds: float) -> TrustedClock:
    return TrustedClock(lambda: NOW + seconds, lambda: 50.0)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def old_file(directory: Path, seconds: float, content: bytes = b"old", stream: str = "cam") -> str:
    directory.mkdir(exist_ok=True)
    file_id = new_id(stream, NOW + seconds)
    (directory / f"{file_id}.jpg").write_bytes(content)
    return file_id


def test_what_is_kept_can_be_read_at_once_by_all_ways_and_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "pictures"
    with Counted(directory) as stored:
        file_id = stored.put(b"one")
        assert stored.store.read(file_id, PATIENCE_SECONDS) == b"one"
        assert stored.fetch(file_id) == b"one"
        stored.wait_for_stored(1)
        assert stored.store.read(file_id) == stored.fetch(file_id) == b"one"
        assert stored.count("stored_bytes") == 4096
    path = directory / f"{file_id}.jpg"
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_ids_sort_by_time_hold_the_stream_and_lead_nowhere_else(tmp_path: Path) -> None:
    ids = [new_id("front-door", NOW + step) for step in (0.0, 0.002, 1.5, 90_000)]
    assert ids == sorted(ids)
    assert all("-front-door-" in file_id and is_id(file_id) for file_id in ids)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with Counted(tmp_path / "pictures") as stored:
        outside = f"{ids[0][:20]}-../../secret", "../secret", "..", "", "secret", ids[0] + "\n", ids[0] + "/../x", "\0"
        for wrong in outside:
            assert not is_id(wrong)
            assert stored.store.read(wrong) is None
            assert stored.fetch(wrong) == "not_found"


def test_a_reader_waits_for_a_file_that_is_promised_until_it_comes_or_is_lost(tmp_path: Path) -> None:
    with Counted(tmp_path) as stored:
        coming, lost = stored.store.promise("cam"), stored.store.promise("cam")
        answers: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        assert stored.store.fetch(b"me", coming, answers.put)
        assert stored.fetch(new_id("cam", NOW)) == "not_found"  # waits for no other
        assert answers.empty()
        stored.store.keep(coming, b"here")
        assert answers.get(timeout=PATIENCE_SECONDS) == b"here"
        assert stored.store.fetch(b"me", lost, answers.put)
        stored.store.lose(lost, "busy")
        assert answers.get(timeout=PATIENCE_SECONDS) == "not_found"
        assert stored.dropped("busy") == 1
        assert stored.store.read(stored.store.promise("cam"), 0.01) is None


def test_ten_thousand_files_stay_within_the_limit_and_the_newest_are_kept(tmp_path: Path) -> None:
    with Counted(tmp_path, max_bytes=2000 * 4096) as stored:
        ids = []
        for number in range(10_000):
            ids.append(stored.put(b"%d" % number))
            if number % 100 == 99:
                stored.wait_for_stored(number + 1)
        assert stored.count("stored_bytes") == 2000 * 4096
        assert len(names_in(tmp_path)) == 2000
        assert stored.store.read(ids[-2001]) is None
        assert stored.store.read(ids[-2000]) == b"8000"
        assert stored.store.read(ids[-1]) == b"9999"


def test_after_a_kill_whole_files_are_found_and_leftovers_are_gone(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from support.stores import Counted;"
        "stored = Counted(Path(sys.argv[1])).__enter__();"
        "print(*(stored.put(b'%d' % n) for n in range(20)), flush=True);"
        "stored.wait_for_stored(20);"
        "stored.store.keep(stored.store.promise('cam'), lambda file: (file.write(b'half'), file.flush(),"
        " print('writing', flush=True), __import__('time').sleep(100)));"
        "stored.store.join()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=TESTS
    ) as child:
        assert child.stdout is not None
        ids = child.stdout.readline().split()
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
    assert len(names_in(tmp_path)) == 21
    with Counted(tmp_path) as stored:
        wait_until(lambda: stored.count("stored_bytes") == 20 * 4096)
        assert names_in(tmp_path) == sorted(f"{file_id}.jpg" for file_id in ids)
        assert stored.fetch(ids[7]) == b"7"


def test_what_is_not_its_own_is_left_alone_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = old_file(tmp_path, 0)
    empty = old_file(tmp_path, 1, b"")
    target = tmp_path.parent / f"{tmp_path.name}-target"
    target.write_bytes(b"of another")
    link, pipe, huge, shared = (new_id("cam", NOW - 1e8 + number) for number in range(4))
    (tmp_path / f"{link}.jpg").symlink_to(target)
    os.mkfifo(tmp_path / f"{pipe}.jpg")
    with (tmp_path / f"{huge}.jpg").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / f"{shared}.jpg").write_bytes(b"planted")
    (tmp_path / f"{shared}.jpg").chmod(0o666)
    (tmp_path / "holiday.jpg").write_bytes(b"beach")
    (tmp_path / ".bashrc.0123abcd.part").write_bytes(b"another program's")
    (tmp_path / f"{new_id('cam', NOW)}.jpg").mkdir()
    with Counted(tmp_path, max_bytes=4096, clock=clock_at(2)) as stored:
        wait_until(lambda: stored.count("stored_bytes") == 4096)
        assert [stored.fetch(file_id) for file_id in (link, pipe, huge)] == ["not_found"] * 3
        newest = stored.put(b"new")
        stored.wait_for_stored(1)
        assert stored.store.read(newest) == b"new"
    left = names_in(tmp_path)
    assert f"{own}.jpg" not in left
    assert f"{empty}.jpg" not in left
    assert len(left) == 8
    assert target.read_bytes() == b"of another"
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "7 files in it are not streamdet's pictures" in line]) == 1
    assert len(lines) == 1


def test_files_are_deleted_by_their_age(tmp_path: Path) -> None:
    ids = [old_file(tmp_path, seconds) for seconds in (-500, -101, -99)]
    with Counted(tmp_path, max_age_seconds=100, clock=clock_at(0)) as stored:
        wait_until(lambda: stored.count("stored_bytes") == 4096)
        assert [stored.store.read(file_id) for file_id in ids] == [None, None, b"old"]


def test_a_clock_that_jumped_deletes_nothing_for_its_age(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "streamdet")
    ids = [old_file(tmp_path, seconds) for seconds in (0, 1)]
    with Counted(tmp_path, max_age_seconds=100, clock=clock_at(86401)) as stored:
        wait_until(lambda: "24.0 hours ahead of the newest picture" in caplog.text)
        assert [stored.fetch(file_id) for file_id in ids] == [b"old", b"old"]


def test_files_from_a_clock_that_was_ahead_make_room_first_and_hold_up_no_others(tmp_path: Path) -> None:
    future = [old_file(tmp_path, 3e7 + number) for number in range(300)]
    old, recent = old_file(tmp_path, -1000), old_file(tmp_path, -1)
    clock = clock_at(0)
    clock.compare = lambda *_: None  # type: ignore[method-assign] # else it is not believed for an hour
    with Counted(tmp_path, max_age_seconds=100, max_bytes=302 * 4096, clock=clock) as stored:
        wait_until(lambda: stored.count("stored_bytes") == 301 * 4096)
        assert stored.store.read(old) is None
        for _ in range(2):
            stored.put(b"new")
        stored.wait_for_stored(2)
        assert stored.store.read(future[0]) is None
        assert stored.store.read(recent) == b"old"


@pytest.mark.root
@pytest.mark.package("util-linux")
def test_a_full_disk_costs_files_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from support.stores import Counted, full_disk;"
        "folder = Path(sys.argv[1]); (folder / 'ballast').write_bytes(bytes(1_000_000));"
        "stored = Counted(folder / 'pictures').__enter__(); full_disk(stored, (folder / 'ballast').unlink);"
        "stored.__exit__(); print('well')"
    )
    run_on_small_disk(tmp_path, code)


def test_a_slow_disk_delays_no_one_and_the_newest_files_win(tmp_path: Path) -> None:
    hangs, begun = threading.Event(), threading.Event()

    def slowly(file: object) -> None:
        begun.set()
        hangs.wait(PATIENCE_SECONDS)

    with Counted(tmp_path) as stored:
        stored.store.keep(new_id("cam", time.time()), slowly)
        assert begun.wait(PATIENCE_SECONDS)
        began = time.monotonic()
        ids = [stored.put(b"%d" % number) for number in range(1000)]
        assert time.monotonic() - began < 5
        lost = 1001 - file_store._MAX_WAITING_FILES
        assert stored.dropped("slow_disk") == lost
        assert stored.store.read(ids[-1]) == b"999"  # from memory
        assert stored.store.read(ids[0]) is None
        hangs.set()
        stored.wait_for_stored(1001 - lost)
        assert stored.store.read(ids[lost]) == b"%d" % lost


def test_what_waits_at_a_stop_is_written_but_not_for_long(tmp_path: Path) -> None:
    with Counted(tmp_path) as stored:
        ids = [stored.put(b"%d" % number) for number in range(200)]
    assert names_in(tmp_path) == sorted(f"{file_id}.jpg" for file_id in ids)
    with Counted(tmp_path) as stored:
        for _ in range(40):
            stored.store.keep(new_id("cam", time.time()), lambda _: time.sleep(0.1))
    assert stored.dropped("shutdown") > 10


def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    hangs, begun = threading.Event(), threading.Event()

    def slowly(_: object) -> None:
        begun.set()
        hangs.wait(PATIENCE_SECONDS)

    stored = Counted(tmp_path)
    stored.store.start()
    stored.store.keep(new_id("cam", time.time()), slowly)
    assert begun.wait(PATIENCE_SECONDS)
    began = time.monotonic()
    stored.store.stop()
    assert not stored.store.join()
    assert time.monotonic() - began < 4
    hangs.set()
    assert stored.store.join()


def test_a_file_that_fails_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: object) -> None:
        message = "no such codec"
        raise RuntimeError(message)

    with Counted(tmp_path, max_file_bytes=100) as stored:
        stored.store.keep(new_id("cam", time.time()), fails)
        good = stored.put(b"good")
        stored.put(bytes(101))
        wait_until(lambda: stored.dropped("disk_full") == 1)
        assert stored.store.read(good) == b"good"
        assert stored.dropped("error") == 1
    assert names_in(tmp_path) == [f"{good}.jpg"]
    assert "no such codec" in caplog.text


def test_a_directory_that_someone_deletes_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "pictures"
    with Counted(directory, max_bytes=2 * 4096) as stored:
        for _ in range(2):
            stored.put(b"gone")
        stored.wait_for_stored(2)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        ids = [stored.put(b"new") for _ in range(2)]
        stored.wait_for_stored(4)
        assert [stored.store.read(file_id) for file_id in ids] == [b"new", b"new"]


def test_a_folder_in_place_of_a_file_holds_up_no_others(tmp_path: Path) -> None:
    with Counted(tmp_path, max_bytes=2 * 4096) as stored:
        first, second = stored.put(b"one"), stored.put(b"two")
        stored.wait_for_stored(2)
        path = tmp_path / f"{first}.jpg"
        path.unlink()
        path.mkdir()
        open_files = len(names_in(Path("/proc/self/fd")))
        assert [stored.fetch(first) for _ in range(3)] == ["not_found"] * 3
        assert len(names_in(Path("/proc/self/fd"))) == open_files
        third = stored.put(b"three")
        stored.wait_for_stored(3)
        assert [stored.store.read(file_id) for file_id in (second, third)] == [b"two", b"three"]
        assert path.is_dir()


def test_one_client_cannot_take_all_requests(tmp_path: Path) -> None:
    stored = Counted(tmp_path)  # not started: nothing is answered
    ids = [new_id("cam", NOW + number) for number in range(20)]
    taken = [stored.store.fetch(b"greedy", file_id, lambda _: None) for file_id in ids]
    assert taken.count(True) == 16
    assert stored.store.fetch(b"greedy", ids[0], lambda _: None)  # again
    assert stored.store.fetch(b"other", ids[0], lambda _: None)
    stored.store.close()


def test_a_file_that_cannot_be_read_is_busy_and_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Counted(tmp_path) as stored:
        file_id = stored.put(b"one")
        stored.wait_for_stored(1)

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr("streamdet.delivery.file_store.FileStore._read", broken)
        assert stored.fetch(file_id) == "busy"


def test_a_directory_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot keep pictures in .*/file/pictures: Not a directory"):
        Counted(tmp_path / "file" / "pictures")
    with (
        Counted(tmp_path / "pictures"),
        pytest.raises(StoreError, match="another process uses it; give each its own"),
    ):
        Counted(tmp_path / "pictures")
    Counted(tmp_path / "pictures").store.close()

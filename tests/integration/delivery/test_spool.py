from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdet import DetectionEvent, Restart, subscribe
from streamdet.config import ReplayConfig
from streamdet.delivery.publisher import Publisher
from streamdet.delivery.segment import MAGIC, encode_record
from streamdet.delivery.trusted_clock import TrustedClock
from streamdet.errors import SpoolError
from streamdet.wire.replay import Refused, Replayed, ReplayRequest
from support.paths import TESTS
from support.publishing import PERSON, frame_of, publisher_at
from support.spools import TOPIC, Counted, kept_and_not_kept, payload_of
from support.waiting import wait_until

PATIENCE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _checks_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.client.recovery._CHECK_SECONDS", 0.3)
    monkeypatch.setattr("streamdet.client.recovery._ON_ITS_WAY_SECONDS", 0.2)


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
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_large_answer_comes_in_parts(tmp_path: Path) -> None:
    with Counted(tmp_path) as spool:
        spool.put(range(1, 41), size=100_000)
        answer = spool.ask("e1", 1)
        assert 1 < len(answer.events) < 40
        assert answer.more
        assert spool.all_of("e1") == list(range(1, 41))


def test_it_stays_within_its_bounds_and_keeps_the_newest(tmp_path: Path) -> None:
    with Counted(tmp_path, max_bytes=2**20) as spool:
        for first in range(1, 5001, 100):
            spool.put(range(first, first + 100), size=1000)
            wait_until(lambda count=first + 99: spool.count("events_kept_total") >= count)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2**20
        seqs = spool.all_of("e1")
    assert seqs[-1] == 5000
    assert seqs == list(range(seqs[0], 5001))
    assert 500 < len(seqs) < 1050


def published(seq: int, at: float) -> bytes:
    return json.dumps({"seq": seq, "published_at": at}).encode()


def test_old_events_go_by_what_stands_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("streamdet.delivery.trusted_clock._DISTRUST_SECONDS", 0.0)
    now = time.time()
    for epoch, at in (("e1", now - 7200), ("e2", now - 60)):
        with Counted(tmp_path, epoch) as spool:
            spool.spool.keep(TOPIC, 1, published(1, at))
    os.utime(tmp_path / "0000000002.log", (1, 1))
    with Counted(tmp_path, "e3", max_age_seconds=3600) as spool:
        assert spool.all_of("e2") == [1]
        assert spool.ask("e1", 1).seqs == ()
    assert [path.name for path in tmp_path.glob("*.log")] == ["0000000002.log"]
    assert caplog.text.count("deleted 1 files") == 1


@pytest.mark.parametrize("segments", [1, 3])
def test_a_start_with_a_clock_that_is_wrong_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, segments: int
) -> None:
    for number in range(segments):
        with Counted(tmp_path, f"e{number}") as spool:
            spool.spool.keep(TOPIC, 1, published(1, time.time()))
    ahead = time.time() + 2 * 86400
    monkeypatch.setattr("streamdet.delivery.spool._TIDY_SECONDS", 0.0)
    monkeypatch.setattr(
        "streamdet.delivery.trusted_clock.TrustedClock.__init__.__defaults__", (lambda: ahead, time.monotonic)
    )
    with Counted(tmp_path, "next", max_age_seconds=3600) as spool:
        spool.put(range(1, 4))
        assert [spool.all_of(f"e{number}") for number in range(segments)] == [[1]] * segments
    assert caplog.text.count("the clock is 2.0 days ahead of the newest event") == 1
    assert f"{segments} files look older than max_age_seconds" in caplog.text


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


@pytest.mark.parametrize("torn_bytes", [0, 1, 10, 60])
def test_a_torn_record_at_the_end_is_cut_off_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, torn_bytes: int
) -> None:
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 4))
        wait_until(lambda: spool.count("events_kept_total") == 3)
        copy = tmp_path / "torn"
        shutil.copy(tmp_path / "0000000001.log", copy)
    whole = copy.read_bytes()
    # Or it is there, and one bit is wrong.
    damaged = whole[:-torn_bytes] if torn_bytes else whole[:-1] + bytes([whole[-1] ^ 1])
    (tmp_path / "0000000001.log").write_bytes(damaged)
    copy.unlink()
    with Counted(tmp_path, "e2") as spool:
        assert spool.all_of("e1") == [1, 2]
    assert "no sound record" in caplog.text
    # Eight bytes stand before the three records, which are all of one size.
    assert (tmp_path / "0000000001.log").stat().st_size == 8 + (len(whole) - 8) // 3 * 2


@pytest.mark.parametrize(
    "garbage", [b"", b"SD", b"x" * 1000, b"SDSPOOL1", b"SDSPOOL1" + b"\0" * 500, b"SDSPOOL1" + b"\xff" * 500]
)
def test_files_that_are_no_segments_do_no_harm(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "0000000007.log").write_bytes(garbage)
    (tmp_path / "notes.log").write_bytes(b"mine")
    with Counted(tmp_path, "e1") as spool:
        spool.put(range(1, 4))
        assert spool.ask("e1", 1, 3).seqs == (1, 2, 3)
    assert (tmp_path / "notes.log").read_bytes() == b"mine"


def test_nothing_is_touched_that_others_have_put_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    with Counted(folder, "e1") as spool:
        spool.put(range(1, 4))
    elsewhere.write_bytes((folder / "0000000001.log").read_bytes()[:-3])
    before = elsewhere.read_bytes()
    (folder / "5.log").write_bytes(b"mine")
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
    (folder / "lock").unlink()
    (folder / "lock").symlink_to(tmp_path / "made-by-no-one")
    if os.geteuid() == 0:
        (folder / "0000000010.log").write_bytes(before)
        os.chown(folder / "0000000010.log", 65534, 65534)
    names = {path.name for path in folder.iterdir()}
    with Counted(folder, "e2", max_bytes=2**20) as spool:
        spool.put(range(1, 11))
        assert spool.all_of("e2") == list(range(1, 11))
        assert spool.all_of("e1") == [1, 2, 3]
        with pytest.raises(SpoolError, match="another daemon uses it"):
            Counted(folder)
    # The first number that is free after its own.
    assert {path.name for path in folder.iterdir()} - names == {"0000000010.log" if os.geteuid() else "0000000011.log"}
    assert names <= {path.name for path in folder.iterdir()}
    assert elsewhere.read_bytes() == before
    assert (folder / "0000000008.log").read_bytes() == before
    assert (folder / "0000000009.log").read_bytes() == b"a letter"
    assert not (tmp_path / "made-by-no-one").exists()
    told = [record.getMessage() for record in caplog.records if "left alone" in record.getMessage()]
    assert len(told) == 4  # the lock, twice, the directory, and the letter once it is read


def test_a_segment_that_is_exchanged_while_it_is_used_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in ("e1", "e2"):
        with Counted(tmp_path, epoch) as spool:
            spool.put(range(1, 4))
    with Counted(tmp_path, "e3") as spool:
        spool.put(range(1, 4))
        assert spool.all_of("e2") == [1, 2, 3]
        (tmp_path / "0000000001.log").unlink()
        os.mkfifo(tmp_path / "0000000001.log")
        (tmp_path / "0000000002.log").unlink()
        answer = spool.ask("e1", 1)
        assert (answer.seqs, answer.next_seq, answer.next_epoch) == ((), 1, "e3")
        assert spool.ask("e2", 1).seqs == ()
        assert spool.all_of("e3") == [1, 2, 3]
    assert caplog.text.count("is left alone") == 2


@pytest.mark.parametrize("end", [b"dear diary", b"[1]", b'{"detections/a/": "7"}', b'{"detections/a/": -1}', b"\xff"])
def test_an_end_that_makes_no_sense_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, end: bytes) -> None:
    records = [encode_record("e1", TOPIC, seq, payload_of(seq, 1)) for seq in (1, 2)]
    too_large = encode_record("e1", TOPIC, 2**60, payload_of(3, 1))
    path = tmp_path / "0000000001.log"
    path.write_bytes(b"".join([MAGIC, *records, encode_record("e1", "", 0, end), too_large]))
    with Counted(tmp_path, "e2") as spool:
        assert spool.all_of("e1") == [1, 2]
        answer = spool.ask("e1", 3)
        assert (answer.end_is_known, answer.next_epoch) == (False, "e2")
    assert "makes no sense" in caplog.text
    assert "no sound record" in caplog.text


def test_a_disk_that_hovers_at_full_fills_no_log_and_loses_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("streamdet.delivery.spool._TRY_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr("streamdet.monitoring.log.QUIET_SECONDS", 1e9)
    write, is_full = os.write, itertools.cycle([False, True])

    def hover(file: int, data: memoryview | bytes) -> int:
        if (
            len(data) > len(MAGIC)
            and Path(f"/proc/self/fd/{file}").readlink().is_relative_to(tmp_path)
            and next(is_full)
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", hover)
    with Counted(tmp_path) as spool:
        for seq in range(1, 101):
            spool.put(range(seq, seq + 1))
            wait_until(lambda put=seq: kept_and_not_kept(spool) == put)
        assert spool.count("events_not_kept_total", reason="disk_full") == 50
        assert len(spool.all_of("e1")) == 50
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3, told
    assert "No space left on device" in told[0]
    assert "again" in told[1]
    # The first one stands in the first line.
    assert "(49 events were not kept since the last such line)" in told[2]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount")
def test_a_full_disk_costs_events_of_the_log_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from support.spools import Counted, full_disk;"
        "folder = Path(sys.argv[1]); (folder / 'ballast').write_bytes(bytes(1_000_000));"
        "spool = Counted(folder / 'spool').__enter__(); full_disk(spool, (folder / 'ballast').unlink);"
        "spool.__exit__(); print('well')"
    )
    mount = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, code],
        capture_output=True, text=True, check=False, cwd=TESTS, timeout=100,
    )  # fmt: skip
    if "mount:" in done.stderr and not os.environ.get("STREAMDET_REQUIRE_PACKAGES"):
        pytest.skip("nothing can be mounted here")
    assert done.stdout.strip() == "well", done.stderr


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
    with Counted(tmp_path), pytest.raises(SpoolError, match="another daemon uses it; give each its own"):
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
    monkeypatch.setattr("streamdet.delivery.spool._BURST_OF_READING_SECONDS", 0.001)
    with Counted(tmp_path) as spool:
        spool.put(range(1, 6))
        wait_until(lambda: spool.count("events_kept_total") == 5)
        answer = spool.spool._segments.answer

        def slow(request: ReplayRequest) -> Replayed:
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass
            return answer(request)

        monkeypatch.setattr(spool.spool._segments, "answer", slow)
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
    monkeypatch.setattr("streamdet.client.recovery._GIVE_UP_SECONDS", 3.0)
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
            wait_until(lambda: not publisher._pending and not spool.spool._queue)

    seen: dict[str, list[Any]] = {stream: [] for stream in streams}

    def take(item: object) -> None:
        assert isinstance(item, DetectionEvent | Restart), item
        seen[item.stream].append((item.epoch, item.seq) if isinstance(item, DetectionEvent) else item)

    with subscribe(endpoint, kinds=["detections"], replay=True) as events:
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

    with subscribe(endpoint, kinds=["detections"], replay=True) as events:
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

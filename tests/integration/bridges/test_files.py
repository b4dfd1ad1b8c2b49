"""The files of a recording: that readers see all of it or nothing, and what a fault at any moment leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from pyarrow import parquet

from streamdet.bridges.files.recording import Recording
from streamdet.bridges.files.retention import Retention
from streamdet.bridges.files.tables import TABLES, Buffer, escaped, unescaped
from streamdet.bridges.process import BridgeError
from streamdet.client import Gap, Restart
from streamdet.config.files import FileFormat
from streamdet.monitoring.trusted_clock import TrustedClock
from streamdet.types import (
    Crossing,
    Detection,
    DetectionEvent,
    EndReason,
    FrameInfo,
    Reason,
    State,
    StateEvent,
    ZoneChange,
    ZoneVisit,
)
from streamdet.wire import Event
from support.disks import run_on_small_disk
from support.occurring import alert_event, object_event
from support.paths import ROOT, TESTS
from support.publishing import publisher_at, status_of
from support.recordings import REPLAY, publish, recorded
from support.waiting import wait_until

AT = 1760000000.0  # 2025-10-09 08:53:20
DAY = 86400.0
EPOCH = "6b0f6c1e9a3d4c55"
STRANGE = "côte d'or=1 #50%"


def detection_event(seq: int, found: int = 1, at: float = AT, stream: str = "yard") -> DetectionEvent:
    detections = tuple(
        Detection("person", 0.9731, (100.25, 20.5, 180.75, 420.0), number + 1 if number else None, ("bay",) * number)
        for number in range(found)
    )
    crossings = (Crossing("gate", "in", 3, "person"),) if seq == 1 else ()
    frame = FrameInfo(seq + 10, None if seq == 2 else seq / 25, at + seq, "daemon", 1920, 1080)
    return DetectionEvent(stream, EPOCH, seq, at + seq + 0.125, frame, detections, crossings)


class Recorded:
    """A recording, and what is in its files."""

    def __init__(self, folder: Path, *formats: FileFormat, clock: TrustedClock | None = None, **limits: Any) -> None:
        self.folder = folder
        limits = {"max_bytes": 2**40, "max_age_seconds": 400 * DAY, **limits}
        self.recording = Recording(folder, formats or ("parquet",), "auto", Retention(folder, clock=clock, **limits))
        self.recording.open()

    def add(self, events: Iterable[Event], upto: int | None = None) -> None:
        """Writes events, and finishes the files if it is said how far they reach."""
        buffer = Buffer()
        for event in events:
            assert buffer.add(event)  # type: ignore[arg-type] # no previews
        self.recording.write(buffer.take(), None if upto is None else {"detections/yard/": (EPOCH, upto)})

    def names(self, pattern: str = "*/*/*/*") -> list[str]:
        """The files that are there, without hidden ones."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))
        return sorted(name for name in found if not name.rpartition("/")[2].startswith("."))

    def hidden(self) -> list[Path]:
        return sorted(self.folder.glob("*/*/*/.*"))

    def rows(self, table: str) -> list[dict[str, Any]]:
        """As DuckDB reads them."""
        columns = ", ".join(column.name for column in TABLES[table])  # type: ignore[index]
        text = f"SELECT stream, date::text AS date, {columns} FROM {self.source(table)} ORDER BY ALL"  # noqa: S608
        with duckdb.connect() as database:
            database.execute("SET TimeZone = 'UTC'")
            found = database.execute(text)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def source(self, table: str, suffix: str = ".parquet") -> str:
        reads = "read_parquet" if suffix == ".parquet" else "read_json"
        types = "hive_types = {'date': DATE, 'stream': VARCHAR}"
        return f"{reads}('{self.folder}/{table}/*/*/*{suffix}', hive_partitioning = true, {types})"

    def seqs(self) -> list[int]:
        return sorted(row["seq"] for row in self.rows("frames"))


def everything() -> Buffer:
    """Each kind of event, of three streams."""
    buffer = Buffer()
    for stream in ("yard", "007", STRANGE):
        visits = (ZoneVisit("bay", 2.0, inside=True),)
        ended = object_event(
            stream, 2, phase="end", reason=EndReason.LOST, path=((0.1, 0.2, 0.0), (0.3, 0.4, 1.5)), zones=visits,
            changes=(ZoneChange("enter", "bay", 0.0),), crossings=(Crossing("gate", "out", 1, "person"),),
        )  # fmt: skip
        down = StateEvent(stream, EPOCH, 2, AT, State.DOWN, Reason.TIMEOUT, "no answer", AT - 5)
        events = [*(detection_event(seq, seq % 3, stream=stream) for seq in range(1, 4)), object_event(stream), ended]
        for event in (
            *events,
            alert_event(stream),
            alert_event(stream, 2, phase="cleared", label=None, box=None),
            alert_event(stream, 3, clip_id="c-1", clip_seconds=(5.0, 10.0)),
            alert_event(stream, 4, clip_seconds=(5.0, 0.0), clip_missing="codec"),
            down,
        ):
            assert buffer.add(event)
        buffer.add_gap(Gap(stream, f"detections/{stream}/", 5, 7), EPOCH, AT)
        buffer.add_gap(Restart(stream, f"state/{stream}/", EPOCH, "next", is_complete=False), EPOCH, AT + 1)
    return buffer


def test_each_kind_of_event_is_read_back_from_both_formats_and_by_each_reader(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "parquet", "jsonl")
    recorded.recording.write(everything().take(), {})
    assert {row["stream"] for row in recorded.rows("frames")} == {"yard", "007", STRANGE}
    first, second, third = (row for row in recorded.rows("frames") if row["stream"] == "yard")
    assert (first["date"], first["captured_at"].timestamp(), first["published_at"].timestamp()) == (
        "2025-10-09", AT + 1, AT + 1.125,
    )  # fmt: skip
    assert first["crossings"] == [{"line": "gate", "direction": "in", "track_id": 3, "label": "person"}]
    assert (second["pts_seconds"], third["pts_seconds"]) == (None, 0.12)
    assert [first["detections"], second["detections"], third["detections"]] == [1, 2, 0]
    detections = [row for row in recorded.rows("detections") if row["stream"] == STRANGE]
    assert [(row["seq"], row["track_id"], row["zones"]) for row in detections] == [
        (1, None, []), (2, 2, ["bay"]), (2, None, []),
    ]  # fmt: skip
    assert {(row["label"], row["score"], row["x1"], row["y2"]) for row in detections} == {
        ("person", 0.9731, 100.25, 420.0)
    }
    _, ended = (row for row in recorded.rows("objects") if row["stream"] == "007")
    assert (ended["phase"], ended["reason"], ended["zones"][0]["inside"]) == ("end", "lost", True)
    assert ended["path"] == [{"x": 0.1, "y": 0.2, "seconds": 0.0}, {"x": 0.3, "y": 0.4, "seconds": 1.5}]
    assert ended["changes"] == [{"change": "enter", "zone": "bay", "seconds": 0.0}]
    raised, cleared, *clips = (row for row in recorded.rows("alerts") if row["stream"] == "yard")
    assert (raised["phase"], raised["object_ids"], raised["x2"]) == ("raised", ["e1-1"], 5.0)
    assert (cleared["label"], cleared["x1"], cleared["count"]) == (None, None, None)
    of_clips = ("clip_id", "clip_before_seconds", "clip_after_seconds", "clip_missing")
    assert [tuple(row[name] for name in of_clips) for row in (raised, *clips)] == [
        (None, None, None, None), ("c-1", 5.0, 10.0, None), (None, 5.0, 0.0, "codec"),
    ]  # fmt: skip
    assert [(row["state"], row["reason"]) for row in recorded.rows("states")] == [("down", "timeout")] * 3
    gaps = [row for row in recorded.rows("gaps") if row["stream"] == "yard"]
    assert [(row["kind"], row["first_seq"], row["count"], row["reason"]) for row in gaps] == [
        ("detections", 5, 7, "not_kept"), ("states", None, None, "crash"),
    ]  # fmt: skip
    with duckdb.connect() as database:
        for table, columns in TABLES.items():
            # A list without any value, or a null, has no type in JSON.
            names = ", ".join(f"{column.name}::text" for column in columns)
            both = [
                database.execute(f"SELECT {names}, stream, date FROM {recorded.source(table, suffix)} ORDER BY ALL")  # noqa: S608
                .fetchall()
                for suffix in (".parquet", ".jsonl.gz")
            ]  # fmt: skip
            assert both[0] == both[1]
    frame = pd.read_parquet(next(tmp_path.glob("detections/*/stream=yard/*.parquet")))
    assert str(frame.captured_at.dtype) == "datetime64[us, UTC]"
    assert frame.x1.tolist() == [100.25] * 3
    lines = pd.read_json(next(tmp_path.glob("frames/*/stream=yard/*.jsonl.gz")), lines=True)
    assert lines.seq.tolist() == [1, 2, 3]


def test_pandas_reads_a_whole_table_with_its_streams_and_dates(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recording.write(everything().take(), {})
    recorded.recording.write(everything().take())  # not finished
    assert recorded.hidden()
    frames = pd.read_parquet(tmp_path / "frames")
    assert len(frames) == 9
    assert set(frames.stream.astype(str)) >= {"yard", STRANGE}
    assert set(frames.date.astype(str)) == {"2025-10-09"}


def test_files_with_fewer_columns_are_read_together_with_newer_ones(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recording.write(everything().take(), {})
    (newer,) = tmp_path.glob("alerts/*/stream=yard/*.parquet")
    older = tmp_path / "alerts/date=2020-01-01/stream=yard" / newer.name
    older.parent.mkdir(parents=True)
    columns = parquet.ParquetFile(newer).schema_arrow.names[:-3]
    parquet.write_table(parquet.ParquetFile(newer).read(columns), older)
    with duckdb.connect() as database:
        source = recorded.source("alerts").replace("hive_types", "union_by_name = true, hive_types")
        text = f"SELECT clip_missing, count(*) FROM {source} WHERE stream = 'yard' GROUP BY ALL ORDER BY 2"  # noqa: S608
        assert database.execute(text).fetchall() == [("codec", 1), (None, 7)]
    alerts = pd.read_parquet(tmp_path / "alerts")
    assert len(alerts) == 16
    assert [*alerts.columns] == [*columns, "date", "stream"]


@pytest.mark.parametrize("name", ["yard", "..", STRANGE, "a/b", "%41", "日本", "stream=x", "a\\b", "", "*?[x]"])
def test_names_of_streams_come_back_from_the_names_of_folders(name: str) -> None:
    text = escaped(name)
    assert unescaped(text) == name
    assert text.isascii()
    assert not set(text) & set("/\\*?[]= \0")


def test_a_name_that_fits_no_file_system_is_refused_and_others_go_on() -> None:
    buffer = Buffer()
    assert not buffer.add(detection_event(1, stream="日" * 128))
    assert buffer.add(detection_event(1, stream="日" * 20))
    assert len(buffer.take()) == 2


def test_readers_see_only_what_is_finished_and_the_next_start_removes_the_rest(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "parquet", "jsonl")
    recorded.add([detection_event(1)], upto=1)
    recorded.add([detection_event(2), detection_event(3)])
    assert recorded.seqs() == [1]
    assert recorded.hidden()
    recorded.recording.close()
    again = Recorded(tmp_path, "parquet", "jsonl")
    assert again.recording.position == {"detections/yard/": (EPOCH, 1)}
    assert again.hidden() == []
    again.add([detection_event(2), detection_event(3)])
    again.add([detection_event(4)], upto=4)
    assert again.seqs() == [1, 2, 3, 4]
    assert len(again.names("frames/*/*/*.parquet")) == 2
    with again.folder.joinpath(".streamdet.json").open() as file:
        assert json.load(file)["position"] == {"detections/yard/": [EPOCH, 4]}


def test_a_kill_after_the_position_was_kept_doubles_nothing(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.add([detection_event(1), detection_event(2)], upto=2)
    for name in recorded.names():  # as before they got their names
        final = tmp_path / name
        final.replace(final.with_name(f".{final.name}.part"))
    recorded.recording.close()
    again = Recorded(tmp_path)
    assert again.recording.position == {"detections/yard/": (EPOCH, 2)}
    assert again.seqs() == [1, 2]
    again.recording.close()
    Recorded(tmp_path)
    assert again.seqs() == [1, 2]


def test_an_error_gives_up_what_was_not_finished_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    recorded = Recorded(folder)
    recorded.add([detection_event(1)], upto=1)
    recorded.add([detection_event(2)])
    (hidden,) = [path for path in recorded.hidden() if "frames" in str(path)]
    hidden.unlink()  # someone has deleted it
    hidden.parent.joinpath(hidden.name).mkdir()  # and nothing can be written there
    with pytest.raises(OSError, match=r"rows\.part"):
        recorded.add([detection_event(3)])
    hidden.rmdir()
    recorded.recording.open()
    assert recorded.recording.position == {"detections/yard/": (EPOCH, 1)}
    recorded.add([detection_event(2), detection_event(3)], upto=3)
    assert recorded.seqs() == [1, 2, 3]


def test_a_directory_that_is_deleted_is_made_again_and_the_position_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    recorded = Recorded(folder)
    recorded.add([detection_event(1)], upto=1)
    recorded.add([detection_event(2)])
    folder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="files"):
        recorded.add([], upto=2)
    recorded.recording.open()
    assert recorded.recording.position == {"detections/yard/": (EPOCH, 1)}
    recorded.add([detection_event(2)], upto=2)
    assert recorded.seqs() == [2]


def test_a_second_bridge_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    Recorded(tmp_path)
    with pytest.raises(BridgeError, match="another bridge uses it; give each its own"):
        Recorded(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"position": {"a": 1}, "finished": []}', '{"position": {}, "finished": ["../../etc/passwd"]}'],
)
def test_a_position_that_cannot_be_read_is_not_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / ".streamdet.json").write_text(text)
    with pytest.raises(BridgeError, match="holds no position"):
        Recorded(tmp_path)


def test_dates_are_those_of_frames_also_of_late_ones_and_of_wrong_clocks(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    midnight = AT - AT % DAY + DAY
    times = [midnight - 1.5, midnight - 0.5, midnight - 3 * DAY, 0.0, 1e15]
    recorded.add([detection_event(1, at=at - 1) for at in times], upto=5)
    assert sorted({row["date"] for row in recorded.rows("detections")}) == [
        "1970-01-01", "2025-10-07", "2025-10-09", "9999-12-31",
    ]  # fmt: skip
    for row in recorded.rows("frames"):
        assert row["captured_at"].date().isoformat() == row["date"] or row["date"] == "9999-12-31"
    (name,) = recorded.names("frames/date=2025-10-07/*/*")
    assert name.endswith(f"/20251007T000000.000Z-{EPOCH}-1.parquet")


def test_names_sort_by_time(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    for seq in (1, 2, 11):
        recorded.add([detection_event(seq)], upto=seq)
    names = recorded.names("frames/*/*/*")
    assert [parquet.read_table(tmp_path / name)["seq"].to_pylist() for name in names] == [[1], [2], [11]]


def age(folder: Path, pattern: str, at: float) -> None:
    for path in folder.glob(pattern):
        os.utime(path, (at, at))


def test_the_oldest_are_deleted_when_they_are_too_many(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, max_bytes=6 * 4096, clock=TrustedClock(lambda: AT + DAY))
    future = AT + 5000 * DAY
    for seq, at in enumerate([future, AT - 2 * DAY, AT - DAY, AT - DAY + 60, AT], start=1):
        recorded.add([detection_event(seq, at=at - seq)], upto=seq)
        assert len(recorded.names()) <= 6
    assert {row["seq"] for row in recorded.rows("frames")} == {3, 4, 5}
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["date=2025-10-08", "date=2025-10-09"]


def test_old_files_are_deleted_by_their_dates_and_the_time_they_were_written(tmp_path: Path) -> None:
    wall, steady = [AT], [0.0]
    clock = TrustedClock(lambda: wall[0], lambda: steady[0])
    recorded = Recorded(tmp_path, max_age_seconds=10 * DAY, clock=clock)
    days = (0, 9, 12, 15, 20_000)
    for seq, day in enumerate(days, start=1):
        recorded.add([detection_event(seq, at=AT - day * DAY - seq)], upto=seq)
    age(tmp_path, "*/*/*/*", AT - 9 * DAY)
    age(tmp_path, "*/date=2025-09-24/*/*", AT - 15 * DAY)  # 15 days old, and written then
    (tmp_path / "frames" / "date=2025-09-24" / "stream=yard" / "notes.txt").write_text("mine")
    recorded.recording.write([], {"a": (EPOCH, 1)})
    assert recorded.seqs() == [1, 2, 3, 5]  # the one of a camera in 1971 was written nine days ago
    assert (tmp_path / "frames/date=2025-09-24/stream=yard/notes.txt").exists()
    # The clock is set to a wrong year: nothing is deleted for it.
    wall[0] += 9000 * DAY
    recorded.recording.write([], {"a": (EPOCH, 2)})
    assert recorded.seqs() == [1, 2, 3, 5]
    steady[0] += 4000.0
    wall[0] += 4000.0
    recorded.recording.write([], {"a": (EPOCH, 3)})
    assert recorded.names() == ["frames/date=2025-09-24/stream=yard/notes.txt"]


def test_jsonl_needs_no_pyarrow(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from streamdet.bridges.files.recording import Recording\n"
        "from streamdet.bridges.files.retention import Retention\n"
        "from streamdet.bridges.files.tables import Buffer\n"
        "from support.occurring import object_event\n"
        "folder, buffer = Path(sys.argv[1]), Buffer()\n"
        "recording = Recording(folder, ('jsonl',), 'auto', Retention(folder, 2**30, 1e9))\n"
        "recording.open(); buffer.add(object_event()); recording.write(buffer.take(), {})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=TESTS, timeout=100)
    assert len(list(tmp_path.glob("objects/*/*/*.jsonl.gz"))) == 1


@pytest.mark.parametrize(("compression", "suffix"), [("none", ".jsonl"), ("zstd", ".jsonl.zst"), ("gzip", ".jsonl.gz")])
def test_jsonl_that_is_written_in_parts_is_one_file(tmp_path: Path, compression: str, suffix: str) -> None:
    recording = Recording(tmp_path, ("jsonl",), compression, Retention(tmp_path, 2**40, DAY))
    recording.open()
    for seq in range(1, 4):
        buffer = Buffer()
        buffer.add(detection_event(seq))
        recording.write(buffer.take(), {} if seq == 3 else None)
    (path,) = tmp_path.glob(f"frames/*/*/*{suffix}")
    with duckdb.connect() as database:
        assert database.execute(f"SELECT seq FROM read_json('{path}')").fetchall() == [(1,), (2,), (3,)]  # noqa: S608


def test_a_new_recording_begins_now_or_with_what_is_kept_and_goes_on_where_it_was(tmp_path: Path) -> None:
    with publisher_at(replay=REPLAY) as publisher:
        publish(publisher, range(1, 4))
        with recorded(tmp_path / "past", publisher, from_start=True) as past:
            wait_until(lambda: past.seqs() == [1, 2, 3], "what is kept")
        with recorded(tmp_path / "now", publisher) as now:
            wait_until(lambda: now.worker._recording.position, "the daemon has answered")
            publish(publisher, range(4, 6))
            wait_until(lambda: now.seqs() == [4, 5], "what comes")
        publish(publisher, range(6, 7))
        for folder, expected in (("past", [1, 2, 3, 4, 5, 6]), ("now", [4, 5, 6])):
            with recorded(tmp_path / folder, publisher, from_start=True) as again:
                wait_until(lambda again=again, expected=expected: again.seqs() == expected, "the rest")


def test_only_chosen_streams_and_kinds_are_recorded(tmp_path: Path) -> None:
    with publisher_at(replay=REPLAY) as publisher:
        publish(publisher, range(1, 2))
        publish(publisher, range(1, 4), "b")
        publisher.put_status(status_of("b"))
        chosen = {"streams": ("b",), "kinds": ("detections",)}
        with recorded(tmp_path, publisher, from_start=True, **chosen) as recording:
            wait_until(lambda: recording.seqs() == [1, 2, 3], "what is chosen")
        assert {path.name for path in tmp_path.glob("[a-z]*/*/*")} == {"stream=b"}
        assert {path.name for path in tmp_path.glob("[a-z]*")} == {"detections", "frames"}


@pytest.mark.root
@pytest.mark.package("util-linux")
def test_a_full_disk_is_waited_for_and_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from support.recordings import full_disk;"
        "folder = Path(sys.argv[1]); (folder / 'ballast').write_bytes(bytes(1_000_000));"
        "full_disk(folder / 'files', (folder / 'ballast').unlink); print('well')"
    )
    run_on_small_disk(tmp_path, code)


def test_the_manual_names_every_column() -> None:
    page = (ROOT / "docs" / "bridges.md").read_text(encoding="utf-8").partition("## Files for analysis")[2]
    for table, columns in TABLES.items():
        of_table = page.partition(f"### `{table}`")[2].partition("###")[0]
        for column in columns:
            assert f"| `{column.name}` |" in of_table, (table, column.name)

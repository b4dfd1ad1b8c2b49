"""`streamdet alerts` and `streamdet objects` against a daemon; only its detector is a stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streamdet import cli, wire
from streamdet.cli import past_events
from streamdet.client.control import ask
from streamdet.errors import ControlError, StreamdetError
from streamdet.types import AlertEvent, ObjectEvent
from support.processes import DaemonProcess, stream
from support.waiting import wait_until

MORE = '[[rules]]\nname = "[red]seen"\npicture = true\n[pictures]\ndirectory = "pictures"\n'


def run(daemon: DaemonProcess, *arguments: str) -> Result:
    result = CliRunner().invoke(
        cli.cli, [arguments[0], "--socket", str(daemon.control_path), *arguments[1:]], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result


def listed(daemon: DaemonProcess, *arguments: str) -> list[AlertEvent | ObjectEvent]:
    events = [wire.decode(line.encode()) for line in run(daemon, *arguments, "--json").stdout.splitlines()]
    found = [event for event in events if isinstance(event, AlertEvent | ObjectEvent)]
    assert len(found) == len(events)
    return found


def has_events(daemon: DaemonProcess, path: str, count: int) -> bool:
    try:
        return len(ask(daemon.control_path, "GET", path)["events"]) >= count
    except ControlError:  # a busy machine: they cannot be read now
        return False


def is_over(daemon: DaemonProcess) -> bool:
    """Whether all objects have ended, and all alerts: a stream that is paused may have a frame under way."""
    phases = set()
    for kind in ("objects", "alerts"):
        result = CliRunner().invoke(cli.cli, [kind, "--socket", str(daemon.control_path), "--json"])
        if result.exit_code != 0:  # a busy machine: they cannot be read now
            return False
        phases |= {json.loads(line)["phase"] for line in result.stdout.splitlines()}
    return phases == {"end", "cleared"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One whose streams showed an object that came and went again and again; now they are paused."""
    with DaemonProcess(tmp_path_factory.mktemp("past") / "d", comes_and_goes=True) as running:
        streams = [stream(name, max_fps=20, track_max_lost_seconds=0.3) for name in ("one", "two")]
        running.write_config(*streams, more=MORE)
        running.ready()
        for name in ("one", "two"):
            path = f"/v1/objects?stream={name}&phase=end"
            wait_until(lambda path=path: has_events(running, path, 4), "objects")
            ask(running.control_path, "PATCH", f"/v1/streams/{name}", {"paused": True})
        wait_until(lambda: is_over(running), "ends")
        yield running


def test_each_is_one_line_in_order_over_all_pages(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past_events, "_PAGE_EVENTS", 3)
    objects = listed(daemon, "objects")
    began = [event.object.began_at for event in objects if isinstance(event, ObjectEvent)]
    assert began == sorted(began)
    assert len({event.object.object_id for event in objects if isinstance(event, ObjectEvent)}) == len(objects) >= 8
    # The streams are paused: every object has ended, and its end is what is known of it.
    assert {event.phase for event in objects} == {"end"}
    alerts = listed(daemon, "alerts")
    assert [event.phase for event in alerts] == ["cleared"] * len(objects)
    newest = listed(daemon, "objects", "--limit", "3")
    assert len(newest) == 3
    assert newest == [event for event in objects if event in newest]
    assert objects[0] not in newest
    assert listed(daemon, "objects", "--stream", "two") == [event for event in objects if event.stream == "two"]


def test_conditions_choose_among_them(daemon: DaemonProcess) -> None:
    objects = listed(daemon, "objects")
    middle = objects[len(objects) // 2]
    assert isinstance(middle, ObjectEvent)
    label = middle.object.label
    assert listed(daemon, "objects", "--label", label) == objects
    assert listed(daemon, "objects", "--label", "zebra") == []
    assert listed(daemon, "objects", "--since", "1 h ago") == objects
    assert listed(daemon, "objects", "--until", "1 h ago") == []
    assert listed(daemon, "alerts", "--rule", "another") == []
    assert listed(daemon, "alerts", "--rule", "[red]seen") == listed(daemon, "alerts")
    assert run(daemon, "alerts", "--rule", "another").stdout == "there are no such alerts\n"


def test_the_table_is_for_people(daemon: DaemonProcess) -> None:
    head, first, *_ = run(daemon, "alerts").stdout.splitlines()
    assert head.split() == ["began", "stream", "rule", "about", "lasted", "kept"]
    assert "[red]seen" in first
    assert first.rstrip().endswith("picture")
    head, *rows = run(daemon, "objects").stdout.splitlines()
    assert head.split() == ["began", "stream", "label", "score", "zones", "seen", "for", "end", "kept"]
    assert all(" s  " in row for row in rows)


def test_pictures_are_saved(daemon: DaemonProcess, tmp_path: Path) -> None:
    result = run(daemon, "alerts", "--limit", "2", "--pictures", str(tmp_path / "p"))
    assert f"saved 2 of 2 pictures in {tmp_path / 'p'}" in result.stderr
    saved = sorted((tmp_path / "p").iterdir())
    kept = {path.name: path.read_bytes() for path in (daemon.folder / "pictures").rglob("*.jpg")}
    assert len(saved) == 2
    assert all(path.read_bytes() == kept[path.name] for path in saved)


def test_a_folder_that_cannot_be_written_is_one_line(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "p"
    with pytest.raises(StreamdetError, match=f"^{folder} cannot be written: Not a directory$"):
        run(daemon, "alerts", "--pictures", str(folder))


def test_a_daemon_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="there is no socket"):
        CliRunner().invoke(cli.cli, ["alerts", "--socket", str(tmp_path / "none")], catch_exceptions=False)

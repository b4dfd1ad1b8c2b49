"""`streamdet reload` and `streamdet streams` against a whole daemon; only its detector is a stand-in."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamdet import cli
from streamdet.assets import sample_clip
from streamdet.client.control import ask
from streamdet.config import load_config
from streamdet.config.toml import MAX_FILE_BYTES
from streamdet.detector.pool import DetectorPool
from streamdet.errors import ConfigError, ControlError
from streamdet.service.daemon import Daemon
from streamdet.service.live_config import AtRunTime, ChangesFile
from streamdet.types import Reason, State
from streamdet.worker import Worker
from support.ports import free_port
from support.stand_in import OneBox
from support.waiting import wait_until

SECRET = "pl4nted-Secret"  # noqa: S105 - a planted one


class Life(Worker):
    """One life of a daemon, in a thread."""

    join_timeout_seconds = 60.0

    def __init__(self, config: Path) -> None:
        super().__init__("daemon")
        self.daemon = Daemon(load_config(config), config, load=lambda *_: DetectorPool([OneBox()]))
        self.exit_code: int | None = None

    def run(self) -> None:
        self.exit_code = self.daemon.run()

    def wake(self) -> None:
        self.daemon.stop()


class Installed:
    """A configuration file with its daemon, and the commands that a person types."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "streamdet.toml"
        self.socket = folder / "c.sock"
        self.kept = folder / "streamdet.streams.json"
        self._head = (
            f'[publisher]\nendpoint = "tcp://127.0.0.1:{free_port()}"\n[metrics]\nendpoint = "127.0.0.1:0"\n'
            f'[control]\npath = "{self.socket}"\n[stream_defaults]\nmax_frame_age_seconds = 5\n'
        )
        self.write("east", "west")
        self.life: Life | None = None

    def write(self, *names: str, control: str = "", more: str = "") -> None:
        streams = [f'[[streams]]\nname = "{name}"\nurl = "{sample_clip()}"\nloop = true\n' for name in names]
        head = self._head.replace("[control]\n", f"[control]\n{control}")
        self.config.write_text(head + "".join(streams) + more)

    @property
    def daemon(self) -> Daemon:
        assert self.life is not None
        return self.life.daemon

    def start(self) -> None:
        self.life = Life(self.config)
        self.life.start()
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            ask(self.socket, "GET", "/v1/streams")
        except ControlError:
            return False
        return True

    def stop(self) -> None:
        assert self.life is not None
        self.life.stop()
        assert self.life.join()
        if self.life.error is not None:
            raise self.life.error
        assert self.life.exit_code == 0

    def restart(self) -> None:
        self.stop()
        self.start()

    def run(self, *arguments: str, stdin: str | None = None) -> tuple[int, str]:
        """Exit code and everything that is printed, as `streamdet` itself would give it."""
        from streamdet.cli import reload, streams  # noqa: PLC0415 - beside the group of this name

        group = {"streams": streams.command, "reload": reload.command}[arguments[0]]
        result = CliRunner().invoke(group, ["--socket", str(self.socket), *arguments[1:]], input=stdin)
        if isinstance(result.exception, ConfigError | ControlError):
            return result.exception.exit_code, f"{result.output}{result.exception}"
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    def streams(self) -> dict[str, dict[str, Any]]:
        code, output = self.run("streams", "list", "--json")
        assert code == 0
        return {stream["name"]: stream for stream in json.loads(output)["streams"]}

    def page(self) -> str:
        from prometheus_client import generate_latest  # noqa: PLC0415 - only here

        return generate_latest(self.daemon.metrics.registry).decode()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    installed = Installed(tmp_path)
    installed.start()
    yield installed
    installed.stop()


def published(installed: Installed, stream: str) -> Callable[[], bool]:
    return lambda: installed.daemon.ledger.snapshot()[stream].published > 0


def test_a_stream_of_run_time_lives_and_ends_like_one_of_the_file(installed: Installed) -> None:
    code, output = installed.run(
        "streams", "add", "north", str(sample_clip()), "--set", "loop=true", "--set", "max_fps=9"
    )
    assert (code, output) == (0, "north was added, until the next restart\n")
    wait_until(published(installed, "north"))
    assert 'streamdet_frames_published_total{stream="north"}' in installed.page()
    assert set(installed.daemon.health().streams) == {"east", "west", "north"}
    found = installed.streams()["north"]
    assert (found["origin"], found["persisted"]) == ("run_time", False)
    north = next(stream for stream in installed.daemon.config.streams if stream.name == "north")
    assert (north.max_fps, north.max_frame_age_seconds) == (9, 5)
    wait_until(lambda: installed.streams()["north"]["fps_out"] > 0)
    code, output = installed.run("streams", "list")
    assert code == 0
    assert "run time" in output
    assert installed.run("streams", "remove", "north")[0] == 0
    assert 'stream="north"' not in installed.page()
    assert set(installed.daemon.health().streams) == {"east", "west"}


def test_pause_change_resume_reset(installed: Installed) -> None:
    wait_until(published(installed, "east"))
    capture = installed.daemon._streams._captures["east"]  # type: ignore[union-attr]
    assert installed.run("streams", "change", "east", "--set", "max_fps=3")[0] == 0
    assert installed.daemon._streams._captures["east"] is capture  # type: ignore[union-attr]
    assert installed.run("streams", "pause", "east")[0] == 0
    east = installed.streams()["east"]
    assert (east["state"], east["reason"], east["changed"]) == ("down", "paused", ["max_fps", "paused"])
    assert not capture.is_alive()
    status = installed.daemon.health().streams["east"]
    assert (status.state, status.reason) == (State.DOWN, Reason.PAUSED)
    assert installed.run("streams", "resume", "east")[0] == 0
    wait_until(lambda: installed.streams()["east"]["state"] == "up")
    assert installed.streams()["east"]["changed"] == ["max_fps"]
    assert installed.run("streams", "change", "east", "--unset", "max_fps")[0] == 0
    assert installed.streams()["east"]["changed"] == []
    assert installed.run("streams", "remove", "east")[0] == 0
    assert "streamdet streams reset east restores it" in installed.run("streams", "list")[1]
    code, output = installed.run("streams", "add", "east", str(sample_clip()))
    assert code == 1
    assert "streamdet streams reset east" in output
    code, output = installed.run("streams", "reset", "east", "--rules", "--persist")
    assert (code, output) == (0, "east is as the file says, and so are the rules, and stays so over restarts\n")
    wait_until(lambda: installed.streams()["east"]["state"] == "up")


def test_what_is_persisted_survives_a_restart_and_the_rest_does_not(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORTH_LOGIN", f"user:{SECRET}")
    text = installed.config.read_text()
    url = "rtsp://${NORTH_LOGIN}@127.0.0.1:1/x"
    assert installed.run("streams", "add", "north", url, "--persist")[0] == 0
    assert installed.run("streams", "add", "south", url)[0] == 0
    assert installed.run("streams", "pause", "west", "--persist")[0] == 0
    assert installed.run("streams", "change", "west", "--set", "max_fps=2")[0] == 0
    assert {name: stream["persisted"] for name, stream in installed.streams().items()} == {
        "east": True, "west": False, "north": True, "south": False,
    }  # fmt: skip
    assert stat.S_IMODE(installed.kept.stat().st_mode) == 0o600
    kept = json.loads(installed.kept.read_text())
    assert kept["streams"]["north"] == {"action": "add", "values": {"url": url}}
    installed.restart()
    found = installed.streams()
    assert set(found) == {"east", "west", "north"}
    assert (found["west"]["reason"], found["west"]["changed"]) == ("paused", ["paused"])
    assert SECRET not in json.dumps(found)
    assert found["north"]["url"] == "rtsp://***@127.0.0.1:1/x"
    assert installed.run("streams", "resume", "west", "--persist")[0] == 0
    assert installed.run("streams", "remove", "north", "--persist")[0] == 0
    assert json.loads(installed.kept.read_text())["streams"] == {}
    assert installed.config.read_text() == text
    assert [path.name for path in installed.kept.parent.glob(".*.part")] == []


BAY = 'zones=[{ name = "bay", polygon = [[0, 0], [1, 0], [1, 1]] }]'


def test_what_would_not_fit_after_a_restart_is_not_kept(installed: Installed) -> None:
    rule = {"rules": [{"name": "parked", "streams": ["east"], "zone": "bay"}]}
    assert installed.run("streams", "change", "east", "--set", BAY)[0] == 0
    with pytest.raises(ConfigError, match='is "bay", and stream east has no zone') as refused:
        ask(installed.socket, "PUT", "/v1/rules?persist=true", rule)
    assert refused.value.problems[-1].startswith("this would be so after a restart")
    assert ask(installed.socket, "GET", "/v1/rules")["rules"] == []
    # Kept one after the other, they fit; and the zone cannot go while the rule is kept.
    assert installed.run("streams", "change", "east", "--persist")[0] == 0
    ask(installed.socket, "PUT", "/v1/rules?persist=true", rule)
    assert ask(installed.socket, "GET", "/v1/rules")["persisted"]
    ask(installed.socket, "POST", "/v1/rules/reset")
    assert installed.run("streams", "reset", "east", "--persist")[0] == 2
    assert installed.run("streams", "reset", "east")[0] == 0
    installed.restart()
    assert [each["name"] for each in ask(installed.socket, "GET", "/v1/rules")["rules"]] == ["parked"]
    assert "left out" not in installed.run("reload")[1]


def test_what_is_undone_leaves_nothing_in_the_file_of_changes(installed: Installed) -> None:
    def kept() -> dict[str, Any]:
        streams: dict[str, Any] = json.loads(installed.kept.read_text())["streams"]
        return streams

    # A stream of run time that is added again and again.
    for _ in range(2):
        assert installed.run("streams", "add", "north", "rtsp://127.0.0.1:1/x", "--persist")[0] == 0
        assert installed.run("streams", "change", "north", "--set", "max_fps=2", "--persist")[0] == 0
        assert installed.run("streams", "remove", "north", "--persist")[0] == 0
        assert kept() == {}
    # One of the file that is changed, then removed, then restored.
    assert installed.run("streams", "change", "west", "--set", "max_fps=2", "--persist")[0] == 0
    assert installed.run("streams", "remove", "west", "--persist")[0] == 0
    assert kept() == {"west": {"action": "remove", "values": {}}}
    assert installed.run("streams", "reset", "west", "--persist")[0] == 0
    assert kept() == {}
    assert installed.streams()["west"]["changed"] == []
    # What is removed until a restart comes back with it.
    assert installed.run("streams", "add", "north", "rtsp://127.0.0.1:1/x", "--persist")[0] == 0
    code, output = installed.run("streams", "remove", "north")
    assert (code, output) == (0, "north was removed, until the next restart\n")
    installed.restart()
    assert "north" in installed.streams()


def test_a_password_can_come_from_standard_input(installed: Installed) -> None:
    url = f"rtsp://user:{SECRET}@127.0.0.1:1/x"
    assert installed.run("streams", "add", "north", "--url-from-stdin", stdin=url + "\n")[0] == 0
    stream = next(stream for stream in installed.daemon.config.streams if stream.name == "north")
    assert stream.url == url
    assert SECRET not in installed.run("streams", "list")[1] + installed.run("streams", "list", "--json")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("add", "north", "rtps://h/x"), 2, 'streams[north].url: begins with "rtps://"'),
        (("add", "Nörth", "clip.mp4"), 2, 'name: is "Nörth"; must be 1 to 64 small letters'),
        (("add", "east", "clip.mp4"), 1, "a stream east exists already"),
        (("add", "n", "clip.mp4", "--set", "max_fps=-1"), 2, "streams[n].max_fps: is -1; must be a number above 0"),
        (("add", "n", "clip.mp4", "--set", "maxfps=1"), 2, 'did you mean "max_fps"?'),
        (("add", "n", "rtsp://${NO_SUCH_NAME}@h/x"), 2, "${NO_SUCH_NAME} is not set"),
        (("add", "n", "clip.mp4", "--set", "transport=udp"), 2, "applies to rtsp:// only"),
        (("change", "east", "--set", "name=x"), 1, "a stream keeps its name"),
        (("change", "east", "--unset", "url"), 1, '"url" is not a key that can be unset'),
        (("change", "absent", "--set", "max_fps=1"), 1, "there is no stream absent"),
        (("change", "east"), 2, "there is nothing to change"),
        (("change", "east", "--set", "max_fps"), 2, "write KEY=VALUE"),
        (("remove", "absent"), 1, "there is no stream absent"),
        (("pause", "absent"), 1, "there is no stream absent"),
        (("reset", "absent"), 1, "the file has no stream absent"),
        (("add", "n"), 2, "give either URL or --url-from-stdin"),
    ],
)
def test_mistakes_are_one_clear_line_and_change_nothing(
    installed: Installed, arguments: tuple[str, ...], code: int, words: str
) -> None:
    before = installed.daemon.config
    result, output = installed.run("streams", *arguments)
    assert result == code
    assert words in output
    assert "Traceback" not in output
    assert installed.daemon.config == before
    assert ask(installed.socket, "GET", "/v1/about")["pid"] == os.getpid()


def test_what_is_wrong_can_be_had_as_json(installed: Installed) -> None:
    code, output = installed.run("streams", "remove", "absent", "--json")
    assert code == 1
    assert json.loads(output) == {
        "ok": False, "problems": ["there is no stream absent; streamdet streams list names them"],
    }  # fmt: skip


def test_reload_says_what_became_of_the_streams_and_what_waits_for_a_restart(installed: Installed) -> None:
    wait_until(published(installed, "east"))
    since = installed.daemon.health().streams["east"].since
    assert installed.run("streams", "add", "extra", str(sample_clip()))[0] == 0
    installed.write("east", "north", more="[detector]\nscore_threshold = 0.7\nmax_batch_size = 4\n")
    loaded_at = time.time()
    code, output = installed.run("reload", "--config", str(installed.config))
    assert code == 0
    assert "added: north" in output
    assert "removed: west" in output
    assert "only after a restart: detector.max_batch_size\n" in output
    assert set(installed.streams()) == {"east", "north", "extra"}
    assert installed.daemon.health().streams["east"].since == since
    lines = dict(line.rsplit(" ", 1) for line in installed.page().splitlines() if not line.startswith("#"))
    assert float(lines["streamdet_config_last_reload_successful"]) == 1
    assert float(lines["streamdet_config_last_reload_success_timestamp_seconds"]) >= loaded_at - 1
    # What waits for a restart waits until there is one.
    answer = json.loads(installed.run("reload", "--json")[1])
    assert answer["needs_restart"] == ["detector.max_batch_size"]
    assert answer["streams"] == {"added": [], "reconnected": [], "updated": [], "removed": []}


def test_show_says_what_counts_as_a_detection(installed: Installed) -> None:
    assert installed.run("streams", "change", "east", "--set", "score_threshold=0.3", "--set", "max_size=0.5")[0] == 0
    code, output = installed.run("streams", "show", "east")
    assert code == 0
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in output.splitlines() if "  " in line)
    assert (lines["labels"], lines["score threshold"]) == ("person", "0.3")
    assert lines["height"] == "0 to 0.5 of the picture's height"
    assert lines["changed"] == "max_size, score_threshold"
    assert json.loads(installed.run("streams", "show", "east", "--json")[1])["detection"]["max_size"] == 0.5
    code, output = installed.run("streams", "show", "nowhere")
    assert (code, "there is no stream nowhere" in output) == (1, True)


def test_a_reload_of_a_bad_file_fails_in_sight_and_changes_nothing(installed: Installed) -> None:
    before = installed.daemon.config
    installed.write("north", more='max_fps = "many"\n')
    line = installed.config.read_text().splitlines().index('max_fps = "many"') + 1
    code, output = installed.run("reload")
    assert code == 2
    assert "nothing was changed" in output
    assert f"{installed.config}:{line}: streams[north].max_fps:" in output
    assert installed.daemon.config == before
    assert "streamdet_config_last_reload_successful 0.0" in installed.page()
    code, output = installed.run("reload", "--json")
    assert code == 2
    assert json.loads(output)["problems"]
    installed.write("east", "west")
    assert installed.run("reload")[0] == 0
    assert "streamdet_config_last_reload_successful 1.0" in installed.page()


def test_a_reload_for_another_file_is_refused(installed: Installed, tmp_path: Path) -> None:
    code, output = installed.run("reload", "--config", str(tmp_path / "other.toml"))
    assert code == 1
    assert f"this daemon runs {installed.config}" in output


def test_a_name_that_file_and_run_time_both_give_is_reported(
    installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    assert installed.run("streams", "add", "north", str(sample_clip()), "--persist")[0] == 0
    installed.write("east", "north")
    code, output = installed.run("reload")
    assert code == 2
    assert "streams[north].name: a stream of this name was added at run time" in output
    assert set(installed.streams()) == {"east", "west", "north"}
    installed.restart()
    assert set(installed.streams()) == {"east", "north"}
    assert installed.streams()["north"]["origin"] == "file"
    assert any(re.search(r"added at run time \(kept in .*streams\.json\)", text) for text in caplog.messages)
    # What was kept is still there: with the other name in the file it would be used again.
    installed.write("east")
    installed.restart()
    assert installed.streams()["north"]["origin"] == "run_time"


def test_changes_of_a_stream_that_left_the_file_are_forgotten(installed: Installed) -> None:
    assert installed.run("streams", "remove", "west", "--persist")[0] == 0
    installed.write("east")
    assert installed.run("reload")[0] == 0
    installed.write("east", "west")
    assert installed.run("reload")[0] == 0
    assert set(installed.streams()) == {"east", "west"}
    assert json.loads(installed.kept.read_text())["streams"] == {}


def test_what_cannot_be_kept_is_not_done(installed: Installed) -> None:
    installed.stop()
    installed.write("east", "west", control='changes_file = "no-such-folder/kept.json"\n')
    installed.start()
    code, output = installed.run("streams", "add", "north", str(sample_clip()), "--persist")
    assert code == 1
    assert "nothing was changed" in output
    assert set(installed.streams()) == {"east", "west"}
    assert installed.run("streams", "add", "north", str(sample_clip()))[0] == 0


SPOILED = ["", "x", "[]", '{"version": 2, "streams": {}}', "[" * 100_000, "\udc80", "{" + " " * 2_000_000]


@pytest.mark.parametrize("text", SPOILED, ids=range(len(SPOILED)))
def test_a_spoiled_file_of_changes_is_reported_and_kept_aside(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = text.encode("utf-8", "surrogateescape")
    kept = tmp_path / "kept.json"
    kept.write_bytes(data)
    changes, problems = ChangesFile(kept).read()
    assert changes == AtRunTime()
    assert len(problems) == 1
    assert "is not what streamdet wrote there" in problems[0]
    assert (tmp_path / "kept.json.bad").read_bytes() == data[: MAX_FILE_BYTES + 1]
    assert stat.S_IMODE((tmp_path / "kept.json.bad").stat().st_mode) == 0o600


def test_a_kept_change_that_cannot_be_used_keeps_nothing_else_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed = Installed(tmp_path)
    clip = str(sample_clip())
    kept: dict[str, Any] = {
        "good": {"action": "add", "values": {"url": clip, "loop": True}},
        "nul": {"action": "add", "values": {"url": f"rtsp://u:{SECRET}@h/%00"}},
        "unknown": {"action": "add", "values": {"url": "rtsp://${NOT_THERE_AT_ALL}@h/"}},
        "east": {"action": "change", "values": {"max_fps": "many"}},
        "half": {"action": "add", "values": {"url": "/srv/\ud800.mp4"}},
        "west": {"action": "explode"},
        "A\u202e": {},
    }
    installed.kept.write_text(json.dumps({"version": 1, "streams": kept}))
    installed.start()
    try:
        assert set(installed.streams()) == {"east", "west", "good"}
        reported = [text for text in caplog.messages if "change of an earlier run not applied" in text]
        assert len(reported) == 6
        assert SECRET not in "".join(caplog.messages)
        # What may fit again is kept, and goes when it is reset.
        assert installed.run("streams", "pause", "good", "--persist")[0] == 0
        assert json.loads(installed.kept.read_text())["streams"].keys() == {"good", "nul", "unknown", "east", "half"}
        assert json.loads(installed.kept.with_name(installed.kept.name + ".bad").read_text())["streams"] == kept
        code, output = installed.run("reload")
        assert code == 0
        assert "streamdet streams remove nul --persist" in output
        assert installed.run("streams", "remove", "nul", "--persist")[0] == 0
        assert installed.run("streams", "remove", "nul", "--persist")[0] == 1
        assert installed.run("streams", "change", "east", "--set", "max_fps=5", "--persist")[0] == 0
        assert "remove" not in installed.run("reload")[1].replace("remove unknown", "").replace("remove half", "")
    finally:
        installed.stop()


@pytest.mark.parametrize(
    "url",
    ["file:///a%00b", "rtsp://127.0.0.1:9/%00", "http://%00/", "rtsp://h%00/x", "rtsp://u:p%0d%0aX@h/x", " rtsp://h/x"],
)
def test_an_address_with_a_control_character_is_refused_at_run_time(installed: Installed, url: str) -> None:
    with pytest.raises(ConfigError, match=r"streams\[north\].url: "):
        ask(installed.socket, "POST", "/v1/streams?persist=true", {"name": "north", "url": url})
    with pytest.raises(ConfigError, match=r"streams\[east\].url: "):
        ask(installed.socket, "PATCH", "/v1/streams/east?persist=true", {"url": url})
    assert not installed.kept.exists()


def test_the_commands_explain_themselves_and_start_without_torch() -> None:
    for name in ("list", "add", "change", "remove", "pause", "resume", "reset"):
        result = CliRunner().invoke(cli.cli, ["streams", name, "--help"])
        assert result.exit_code == 0
        assert "--json" in result.output

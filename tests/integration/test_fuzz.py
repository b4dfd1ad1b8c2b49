"""Whatever comes from outside is taken or refused; `make fuzz` tries a million inputs, these are a few of them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzzing import Tally, Target, targets
from streamdet.capture.sources.diagnosis import look_at_connection
from streamdet.config import StreamConfig, load_config
from streamdet.errors import ConfigError, ControlError
from streamdet.service.control.api import _only, decode_body
from streamdet.types import Reason
from support.waiting import join

_INPUTS = 20_000
_NAMES = (
    "event", "message", "replay request", "replay answer", "control request", "control answer", "configuration",
    "page request", "camera's answer", "playlist", "search's answer", "ONVIF answer",
)  # fmt: skip


@pytest.fixture(scope="module")
def every() -> Iterator[dict[str, Target]]:
    with targets() as every:
        yield every


def test_each_has_its_share(every: dict[str, Target]) -> None:
    assert tuple(every) == _NAMES
    assert sum(target.share for target in every.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", _NAMES)
def test_broken_input_is_taken_or_refused(name: str, every: dict[str, Target], request: pytest.FixtureRequest) -> None:
    # Others each time; which ones, an error says.
    seed = request.config.getoption("randomly_seed", 0)
    tally = Tally({})
    tally.run(every[name], int(seed), range(round(_INPUTS * every[name].share)))
    assert len(tally.outcomes) > 1, "too broken, or not at all, to be worth a try"


@pytest.mark.parametrize("name", _NAMES)
def test_what_is_not_broken_is_taken(name: str, every: dict[str, Target]) -> None:
    outcomes = {every[name].read(data) for data in every[name].good}
    assert "taken" in outcomes


def test_an_input_can_be_made_again(every: dict[str, Target]) -> None:
    target = every["event"]
    assert [target.input(3, number) for number in range(20)] == [target.input(3, number) for number in range(20)]
    assert target.input(3, 1) != target.input(4, 1)


def test_a_stranger_s_words_come_back_on_one_line() -> None:
    with pytest.raises(ControlError) as refused:
        _only(decode_body(b'{"a\\r\\n\\u001b[2J\\u2028b": 1}'), config=str)
    assert str(refused.value).isprintable()


def test_a_problem_of_a_configuration_is_one_line_that_a_terminal_can_show(tmp_path: Path) -> None:
    path = tmp_path / "streamdet.toml"
    path.write_text('[log]\nlevel = "i\\fo\\u2028\\u001b[2J\\n"\n')
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert all(problem.isprintable() for problem in refused.value.problems)


def test_an_answer_that_comes_drop_by_drop_holds_no_one_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"R")
                        time.sleep(0.005)
                except ConnectionError:
                    return  # it has had enough

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        found = look_at_connection(StreamConfig(name="yard", url=f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x"))
        assert time.monotonic() - began < 5
        join(thread)
    assert found is not None
    assert found.reason is Reason.TIMEOUT

"""What processes write into the named pipe of the command that has started them comes out in its log."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamdet.cluster.actor_log import LOG_VARIABLE, ActorLog
from support.waiting import wait_until

ACTOR = """
import logging
from streamdet.cluster.actor_log import log_to_command
log_to_command()
log = logging.getLogger("streamdet.cluster.head")
log.info("node %s has joined", "n1")
try:
    1 / 0
except ZeroDivisionError:
    log.critical("head-rounds has failed", exc_info=True)
logging.shutdown()
"""


def run_actor(pipe: Path) -> str:
    """Runs a process that logs; what it writes to its standard error."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ACTOR], capture_output=True, text=True, check=True,
        env={**os.environ, LOG_VARIABLE: str(pipe)},
    )  # fmt: skip
    return done.stderr


def test_what_actors_log_is_logged_by_the_command_with_their_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ActorLog(tmp_path / "log"):
        assert run_actor(tmp_path / "log") == ""
        wait_until(lambda: len(caplog.records) == 2)
        run_actor(tmp_path / "log")  # an actor that was started again
    joined, failed, *again = caplog.records
    assert (joined.name, joined.levelname, joined.message) == (
        "streamdet.cluster.head", "INFO", "node n1 has joined",
    )  # fmt: skip
    assert (failed.levelname, failed.message.splitlines()[0]) == ("CRITICAL", "head-rounds has failed")
    assert failed.message.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert len(again) == 2


def test_what_is_no_line_of_an_actor_is_logged_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ActorLog(tmp_path / "log"):
        (tmp_path / "log").write_bytes(b"no JSON\n[]\n\xff\n" + b"x" * 3_000_000 + b"\n")
        (tmp_path / "log").write_bytes(b"the last one\n")
    assert caplog.messages[:3] == ["no JSON", "[]", "\ufffd"]
    assert caplog.messages[-1] == "the last one"


def test_where_no_command_reads_an_actor_logs_to_its_own_output(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    assert "node n1 has joined" in run_actor(tmp_path / "log")
    assert "node n1 has joined" in run_actor(tmp_path / "none")

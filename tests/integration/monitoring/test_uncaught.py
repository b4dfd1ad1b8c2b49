"""Errors that nothing catches, in a process that they end."""

from __future__ import annotations

import json
import subprocess
import sys

PLANTED = "hunter2-planted"
URL = f"rtsp://user:{PLANTED}@192.0.2.5/x"

UNCAUGHT = f"""
import gc, threading
from streamdet.config import LogConfig
from streamdet.monitoring.log import configure_logging
configure_logging(LogConfig(format="json"))
class Broken:
    def __del__(self):
        raise KeyError({URL!r})
broken = Broken()
del broken
def fail():
    raise ValueError({URL!r})
thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
raise RuntimeError({URL!r})
"""


def test_what_no_one_caught_is_logged_without_secrets() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False, env={"JOURNAL_STREAM": "1:2"}
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert PLANTED not in done.stderr
    unraisable, thread, main = map(json.loads, done.stderr.splitlines())
    assert (unraisable["level"], unraisable["message"]) == ("error", "error that could not be raised: KeyError")
    assert (thread["level"], thread["message"]) == ("critical", "unexpected error in thread worker: ValueError")
    assert (main["level"], main["message"]) == ("critical", "unexpected error: RuntimeError")
    assert main["exception"].endswith("RuntimeError: rtsp://***@192.0.2.5/x")

"""A log that no one takes: real pipes, full disks and closed descriptors."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from streamdet.monitoring.log import LogWriter, lost_lines
from support.processes import DaemonProcess, stream
from support.waiting import PATIENCE_SECONDS, join, wait_until

_LINE = "x" * 999 + "\n"
# What waits for a reader waits for ever; a bound that no slow machine reaches shows that nothing does.
_BLOCKED_SECONDS = 20.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Takes 4 KiB."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    ends = {reader, writer}
    yield reader, writer
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # the test has closed it


def writer_to(descriptor: int, max_queued_bytes: int = 2**22) -> LogWriter:
    return LogWriter(descriptor, "utf-8", lambda count: f"{count} lost\n", max_queued_bytes=max_queued_bytes)


def read_all(descriptor: int) -> list[str]:
    """Everything until the writers have gone."""
    with os.fdopen(os.dup(descriptor), encoding="utf-8") as reader:
        return reader.read().splitlines()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stands_still_holds_up_no_one_and_what_was_lost_is_said(
    pipe: tuple[int, int], *, blocking: bool
) -> None:
    before = lost_lines()
    os.set_blocking(pipe[1], blocking)
    log = writer_to(pipe[1], max_queued_bytes=20 * 1128)
    os.close(pipe[1])
    began = time.monotonic()
    for number in range(100):
        log.write(f"{number:03}{_LINE[3:]}")
    log.flush()
    assert time.monotonic() - began < _BLOCKED_SECONDS
    lost = lost_lines() - before
    assert 60 < lost < 90
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(read_all(pipe[0])), daemon=True)
    reading.start()
    log.close()
    join(reading)
    assert f"{lost} lost" in lines
    numbers = [int(line[:3]) for line in lines if line.endswith("x")]
    assert len(numbers) == 100 - lost
    assert numbers == sorted(set(numbers))


def test_the_end_does_not_wait_for_a_reader_that_stands_still(pipe: tuple[int, int]) -> None:
    log = writer_to(pipe[1])
    for _ in range(100):
        log.write(_LINE)
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < _BLOCKED_SECONDS
    os.close(pipe[1])
    assert len(read_all(pipe[0])) == 100  # now that it reads, the thread comes to its end


def test_a_reader_that_has_gone_costs_lines_only(pipe: tuple[int, int]) -> None:
    before = lost_lines()
    log = writer_to(pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        log.write(_LINE)
    log.flush()
    log.close()
    assert lost_lines() - before == 3


def test_a_full_disk_costs_lines_and_none_is_glued_to_another(tmp_path: Path) -> None:
    program = f"""
import os, resource, signal
from streamdet.monitoring.log import LogWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
descriptor = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
log = LogWriter(descriptor, "utf-8", lambda count: f"{{count}} lost\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
for _ in range(5):
    log.write({_LINE!r})
log.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write("again\\n")
log.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [len(line) for line in lines[:2]] == [999, 500]
    assert lines[2:] == ["4 lost", "again"]


def test_a_child_does_not_write_what_waits_in_its_parent(pipe: tuple[int, int]) -> None:
    log = writer_to(pipe[1])
    for _ in range(100):
        log.write(_LINE)
    child = os.fork()
    if child == 0:
        log.write("from the child\n")
        log.close()
        os._exit(0)
    os.close(pipe[1])
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(read_all(pipe[0])), daemon=True)
    reading.start()
    os.waitpid(child, 0)
    log.close()
    join(reading)
    assert len(lines) == 101
    assert sum(line.endswith("from the child") for line in lines) == 1


def test_a_daemon_whose_log_no_one_takes_works_answers_and_ends_in_time(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, stream("clip", max_fps=20)) as daemon:
        daemon.ready()
        fcntl.fcntl(daemon.process.stderr.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        # Every stream that is added and refused is some lines; a pipe of a page is full at once.
        for number in range(40):
            daemon.ask("POST", "/v1/streams", {"name": f"x{number}", "url": "rtsp://127.0.0.1:9/x"})
        published = daemon.count("frames_published_total", stream="clip")
        wait_until(lambda: daemon.count("frames_published_total", stream="clip") > published + 5, "more frames")
        assert daemon.ask("GET", "/v1/about")["epoch"]
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        # Nothing is read before it has ended.
        assert daemon.process.wait(PATIENCE_SECONDS) == 0
        assert time.monotonic() - began < _BLOCKED_SECONDS


@pytest.mark.parametrize("closed", ["2", "1 2", "0 1 2"])
def test_a_daemon_without_standard_streams_works(tmp_path: Path, closed: str) -> None:
    closing = " ".join(f"{number}>&-" for number in closed.split())
    daemon = DaemonProcess(tmp_path, under=["sh", "-c", f'exec "$@" {closing}', "sh"])
    with daemon:
        daemon.ready()
        assert "streamdet_frames_published_total" in daemon.page()
        assert daemon.end() == 0


def is_writing_to_a_pipe(pid: int) -> bool:
    """Whether a thread of the process sleeps in write(2) because a pipe is full."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has just ended
            if "pipe_write" in (task / "wchan").read_text():
                return True
    return False


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "lines"])
def test_output_that_no_one_takes_does_not_hold_up_an_interrupt(tmp_path: Path, options: list[str]) -> None:
    """`watch` blocks while it writes, as every program in a pipeline; one interrupt is enough to end it."""
    with DaemonProcess(tmp_path, stream("clip", max_fps=30)) as daemon:
        daemon.ready()
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        command = [sys.executable, "-m", "streamdet", "watch", *options, daemon.endpoint]
        watch = subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL)
        os.close(writer)
        try:
            wait_until(lambda: is_writing_to_a_pipe(watch.pid), "a full pipe")
            watch.send_signal(signal.SIGINT)
            watch.wait(PATIENCE_SECONDS)
        finally:
            watch.kill()
            watch.wait()
            os.close(reader)


@pytest.mark.usefixtures("_engines_known")
def test_a_demo_that_no_one_looks_at_ends_in_time() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    environ = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "streamdet", "demo", "--no-page"]
    demo = subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL, env=environ)
    os.close(writer)
    try:
        wait_until(lambda: is_writing_to_a_pipe(demo.pid), "a full pipe")
        began = time.monotonic()
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(PATIENCE_SECONDS) == 0
        assert time.monotonic() - began < _BLOCKED_SECONDS
    finally:
        demo.kill()
        demo.wait()
        os.close(reader)

"""What all tests share: nothing may leak, and what needs a Debian package says so."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator

import hypothesis
import pytest

from support.packages import is_there

# A machine under load takes its time; how long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

_THREAD_GRACE_SECONDS = 15.0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: tests wait for servers and for time about half of theirs."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Which engine is the fastest is found out once for all tests and their daemons, and never kept in a home."""
    # A shell ignores interrupts in what it starts in the background, and the programs under test would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        cache: pytest.Cache = config.cache  # type: ignore[assignment] # it is there
        os.environ["XDG_STATE_HOME"] = str(cache.mkdir("state"))
        os.environ.pop("STATE_DIRECTORY", None)


@pytest.fixture(scope="session")
def _engines_known() -> None:
    """For tests of what runs by default: the trial is over before their own time begins to count."""
    from streamdet.config import DetectorConfig  # noqa: PLC0415 - only for these
    from streamdet.detector.trial import Trial  # noqa: PLC0415

    with Trial(DetectorConfig()) as trial:
        assert trial.report() is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        for marker in item.iter_markers("package"):
            for name in marker.args:
                if not is_there(name):
                    item.add_marker(pytest.mark.skip(reason=f"needs the package {name}"))
        if "_engines_known" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))  # it may be the one that the trial waits for
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if item.get_closest_marker("gpu"):
            import torch  # noqa: PLC0415 - costly, and only for these

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_runtest_setup() -> None:
    """Processes that test side by side share the cores: threads that wait for each other at every step cost most."""
    torch = sys.modules.get("torch")
    if torch is not None:
        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold half of a character, which cannot travel between the processes of a test run."""
    report = yield
    report.sections = [
        (title, content.encode("utf-8", "backslashreplace").decode()) for title, content in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _scheduled_as_before() -> Iterator[None]:
    """Fails a test after which this process, and all that it starts, would be scheduled otherwise."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Fails a test after which more or less is logged than before."""
    before = logging.getLogger().level
    yield
    assert logging.getLogger().level == before


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    """Fails a test that leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + _THREAD_GRACE_SECONDS
    left = set(threading.enumerate()) - before
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = {t for t in left if t.is_alive()}
    assert not left, f"threads left behind: {sorted(t.name for t in left)}"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield server.getsockname()[1]

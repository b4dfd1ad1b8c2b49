"""Nothing runs by default that has not proven itself on this machine."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from streamdet.config import DetectorConfig
from streamdet.detector import trial as trial_module
from streamdet.detector.agreement import compare
from streamdet.detector.choice import (
    REFERENCE,
    Candidate,
    Outcome,
    Report,
    Result,
    Timing,
    choose,
    settled,
    verdict,
)
from streamdet.detector.state import Interrupted, Store
from streamdet.detector.tester import samples
from streamdet.detector.trial import Trial, key_of, needs_trial, try_size
from streamdet.security.files import state_folder
from streamdet.types import Detection
from support.paths import SUPPORT
from support.waiting import join, wait_until

FAKES = SUPPORT / "servers" / "fake_engines.py"
INT8 = Candidate(engine="openvino", precision="int8")
BF16 = Candidate(engine="torch", precision="bf16")
# A fast one that would be taken, if it were not for what it does.
SLOW = "all=good:6"


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "_memory", {})


def command(*behaviour: str) -> list[str]:
    return [sys.executable, "-P", str(FAKES), *behaviour]


def tried(folder: Path | None, *behaviour: str, budget_seconds: float = 1, **options: Any) -> Report:
    given = DetectorConfig(), Store(folder), command(*behaviour)
    with Trial(*given, budget_seconds=budget_seconds, **options) as trial:
        report = trial.report()
    assert report is not None
    return report


def result_of(report: Report, candidate: Candidate) -> Result:
    found = report.result(candidate)
    assert found is not None
    return found


# How each of three fast ones misbehaves in one trial, and what is said of it.
MISBEHAVIOUR = [
    {
        "segfault": (Outcome.CRASHED, "SIGSEGV"),
        "exit": (Outcome.CRASHED, "exit code 3"),
        "batch": (Outcome.WRONG, "batches of 4 in 2 threads differ from single frames"),
    },
    {
        "memory": (Outcome.OUT_OF_MEMORY, "Unable to allocate"),
        "killed": (Outcome.OUT_OF_MEMORY, "the kernel"),
        "wrong": (Outcome.WRONG, "not what torch finds in fp32: 0.0 % of 125 detections"),
    },
    {
        "raise": (Outcome.FAILED, "RuntimeError: the kernel does not like this shape"),
        "missing": (Outcome.NOT_INSTALLED, "install the extra"),
        "blind": (Outcome.WRONG, "not what torch finds in fp32"),
    },
    {
        "unsupported": (Outcome.NOT_SUPPORTED, "this CPU has no bf16"),
        "good:400": (Outcome.TOO_SLOW, "ms a frame, torch fp32"),
        "wrong": (Outcome.WRONG, "not what torch finds in fp32"),
    },
]


@pytest.mark.parametrize("expected", MISBEHAVIOUR)
def test_whatever_a_candidate_does_is_a_verdict_and_the_next_best_is_taken(
    expected: dict[str, tuple[Outcome, str]],
) -> None:
    names = ["openvino fp32", "openvino bf16", "openvino int8"]
    behaviour = [f"{name}={how}" for name, how in zip(names, expected, strict=True)]
    report = tried(None, SLOW, "torch bf16=good:2", *behaviour)
    choice = choose(DetectorConfig(), report)
    assert (choice.candidate, choice.is_proven) == (BF16, True)
    results = {result.candidate.name: result for result in report.results}
    for name, (outcome, reason) in zip(names, expected.values(), strict=True):
        result = results[name]
        assert (result.outcome, result.timings) == (outcome, ())
        assert reason in result.reason
        assert dict(choice.left_out)[name].startswith(outcome.value)
        assert verdict(result, choice) == outcome.value
    assert [verdict(each, choice) for each in report.results].count("fastest") == 1


def test_one_that_compiles_for_each_size_is_not_taken_for_slow() -> None:
    report = tried(None, SLOW, "openvino int8=warms")
    assert result_of(report, INT8).outcome is Outcome.AGREES
    assert choose(DetectorConfig(), report).candidate == INT8


def test_those_that_are_about_as_fast_are_timed_again_in_turns() -> None:
    behaviour = "torch fp32=good:9", "torch bf16=fades", "openvino int8=good:6", "all=unsupported"
    report = tried(None, *behaviour, budget_seconds=3)
    assert choose(DetectorConfig(), report).candidate == INT8
    assert result_of(report, BF16).timings[0].frames_per_second < result_of(report, INT8).timings[0].frames_per_second


def test_one_that_ends_while_it_takes_turns_is_not_used() -> None:
    report = tried(None, SLOW, "torch bf16=tires:3", "openvino fp32=good:3", budget_seconds=3)
    assert result_of(report, BF16).outcome is Outcome.CRASHED
    assert "while it was timed" in result_of(report, BF16).reason
    assert choose(DetectorConfig(), report).candidate.name == "openvino fp32"


def test_one_that_hangs_is_killed_at_its_time_limit() -> None:
    report = tried(None, SLOW, "openvino int8=hang", "silence=1")
    assert result_of(report, INT8).outcome is Outcome.HUNG
    assert result_of(report, INT8).reason == "said nothing for 1 s"
    # It would hang for 600 s; where the machine is busy, the others take up to 30 s.
    assert report.seconds < 60


def test_what_a_library_prints_is_not_taken_for_an_answer() -> None:
    report = tried(None, SLOW, "openvino int8=shout:1")
    assert choose(DetectorConfig(), report).candidate == INT8
    assert len(report.results) == 5


def test_fp32_must_be_equal_and_others_may_differ_a_little() -> None:
    report = tried(None, "all=near:4", "torch fp32=good:4", "openvino fp32=wrong")
    assert result_of(report, INT8).outcome is Outcome.AGREES
    assert result_of(report, Candidate(engine="openvino", precision="fp32")).outcome is Outcome.WRONG
    assert "100.0 % of 125 detections kept" in result_of(report, INT8).difference


def test_where_nothing_can_be_compared_nothing_but_fp32_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    report = tried(None, "all=blind:2")
    assert result_of(report, INT8).outcome is Outcome.WRONG
    assert "too few detections to compare" in result_of(report, INT8).reason
    assert choose(DetectorConfig(), report).candidate.precision == "fp32"
    report = tried(None, "all=segfault", again=True)
    choice = choose(DetectorConfig(), report)
    assert (choice.candidate, choice.is_proven, choice.workers) == (REFERENCE, False, None)
    settings, _ = settled(DetectorConfig(), choice)
    assert (settings.engine, settings.precision, settings.max_batch_size) == ("auto", "auto", 1)
    assert "no engine passed the trial on this machine: running torch fp32" in caplog.text


@pytest.mark.parametrize("config", [{}, {"engine": "openvino"}, {"precision": "int8"}])
def test_an_export_that_fails_its_trial_is_not_asked_for_another_precision(
    config: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    failed = Result(candidate=INT8, outcome=Outcome.NOT_SUPPORTED, reason="broken")
    report = Report(key={}, device="cpu", results=(failed,), seconds=1, measured_at=0)
    choice = choose(DetectorConfig.model_validate(config), report)
    assert (choice.candidate, choice.is_proven) == (INT8, False)
    settings, _ = settled(DetectorConfig.model_validate(config), choice)
    assert (settings.engine, settings.precision) == ("openvino", "int8")
    assert "running openvino int8 (openvino int8: not supported: broken)" in caplog.text


def test_the_answer_is_kept_and_asks_for_no_child_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tried(tmp_path, SLOW)
    monkeypatch.setattr(Store, "_memory", {})
    with Trial(DetectorConfig(), Store(tmp_path), ["/nonexistent"]) as trial:
        assert trial.is_known
        assert trial.report() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [".engines.lock", "engines.json"]
    assert (tmp_path / "engines.json").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with Trial(DetectorConfig(), Store(tmp_path), command(SLOW), budget_seconds=1) as trial:
        assert not trial.is_known
        other = trial.report()
    assert other is not None
    assert other.key["environment"] == "ONEDNN_MAX_CPU_ISA=AVX2"
    assert Store(tmp_path).read(first.key) == first
    assert tried(tmp_path, "all=good:1", again=True).results != other.results


def test_frames_of_the_last_run_are_tried_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_frame_sizes([(300, 400), (1080, 1920)])
    report = tried(tmp_path, SLOW, f"sizes={tmp_path / 'sizes'}")
    assert report.frame_sizes == ((300, 400), (1080, 1920))
    assert json.loads((tmp_path / "sizes").read_text()) == [[300, 400], [1080, 1920]]
    tried_with = samples([(100, 200), *report.frame_sizes])
    assert tried_with.sizes(4) == ((100, 200),)
    assert tried_with.sizes(5) == ((100, 200), (300, 400))
    assert tried_with.sizes(100) == ((100, 200), (300, 400), (1080, 1920))
    assert {(picture.height, picture.width) for picture in tried_with.timed} == {(100, 200)}


def test_one_more_size_is_tried_later_and_its_answer_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tried(tmp_path, SLOW, "openvino int8=good:1")
    assert result_of(report, INT8).proven_sizes == ((480, 640),)
    store = Store(tmp_path)

    def found(size: tuple[int, int], *behaviour: str) -> Result | None:
        return try_size(DetectorConfig(), INT8, size, lambda: False, store, command(SLOW, *behaviour))

    good = found((100, 300), "openvino int8=good:1")
    bad = found((400, 400), "openvino int8=segfault@400x400")
    passing = found((500, 400), "openvino int8=killed@400x500")
    assert good is not None
    assert bad is not None
    assert passing is not None
    assert [each.outcome for each in (good, bad, passing)] == [Outcome.AGREES, Outcome.CRASHED, Outcome.OUT_OF_MEMORY]
    monkeypatch.setattr(Store, "_memory", {})
    with Trial(DetectorConfig(), store, ["/nonexistent"]) as trial:
        kept = trial.report()
    assert kept is not None
    choice = choose(DetectorConfig(), kept)
    assert choice.candidate == INT8
    assert choice.proven_sizes == ((480, 640), (100, 300))
    # Memory may be there at the next start.
    assert choice.failed_sizes == ((400, 400),)
    assert result_of(kept, REFERENCE) == result_of(report, REFERENCE)


def test_a_size_that_cannot_be_tried_has_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = "import sys; sys.exit('no memory here')"
    for broken in (["/nonexistent"], [sys.executable, "-c", code]):
        assert try_size(DetectorConfig(), INT8, (1, 2), lambda: False, Store(tmp_path), broken) is None
    assert "openvino int8 cannot be tried: [Errno 2]" in caplog.text
    assert "openvino int8 cannot be tried: no memory here" in caplog.text
    hangs = command("all=hang")
    assert try_size(DetectorConfig(), INT8, (1, 2), lambda: True, Store(tmp_path), hangs) is None


def test_every_fact_that_matters_is_in_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = key_of(DetectorConfig())
    assert key is not None
    assert key == key_of(DetectorConfig(device="cpu", engine="openvino", score_threshold=0.9, max_batch_size=2))
    assert key["libraries"].startswith("torch-")
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"some")
    mine = key_of(DetectorConfig(weights=str(weights)))
    weights.write_bytes(b"other")
    changed = key_of(DetectorConfig(weights=str(weights)))
    assert mine is not None
    assert changed is not None
    assert len({key["weights"], mine["weights"], changed["weights"]}) == 3
    assert key_of(DetectorConfig(weights=str(tmp_path / "none"))) is None
    assert key_of(DetectorConfig(weights=str(tmp_path))) is None
    monkeypatch.setattr(trial_module.os, "sched_getaffinity", lambda _: {0})
    assert key != key_of(DetectorConfig())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"reports": 3}', b'{"reports": [{"key": {}}]}', b"\xff\xfe", b'{"reports": [1e999]}',
        b"[" * 100_000, b" " * (2 << 20),
        b'{"reports": [{"key": {"a": "b"}, "device": "/etc", "results": [], "seconds": 1, "measured_at": 1}]}',
    ],
)  # fmt: skip
def test_a_broken_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    (tmp_path / "engines.json").write_bytes(content)
    assert store.read({"a": "b"}) is None


def test_the_file_of_a_newer_version_is_ignored_and_replaced(tmp_path: Path) -> None:
    report, path = example(), tmp_path / "engines.json"
    Store(tmp_path).write(report)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    Store._memory.clear()
    assert Store(tmp_path).read(report.key) is None
    Store(tmp_path).write(report)
    Store._memory.clear()
    assert Store(tmp_path).read(report.key) == report


def test_a_file_that_others_can_write_a_link_or_a_fifo_is_not_read(tmp_path: Path) -> None:
    report = example()
    Store(tmp_path).write(report)
    path = tmp_path / "engines.json"

    def read() -> Report | None:
        Store._memory.clear()
        return Store(tmp_path).read(report.key)

    assert read() == report
    path.chmod(0o666)
    assert read() is None
    path.chmod(0o600)
    path.rename(tmp_path / "other")
    path.symlink_to("other")
    assert read() is None
    path.unlink()
    os.mkfifo(path)
    assert read() is None


def test_without_a_place_to_write_the_answer_stays_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "below", Path("/proc/nowhere"), None):
        store = Store(folder)
        with store.locked(lambda: False):
            store.write(example())
        assert not store.is_written
        assert Store(folder).read(example().key) == example()
    assert "tried again at the next start" in caplog.text


def test_the_newest_sixteen_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(20):
        store.write(example(key={"n": str(number)}))
    assert store.is_written
    kept = json.loads((tmp_path / "engines.json").read_text())["reports"]
    assert [report["key"]["n"] for report in kept] == [str(n) for n in range(19, 3, -1)]


def test_no_change_of_the_file_is_lost_where_threads_make_them_at_once(tmp_path: Path) -> None:
    reports = [example(key={"n": str(number)}) for number in range(8)]
    changes: list[Callable[[Store], None]] = [lambda store, each=each: store.write(each) for each in reports]  # type: ignore[misc]
    changes.append(lambda store: store.write_frame_sizes([(1, 2)]))
    with ThreadPoolExecutor(len(changes)) as threads:
        for change in changes:
            threads.submit(change, Store(tmp_path))
    kept = json.loads((tmp_path / "engines.json").read_text())
    assert {report["key"]["n"] for report in kept["reports"]} == {str(number) for number in range(8)}
    assert kept["frame_sizes"] == [[1, 2]]


def test_where_the_answer_is_kept() -> None:
    assert state_folder({"STATE_DIRECTORY": "/s:/t", "XDG_STATE_HOME": "/x"}) == Path("/s")
    assert state_folder({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/streamdet")
    assert state_folder({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/state/streamdet")
    assert state_folder({}) is None


def test_a_stop_ends_the_trial_at_once_and_all_its_processes(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    asked = threading.Event()
    trial = Trial(DetectorConfig(), Store(None), command("all=hang", f"pidfile={pidfile}"), stopping=asked.is_set)
    children: list[int] = []

    def stop() -> None:
        wait_until(lambda: pidfile.exists() and _children_of(int(pidfile.read_text() or 0)), "it has forked")
        children.extend(_children_of(int(pidfile.read_text())))
        asked.set()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with trial, pytest.raises(Interrupted):
        trial.report()
    join(thread)
    assert children
    wait_until(lambda: not any(map(_lives, children)), "what the tester forked ends with it")


def test_the_tester_ends_with_its_parent(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    code = (
        "import sys; from streamdet.config import DetectorConfig; from streamdet.detector.state import Store\n"
        "from streamdet.detector.trial import Trial\n"
        "with Trial(DetectorConfig(), Store(None), sys.argv[1:]) as trial: trial.report()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *command("all=hang", f"pidfile={pidfile}")])
    wait_until(lambda: pidfile.exists() and pidfile.read_text(), "the tester begins")
    tester = int(pidfile.read_text())
    wait_until(lambda: _children_of(tester), "it has forked")
    processes = [tester, *_children_of(tester)]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(_lives, processes)), "all of it ends")


def test_two_processes_do_not_try_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    reports: list[Report | None] = []

    def second() -> None:
        with Trial(DetectorConfig(), Store(tmp_path), ["/nonexistent"]) as trial:
            reports.append(trial.report())

    with Trial(DetectorConfig(), store, command(SLOW), budget_seconds=1) as trial:
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        first = trial.report()
    join(thread)
    assert reports == [first]


def test_a_tester_that_cannot_begin_is_said(caplog: pytest.LogCaptureFixture) -> None:
    code = "import sys; sys.exit('no libtorch here')"
    for broken in (["/nonexistent"], [sys.executable, "-c", code], [sys.executable, "-c", "print('}')"]):
        with Trial(DetectorConfig(), Store(None), broken) as trial:
            assert trial.report() is None
    assert "engines cannot be tried: [Errno 2]" in caplog.text
    assert "engines cannot be tried: no libtorch here" in caplog.text
    assert choose(DetectorConfig(), None).candidate == REFERENCE


def test_what_the_file_names_is_not_tried() -> None:
    assert needs_trial(DetectorConfig())
    assert needs_trial(DetectorConfig(engine="openvino"))
    assert needs_trial(DetectorConfig(precision="bf16"))
    assert not needs_trial(DetectorConfig(engine="openvino", precision="fp32", max_batch_size=8))
    assert not needs_trial(DetectorConfig(engine="torch", precision="bf16", device="cuda:0"))
    assert not needs_trial(DetectorConfig(engine="reference"))


def test_a_batch_size_that_the_file_leaves_open_is_tried_whatever_else_it_names() -> None:
    config = DetectorConfig(engine="openvino", precision="int8", device="cpu")
    assert needs_trial(config)
    choice = choose(config, REPORT)
    assert (choice.candidate.name, choice.max_batch_size, choice.is_proven) == ("openvino int8", 1, True)
    # What did not agree, or was too slow to be timed, runs all the same if the file names it.
    config = DetectorConfig(engine="openvino", precision="bf16", device="cpu")
    choice = choose(config, REPORT)
    assert (choice.candidate.name, choice.max_batch_size, choice.is_proven) == ("openvino bf16", 1, False)
    choice = choose(config.model_copy(update={"max_batch_size": 4}), REPORT)
    assert (choice.max_batch_size, choice.is_proven) == (4, False)


def example(key: dict[str, str] | None = None, **fps: dict[tuple[int, int], float]) -> Report:
    """A report; for each candidate ("torch_fp32") frames per second by batch and workers."""
    results = [
        Result(
            candidate=Candidate.model_validate(dict(zip(("engine", "precision"), name.split("_"), strict=True))),
            outcome=Outcome.AGREES,
            timings=tuple(
                Timing(batch=batch, workers=workers, frames_per_second=rate, latency_seconds=batch / rate)
                for (batch, workers), rate in rates.items()
            ),
        )
        for name, rates in fps.items()
    ]
    return Report(key=key or {"a": "b"}, device="cpu", results=tuple(results), seconds=1, measured_at=1)


REPORT = example(
    torch_fp32={(1, 1): 10, (1, 2): 18, (8, 2): 20},
    torch_bf16={(1, 1): 21, (1, 2): 40, (8, 2): 42},
    openvino_fp32={(1, 2): 30},
    openvino_int8={(1, 1): 30, (1, 2): 41, (2, 2): 43, (8, 2): 43.5},
)


@pytest.mark.parametrize(
    ("given", "name", "batch", "workers"),
    [
        ({}, "torch bf16", 1, 2),  # int8 gains less than 5 %, and is less exact
        ({"workers": 1}, "openvino int8", 1, 1),
        ({"engine": "openvino"}, "openvino int8", 1, 2),  # larger batches gain little
        ({"engine": "openvino", "max_batch_size": 1}, "openvino int8", 1, 2),
        ({"precision": "fp32"}, "openvino fp32", 1, 2),
        ({"engine": "torch", "precision": "auto", "max_batch_size": 64}, "torch bf16", 1, 2),
    ],
)
def test_the_fastest_within_what_is_asked_for_is_taken(
    given: dict[str, Any], name: str, batch: int, workers: int
) -> None:
    choice = choose(DetectorConfig.model_validate(given), REPORT)
    assert (choice.candidate.name, choice.max_batch_size, choice.workers) == (name, batch, workers)


@pytest.mark.parametrize(
    ("wrong", "name", "is_proven"),
    [
        ({"torch bf16"}, "openvino int8", True),
        ({result.candidate.name for result in REPORT.results}, "torch fp32", False),
    ],
    ids=["one", "all"],
)
def test_a_wrong_answer_is_not_taken_however_fast_it_comes(wrong: set[str], name: str, *, is_proven: bool) -> None:
    results = [
        r.model_copy(update={"outcome": Outcome.WRONG}) if r.candidate.name in wrong else r for r in REPORT.results
    ]
    choice = choose(DetectorConfig(), REPORT.model_copy(update={"results": tuple(results)}))
    assert (choice.candidate.name, choice.is_proven) == (name, is_proven)


def test_a_batch_is_taken_where_it_gains_much_and_no_larger_than_that() -> None:
    """What is measured alone is more than what the daemon has of it beside captures."""
    report = example(torch_fp32={(1, 2): 20, (2, 2): 37, (4, 1): 39.5, (4, 2): 40, (8, 2): 41})
    choice = choose(DetectorConfig(), report)
    assert (choice.max_batch_size, choice.workers) == (2, 2)
    report = example(torch_fp32={(1, 2): 20, (2, 2): 30, (4, 1): 39.5, (4, 2): 40, (8, 2): 41})
    choice = choose(DetectorConfig(), report)
    assert (choice.max_batch_size, choice.workers) == (4, 1)


def test_no_batch_is_taken_that_would_make_events_late() -> None:
    # One frame takes 60 ms here: three of them and 50 ms are 231 ms. Four frames take 200 to 222 ms, eight 364.
    report = example(torch_fp32={(1, 2): 16.6, (2, 2): 17, (4, 2): 18.0, (8, 2): 22})
    choice = choose(DetectorConfig(), report)
    assert (choice.max_batch_size, choice.longest_batch_seconds) == (1, pytest.approx(0.231, abs=0.001))
    # Who sets a size wants it however long it takes.
    assert choose(DetectorConfig(max_batch_size=4), report).longest_batch_seconds is None
    report = example(torch_fp32={(1, 2): 16.6, (2, 2): 17, (4, 2): 20.0, (8, 2): 24})
    assert choose(DetectorConfig(), report).max_batch_size == 4


def test_a_batch_that_would_not_be_used_makes_no_engine_the_fastest() -> None:
    # Eight frames of torch take too long; OpenVINO is faster with those that both may use.
    report = example(
        torch_bf16={(1, 2): 40, (2, 2): 44, (4, 2): 46, (8, 2): 60},
        openvino_bf16={(1, 2): 44, (2, 2): 48, (4, 2): 50},
    )
    assert report.results[0].timings[-1].latency_seconds > 0.125
    choice = choose(DetectorConfig(), report)
    assert (choice.candidate.name, choice.max_batch_size) == ("openvino bf16", 2)


def test_one_that_compiles_long_is_timed_in_batches_too_if_it_is_among_the_fastest() -> None:
    behaviour = SLOW, "torch bf16=good:2", "openvino int8=compiles:2", "openvino bf16=compiles:6"
    report = tried(None, *behaviour, budget_seconds=3)
    batches = {r.candidate.name: {t.batch for t in r.timings if t.workers == 2} for r in report.results}
    assert batches["openvino int8"] >= {1, 2, 4}
    # Not one that is much slower.
    assert batches["openvino bf16"] == {1}


def test_why_others_were_left_out_is_said() -> None:
    left_out = dict(choose(DetectorConfig(), REPORT).left_out)
    assert left_out["torch fp32"] == "slower: 18 frames/s, not 40"
    assert left_out["openvino int8"].startswith("about as fast (41 frames/s), less exact")


def test_on_a_gpu_the_batch_is_bounded_and_not_measured() -> None:
    report = REPORT.model_copy(update={"device": "cuda:0"})
    assert choose(DetectorConfig(), report).max_batch_size == 8
    assert choose(DetectorConfig(max_batch_size=32), report).max_batch_size == 32


def person(score: float, x: float = 0.0, label: str = "person") -> Detection:
    return Detection(label, score, (x, 0.0, x + 10.0, 20.0))


@pytest.mark.parametrize(
    ("found", "good"),
    [
        ([person(0.9)], True),
        ([person(0.9009)], True),
        ([person(0.902)], False),
        ([person(0.9, 0.4)], True),
        ([person(0.9, 0.6)], False),
        ([person(0.9, label="car")], False),
        ([person(0.9), person(0.0505, 50)], True),  # just passes the threshold
        ([person(0.9), person(0.2, 50)], False),
        ([person(0.9), person(0.2, 3.33)], True),  # just escapes suppression
        ([], False),
    ],
)
def test_equal_is_equal_but_for_rounding(found: list[Detection], *, good: bool) -> None:
    assert compare([[person(0.9)]], [found], "cpu", exact=True)[0] is good
    assert compare([found], [[person(0.9)]], "cpu", exact=True)[0] is good


@pytest.mark.parametrize(
    ("score", "shift", "kept", "good"),
    [(0.85, 0.5, 50, True), (0.8, 0.5, 50, False), (0.9, 2.0, 50, False), (0.9, 0.0, 46, True), (0.9, 0.0, 35, False)],
    ids=["alike", "another score", "another box", "few missing", "many missing"],
)
def test_alike_is_what_keeps_nearly_all_detections(score: float, shift: float, kept: int, *, good: bool) -> None:
    wanted = [person(0.9, 50.0 * number) for number in range(50)]
    found = [person(score, 50.0 * number + shift) for number in range(kept)]
    assert compare([wanted], [found], "cpu", exact=False)[0] is good


@pytest.mark.usefixtures("_engines_known")
def test_the_real_engines_are_tried_and_the_answer_is_right(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Trial(DetectorConfig()) as trial:
        report = trial.report()
    assert report is not None
    outcomes = {result.candidate.name: result.outcome for result in report.results}
    assert len(outcomes) == 5
    assert outcomes["torch fp32"] is outcomes["openvino fp32"] is Outcome.AGREES, report
    assert outcomes["openvino int8"] in {Outcome.AGREES, Outcome.TOO_SLOW}
    choice = choose(DetectorConfig(), report)
    assert choice.is_proven
    assert result_of(report, choice.candidate).fps(8, 64) >= result_of(report, REFERENCE).fps(8, 64)


@pytest.mark.usefixtures("_engines_known")
def test_the_command_shows_the_answer() -> None:
    command_line = [sys.executable, "-m", "streamdet", "engines", "--json"]
    result = subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["known_before"] is True
    assert [r["verdict"] for r in found["results"]].count("fastest") == 1
    assert found["choice"]["max_batch_size"] in {1, 2, 4, 8}


def _children_of(process: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _lives(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(autouse=True)
def _instructions_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

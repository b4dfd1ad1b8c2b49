"""What the load of a machine makes of an engine is not remembered for good."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdet.config import DetectorConfig
from streamdet.detector.choice import REFERENCE, Candidate, Outcome, Report, Result, choose
from streamdet.detector.state import Store
from streamdet.detector.tester import Silence
from streamdet.detector.trial import Trial
from support.paths import SUPPORT
from support.waiting import wait_until

FAKES = SUPPORT / "servers" / "fake_engines.py"
INT8 = Candidate(engine="openvino", precision="int8")
# INT8 is the fastest by far, if it is not for what it does.
SLOW = "all=good:6"
FAST = "openvino int8=good:1"


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "_memory", {})


def start(folder: Path, *behaviour: str, **options: Any) -> Report:
    """What a daemon finds that starts here."""
    command = [sys.executable, "-P", str(FAKES), SLOW, *behaviour]
    with Trial(DetectorConfig(), Store(folder), command, budget_seconds=1, **options) as trial:
        report = trial.report()
    assert report is not None
    return report


def let_pass(folder: Path, seconds: float) -> None:
    """Makes what is kept older."""
    path = folder / "engines.json"
    kept = json.loads(path.read_text())
    kept["reports"][0]["measured_at"] -= seconds
    path.write_text(json.dumps(kept))
    Store._memory.clear()


def outcome_of(report: Report, candidate: Candidate = INT8) -> Outcome:
    found = report.result(candidate)
    assert found is not None
    return found.outcome


def test_what_hung_is_tried_again_at_the_next_start_and_nothing_else_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(tmp_path, "openvino int8=hang", "openvino bf16=segfault", "silence=1")
    assert outcome_of(first) is Outcome.HUNG
    assert choose(DetectorConfig(), first).candidate != INT8
    assert "tried again at a later start, when this machine may be less busy: openvino int8: hung" in caplog.text
    # A crash is never forgiven, although it would agree now.
    let_pass(tmp_path, 100)
    second = start(tmp_path, FAST, f"tried={tmp_path / 'tried'}")
    assert json.loads((tmp_path / "tried").read_text()) == {"tried": ["torch fp32", "openvino int8"], "patience": 2}
    assert choose(DetectorConfig(), second).candidate == INT8
    assert outcome_of(second, Candidate(engine="openvino", precision="bf16")) is Outcome.CRASHED
    assert [r for r in second.results if r.candidate != INT8] == [r for r in first.results if r.candidate != INT8]
    # Now it is known.
    let_pass(tmp_path, 1e6)
    with Trial(DetectorConfig(), Store(tmp_path), ["/nonexistent"]) as trial:
        assert trial.report() is not None
        assert trial.is_known


def test_it_is_tried_four_times_with_more_patience_and_time_between_and_then_stays(tmp_path: Path) -> None:
    tried = tmp_path / "tried"
    start(tmp_path, "openvino int8=killed")
    for wait_seconds, patience in ((60, 2), (3600, 4), (86400, 8)):
        let_pass(tmp_path, wait_seconds - 50)
        start(tmp_path, FAST, f"tried={tried}")
        assert not tried.exists(), "it is too early"
        let_pass(tmp_path, 60)
        report = start(tmp_path, "openvino int8=killed", f"tried={tried}")
        assert json.loads(tried.read_text())["patience"] == patience
        assert outcome_of(report) is Outcome.OUT_OF_MEMORY
        tried.unlink()
    let_pass(tmp_path, 1e8)
    start(tmp_path, FAST, f"tried={tried}")
    assert not tried.exists()
    assert outcome_of(start(tmp_path, FAST, again=True)) is Outcome.AGREES


def test_one_that_is_far_too_slow_is_not_tried_again_even_if_the_machine_was_busy(tmp_path: Path) -> None:
    with spinners(2 * len(os.sched_getaffinity(0)), priority=5):
        report = start(tmp_path, "all=good:2", "openvino int8=good:400")
    assert outcome_of(report) is Outcome.TOO_SLOW
    assert report.doubtful == ()


@pytest.mark.parametrize("outcome", [Outcome.WRONG, Outcome.TOO_SLOW])
def test_what_was_wrong_or_slow_is_tried_again_only_if_the_machine_was_busy(tmp_path: Path, outcome: Outcome) -> None:
    report = start(tmp_path, FAST)
    assert report.doubtful == ()
    for is_disturbed, expected in ((False, outcome), (True, Outcome.AGREES)):
        found = Result(candidate=INT8, outcome=outcome, reason="x", is_disturbed=is_disturbed)
        results = tuple(found if result.candidate == INT8 else result for result in report.results)
        Store(tmp_path).write(report.model_copy(update={"results": results, "measured_at": 1.0}))
        assert outcome_of(start(tmp_path, FAST)) is expected


def test_where_torch_gives_no_answer_no_other_is_taken_uncompared(tmp_path: Path) -> None:
    report = start(tmp_path, "torch fp32=segfault", FAST)
    assert outcome_of(report, REFERENCE) is Outcome.CRASHED
    assert {outcome_of(report, result.candidate) for result in report.results[1:]} == {Outcome.NOT_COMPARED}
    assert not choose(DetectorConfig(), report).is_proven
    assert Store(tmp_path).read(report.key) is None, "it is tried again at the next start"


def test_a_trial_that_takes_too_long_leaves_the_rest_to_a_later_start(tmp_path: Path) -> None:
    first = start(tmp_path, "torch bf16=hang", "longest=5")
    outcomes = [result.outcome for result in first.results]
    assert outcomes == [Outcome.AGREES, *[Outcome.NOT_TRIED] * 4]
    assert first.results[1].reason == first.results[4].reason == "the trial took longer than 5 s"
    assert choose(DetectorConfig(), first).candidate == REFERENCE
    let_pass(tmp_path, 100)
    second = start(tmp_path, FAST)
    assert outcome_of(second) is Outcome.AGREES
    assert second.doubtful == ()


def test_a_trial_again_that_cannot_begin_leaves_the_answer_as_it_was(tmp_path: Path) -> None:
    first = start(tmp_path, "openvino int8=killed")
    let_pass(tmp_path, 100)
    for broken in (["/nonexistent"], [sys.executable, "-P", "-c", "import sys; sys.exit('no libtorch here')"]):
        with Trial(DetectorConfig(), Store(tmp_path), broken) as trial:
            found = trial.report()
        assert found is not None
        assert found.results == first.results
        assert found.repeats == 0


def test_a_candidate_that_others_disturb_says_so(tmp_path: Path) -> None:
    # Other tests that run beside this one go first.
    with spinners(2 * len(os.sched_getaffinity(0)), priority=5):
        report = start(tmp_path, "all=good:20")
    assert all(result.is_disturbed for result in report.results), report


def test_a_process_that_waits_for_a_core_is_not_silent() -> None:
    core = min(os.sched_getaffinity(0))
    with spinners(2, core), spinners(1, core, priority=19) as (starved,), sleeper() as (asleep,):
        silences = [Silence(starved), Silence(asleep)]
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 3, "three seconds pass")
        (starved_counts, passed), (asleep_counts, _) = (silence.seconds() for silence in silences)
    assert passed > 3
    assert starved_counts < passed / 2
    assert asleep_counts > passed / 2


def test_the_thread_that_waited_the_longest_counts_since_the_last_word(tmp_path: Path) -> None:
    now = 0.0
    silence = Silence(7, tmp_path, lambda: now)
    now = 5.0
    assert silence.seconds() == (5.0, 5.0), "a kernel that counts no waits"
    for thread, waited_seconds in (("7", 1), ("8", 3)):
        (tmp_path / "7" / "task" / thread).mkdir(parents=True)
        (tmp_path / "7" / "task" / thread / "schedstat").write_text(f"99 {waited_seconds}000000000 4\n")
    (tmp_path / "7" / "task" / "9").mkdir()
    assert silence.seconds() == (2.0, 5.0)
    silence.begin()
    now = 6.0
    assert silence.seconds() == (1.0, 1.0)


@contextlib.contextmanager
def children(code: str, count: int = 1) -> Iterator[tuple[int, ...]]:
    """Ids of processes that have begun, and end with the block."""
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(count):
            command = [sys.executable, "-P", "-c", code]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            processes.append(process.pid)
        yield tuple(processes)


def spinners(
    count: int, core: int | None = None, priority: int = 0
) -> contextlib.AbstractContextManager[tuple[int, ...]]:
    cores = os.sched_getaffinity(0) if core is None else {core}
    code = f"import os; os.nice({priority}); os.sched_setaffinity(0, {cores}); print(flush=True)\nwhile True: pass"
    return children(code, count)


def sleeper() -> contextlib.AbstractContextManager[tuple[int, ...]]:
    return children("import time; print(flush=True); time.sleep(600)")

"""What cameras, networks and media do to streams: state, reason, metrics, ledger, recovery, the others, no secret.

`faults/table.py` is the matrix. All its faults happen side by side to the streams of one real daemon
(`faults/scene.py`), once for all tests, whichever processes they run in; each test looks at what was seen of one.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import pickle
from collections.abc import Sequence

import pytest

from streamdet.types import Reason, State, StateEvent
from support.capturing import SECRET
from support.faults.scene import FRAMES, STRIKES_SECONDS, Fault, Recording, reasons, record
from support.faults.table import FAULTS

pytestmark = pytest.mark.slow

_GAP_SECONDS = 3.0
_DROPS = ("superseded", "stale", "rate_limited", "decode_error", "internal_error", "shutdown", "damaged", "not_decoded")
_NEXT = {
    # Again where a key frame is waited for.
    State.CONNECTING: {State.CONNECTING, State.UP, State.DOWN},
    State.UP: {State.STALLED, State.DOWN},
    State.STALLED: {State.DOWN, State.UP},
    State.DOWN: {State.CONNECTING},
}

each = pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=pytest.mark.package(*fault.needs), id=fault.name) for fault in FAULTS]
)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """What happened; the first process that asks lets it happen, and leaves it to the others."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (shared / "faults.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = shared / "faults.pickle"
        if not kept.exists():
            found = record(tmp_path_factory.mktemp("scene"), FAULTS)
            kept.write_bytes(pickle.dumps(found))
        kept_recording: Recording = pickle.loads(kept.read_bytes())  # noqa: S301 - our own
    return kept_recording


@each
def test_fault_shows_as_what_it_is_and_is_overcome(recording: Recording, fault: Fault) -> None:
    story, states = recording.stories[fault.name], recording.since(fault.name)
    reported = [f"{event.state} {event.reason or ''} {event.detail}" for event in states]
    assert reasons(states) == fault.down, reported
    assert (State.STALLED in {event.state for event in states}) == fault.stalls, reported
    assert story.done, reported
    if fault.returns:
        assert recording.states(fault.name)[-1].state is State.UP
        assert story.recovered - max(story.began, story.lifted) <= longest_recovery_seconds(states)


def longest_recovery_seconds(states: Sequence[StateEvent]) -> float:
    """The wait before the next try, twice as long after each that failed, and what a busy machine takes to connect."""
    failures = sum(event.state is State.DOWN for event in states)
    return 1.2 * 2 ** max(failures - 1, 0) + 12


@each
def test_states_follow_one_another_and_reconnects_are_counted(recording: Recording, fault: Fault) -> None:
    states = recording.states(fault.name)
    assert states[0].state is State.CONNECTING
    for before, after in itertools.pairwise(states):
        assert after.state in _NEXT[before.state], (before, after)
        assert after.since >= before.since
    first_end = next((n for n, event in enumerate(states) if event.state in (State.DOWN, State.STALLED)), len(states))
    for number, event in enumerate(states):
        assert (event.reason is None) == (event.state is State.UP or number < first_end), event
    waits = [event for event in states if event.detail == "waiting for a key frame"]
    counted = {reason: recording.end[fault.name]["streamdet_stream_reconnects_total", reason] for reason in Reason}
    tries = [event.reason for event in states[1:] if event.state is State.CONNECTING and event not in waits]
    assert counted == {reason: tries.count(reason) for reason in Reason}


@each
def test_metrics_page_says_the_same_as_the_events(recording: Recording, fault: Fault) -> None:
    events = recording.seen.states[fault.name]
    seen = set()
    for before, sample in itertools.pairwise(recording.seen.samples):
        # A page is shown for a while, to all who ask; one that is new was made after the one before was shown.
        if sample.values == before.values:
            continue
        values = sample.values[fault.name]
        # A state may begin while the page is being made.
        ends = [event.since for event in events[1:]] + [float("inf")]
        meanwhile = [
            event for event, end in zip(events, ends, strict=True) if event.since <= sample.got and end >= before.asked
        ]
        is_in = [state for state in State if values["streamdet_stream_state", state]]
        assert len(is_in) == 1
        assert is_in[0] in {event.state for event in meanwhile}, (sample.asked, events)
        why = {reason for reason in Reason if ("streamdet_stream_reason", reason) in values}
        assert why <= {event.reason for event in meanwhile}, (sample.asked, events)
        seen |= why
    # What lasted long enough to be seen was seen.
    assert seen >= {event.reason for event, end in itertools.pairwise(events) if end.since - event.since > 3} - {None}


@each
def test_every_frame_is_accounted_for(recording: Recording, fault: Fault) -> None:
    check_ledger(recording, fault.name)
    for sample in recording.seen.samples:
        # A page of the first moment may show a stream of which not all is shown yet.
        assert sample.values[fault.name].get(("streamdet_frames_in_flight",), 0.0) >= 0


def check_ledger(recording: Recording, stream: str) -> None:
    """Counted by the daemon, and counted by the numbers that the events and frames themselves carry."""
    values, frames = recording.end[stream], recording.seen.frames.get(stream, [])
    captured, published = values["streamdet_frames_captured_total",], values["streamdet_frames_published_total",]
    dropped = sum(values["streamdet_frames_dropped_total", reason] for reason in _DROPS)
    assert values["streamdet_frames_in_flight",] == 0
    assert captured == published + dropped
    assert frames
    assert [frame.number for frame in frames] == list(range(frames[0].number, int(published) + 1))
    assert all(before.seq < after.seq for before, after in itertools.pairwise(frames))
    # The one in the queue and those in the detector may have been dropped at the end.
    assert captured - 2 <= frames[-1].seq <= captured


@each
def test_others_do_not_notice(recording: Recording, fault: Fault) -> None:
    story = recording.stories[fault.name]
    assert len(recording.bystanders) >= 2
    for bystander in recording.bystanders:
        assert [event.state for event in recording.states(bystander)] == [State.CONNECTING, State.UP]
        frames = recording.seen.frames[bystander]
        begin = max(story.began, frames[0].at)
        times = [begin, *(frame.at for frame in frames if begin < frame.at < story.done), story.done]
        assert max(after - before for before, after in itertools.pairwise(times)) < _GAP_SECONDS


@pytest.mark.parametrize("stream", ["bystander-http", "bystander-file"])
def test_healthy_streams_lose_nothing_unseen(recording: Recording, stream: str) -> None:
    check_ledger(recording, stream)
    assert recording.seen.gaps == 0


def test_size_of_the_picture_is_that_of_each_frame(recording: Recording) -> None:
    assert {frame.width for frame in recording.seen.frames["size-changes"]} == {64, 128}


@pytest.mark.parametrize("direction", ["back", "forward"])
@pytest.mark.parametrize(
    "kind", ["", pytest.param("-rtsp", marks=pytest.mark.package("gst-rtsp-server"))], ids=["http", "rtsp"]
)
def test_jumping_timestamps_do_not_move_the_time_of_capture(recording: Recording, direction: str, kind: str) -> None:
    name = f"times-go-{direction}{kind}"
    story, frames = recording.stories[name], recording.seen.frames[name]
    jumped = [frame for frame in frames if story.began + STRIKES_SECONDS < frame.at < story.lifted]
    assert len(jumped) >= FRAMES
    assert [frame for frame in frames if abs(frame.at - frame.captured_at) >= 5] == []
    times = [frame.pts_seconds for frame in frames if frame.pts_seconds is not None]
    # A jump back looks like a jump forward where the counter, of 33 or 32 bits, has gone round.
    assert max(times) - min(times) > 4000


def test_daemon_stays_small_and_ends_in_time_and_says_no_secret(recording: Recording) -> None:
    seen = recording.seen
    streams = len(recording.end)
    assert seen.exit_code == 0
    assert seen.end_seconds < 5
    assert seen.peak_bytes < 400 << 20
    assert seen.threads < streams + 40
    assert seen.descriptors < 2 * streams + 60
    everything = "".join(seen.said)
    assert len(everything) > 10_000
    assert SECRET not in everything
    assert "Traceback" not in everything

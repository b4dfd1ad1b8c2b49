"""Puts the events of each topic in order, and asks for those that are missing: what `subscribe` does with `replay`.

`OrderedRecovery` decides what to hand out and what to ask for; `PendingRequests` decides when to send a request, and
when to send it again. Neither sends nor receives: `message` and `answer` take what came, `requests` returns what to
send, `due` when to call it again, and `ready` holds the items to hand out. So both work for threads and for asyncio.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from streamdet import wire
from streamdet.client.gaps import MAX_TOPICS, Gap, GapDetector, Item, Labels, Restart
from streamdet.errors import EndpointError
from streamdet.types import PreviewEvent
from streamdet.wire import Event
from streamdet.wire.replay import (
    MAX_PREFIXES,
    MAX_REQUEST_BYTES,
    Refused,
    Replayed,
    ReplayRequest,
    Snapshot,
    SnapshotRequest,
    decode_answer,
    encode_request,
)

_MAX_HELD_EVENTS = 10_000
# Pauses longer than this do not count as waiting for an answer: nothing comes while the daemon is away.
_AWAY_SECONDS = 5.0
# A request is always given up after this long.
_GIVE_UP_ANYWAY_SECONDS = 60.0
# Once the daemon has failed to answer, events are held back only this long, until it answers again.
_GIVE_UP_SOON_SECONDS = 0.5
# A reader that comes so much later than it was to be called again was busy elsewhere, and heard no answer meanwhile.
_BUSY_SECONDS = 1.0
_PAST_EPOCHS = 16
_UNLISTED_TO_FORGET = 3
_MAX_ASKED = 8
_ASK_AGAIN_SECONDS = 2.0
# A busy daemon answers late; asking more often would add to its load.
_MAX_ASK_AGAIN_SECONDS = 8.0
_REFUSED_SECONDS = 0.25


Position = Mapping[str, tuple[str, int]]
"""How far a subscriber has come: by topic, epoch and `seq` of the last event that it was given; 0 for none yet."""


@dataclass(frozen=True, slots=True)
class RecoveryTimes:
    """How long to wait for what may be lost.

    Attributes:
        give_up_seconds: a request is given up when events have come for this long without an answer to any request.
        check_seconds: how often the daemon is asked for its newest numbers: if the last event of a topic is lost, no
            later one shows it.
        on_its_way_seconds: how long a published event may take to arrive.
    """

    give_up_seconds: float = 10.0
    check_seconds: float = 5.0
    on_its_way_seconds: float = 1.0


class OrderedRecovery:
    """Turns messages and answers into events: in order, each once; a `Gap` stands for what the daemon no longer keeps.

    Begins with the newest event of each topic, where an earlier subscription has stopped, or with what is published
    from now on. The daemon does not keep previews: their gaps are only reported.

    Args:
        topics: prefixes of the topics that are subscribed to.
        labels: labels of the detections, objects and alerts to keep; None for all.
        replay_endpoint: where the answers come from, for the error message.
        times: how long to wait.
        resume: `position` of an earlier subscription, after which to go on; None to begin with the newest events, an
            empty one with what is published from now on.

    Attributes:
        ready: items to hand out, in order, with `take`.
    """

    def __init__(
        self,
        topics: Sequence[str],
        labels: Iterable[str] | None,
        replay_endpoint: str,
        times: RecoveryTimes | None = None,
        resume: Position | None = None,
    ) -> None:
        self.ready: deque[Item] = deque()
        self._labels = Labels(labels)
        self._previews = GapDetector(labels)
        self._prefixes = tuple(topics)
        self._replay_endpoint = replay_endpoint
        self._times = times or RecoveryTimes()
        self._topics: dict[str, _Topic] = {}
        self._listed: set[str] = set()
        self._early: list[Event] = []
        self._early_since = math.inf
        self._started = False
        self._is_reachable = False
        # Seconds during which events came, until now and until the last answer.
        self._heard_at = -math.inf
        self._heard_seconds = self._answered_at_seconds = 0.0
        self._held = 0
        self._pending = PendingRequests()
        self._check_at = math.inf
        self._called_by = math.inf
        self._position: dict[str, tuple[str, int]] = {}
        for name, (epoch, seq) in (resume or {}).items():
            if name.startswith(self._prefixes):
                self._begin(name, epoch, seq + 1)
        # Topics that are not in the position have begun since, in this epoch at the earliest.
        self._resumed_epoch = next(reversed(self._position.values()))[0] if self._position else None
        self._begins_now = resume is not None and not self._position
        self._pending.ask(None, SnapshotRequest(0, self._prefixes_to_ask(), with_events=resume is None), 0.0)

    def take(self) -> Item:
        """Hands out the next item of `ready`, and counts it as handed out."""
        item = self.ready.popleft()
        if isinstance(item, Gap | Restart):
            name = item.topic
            epoch = self._position[name][0] if name in self._position else ""
            place = (item.epoch, 0) if isinstance(item, Restart) else (epoch, item.first + item.count - 1)
        else:
            name, place = wire.topic_of(item), (item.epoch, item.seq)
        self._reached(name, place)
        return item

    def position(self) -> dict[str, tuple[str, int]]:
        """How far the items that were handed out reach: who resumes there misses nothing and gets nothing twice.

        Of what is published from now on it is empty until the daemon has listed all topics: those that are missing
        would be taken for new ones.
        """
        return {} if self._begins_now and not self._started else dict(self._position)

    @property
    def held(self) -> int:
        """How many events wait for those before them."""
        return self._held

    @property
    def is_full(self) -> bool:
        """Whether too many events are held back to read more messages."""
        return self._held >= _MAX_HELD_EVENTS

    def message(self, parts: Sequence[bytes], now: float) -> None:
        """Takes a message that was published; `now` is its arrival in monotonic seconds.

        Raises:
            WireError: it is not an event.
        """
        silent_seconds = now - self._heard_at
        if silent_seconds < _AWAY_SECONDS:
            self._heard_seconds += silent_seconds
        elif silent_seconds < math.inf:
            self._prolong(silent_seconds - _AWAY_SECONDS)
            self._called_by += silent_seconds - _AWAY_SECONDS
        self._heard_at = now
        event = wire.from_message(parts)
        if isinstance(event, PreviewEvent):
            self._previews.event(event)
            self.ready.extend(self._previews.ready)
            self._previews.ready.clear()
        elif not self._started:
            self._early.append(event)
            self._held += 1
            self._early_since = min(self._early_since, now)
        else:
            self._take(event, now)

    def answer(self, parts: Sequence[bytes], now: float) -> None:
        """Takes an answer of the replay socket.

        Raises:
            WireError: it is not an answer, or holds something other than events.
        """
        answer = decode_answer(parts)
        pending = self._pending.get(answer.id)
        self._is_reachable, self._answered_at_seconds = True, self._heard_seconds
        if pending is None:
            return
        if isinstance(answer, Refused):
            self._pending.refused(pending, now)
        elif isinstance(answer, Snapshot) and isinstance(pending.request, SnapshotRequest):
            self._pending.done(answer.id)
            self._take_snapshot(answer, pending.request, now)
        elif isinstance(answer, Replayed) and pending.topic is not None and answer.topic == pending.topic.name:
            self._take_replayed(answer, pending, now)

    def requests(self, now: float) -> list[bytes]:
        """The requests to send now; also gives up those that have been pending for too long.

        Raises:
            EndpointError: events come, but no answer.
        """
        if now - self._called_by > _BUSY_SECONDS:
            self._prolong(now - self._called_by)
        if not self._started and not self._is_reachable and now - self._early_since > self._times.give_up_seconds:
            message = (
                f"events come, but nothing answers at {self._replay_endpoint}; is replay switched on in the daemon?"
            )
            raise EndpointError(message)
        self._give_up(now)
        self._check(now)
        requests = self._pending.requests(now)
        self._called_by = max(now, self.due())
        return requests

    def due(self) -> float:
        """When to call `requests` again at the latest, in monotonic seconds."""
        due = self._pending.due()
        if not self._is_reachable:
            blocked = (topic.blocked_since for topic in self._pending.topics())
            due = min([due, *(since + _GIVE_UP_SOON_SECONDS for since in blocked)])
        return min(max(due, self._pending.not_before), self._check_at)

    def _reached(self, name: str, place: tuple[str, int]) -> None:
        """Notes how far a topic has come, unless it has been forgotten meanwhile; the newest stands last."""
        if self._position.pop(name, None) is not None:
            self._position[name] = place

    def _take(self, event: Event, now: float) -> None:
        name = wire.topic_of(event)
        topic = self._topics.get(name)
        if topic is None:
            # The snapshot did not list it, so it began later.
            topic = self._begin(name, event.epoch, 1)
        if not topic.held and not topic.asked and event.epoch == topic.epoch and event.seq == topic.next_seq:
            self._hand_out(topic, event)
            return
        topic.held.append(event)
        self._held += 1
        self._advance(topic, now)

    def _advance(self, topic: _Topic, now: float) -> None:
        """Hands out the held events that are in order, and asks for those missing before the next."""
        while topic.held and not topic.asked:
            event = topic.held[0]
            if event.epoch == topic.epoch and event.seq > topic.next_seq:
                self._ask_for(topic, event.seq - 1, now)
                return
            if event.epoch != topic.epoch and event.epoch not in topic.past:
                self._ask_for(topic, None, now)
                return
            topic.held.popleft()
            self._held -= 1
            if event.epoch == topic.epoch and event.seq == topic.next_seq:
                self._hand_out(topic, event)

    def _forget_unlisted(self, epoch: str) -> None:
        """Forgets topics that the daemon no longer lists, and those of past epochs where they are many.

        A topic that has just begun may be missing in a list that was on its way.
        """
        of_past = 0
        for topic in list(self._topics.values())[::-1]:
            if topic.held or topic.asked or topic.name in self._listed:
                topic.unlisted = 0
            elif topic.epoch == epoch:
                topic.unlisted += 1
            else:
                of_past += 1
            if topic.unlisted >= _UNLISTED_TO_FORGET or of_past > MAX_TOPICS:
                del self._topics[topic.name]
                self._position.pop(topic.name, None)

    def _hand_out(self, topic: _Topic, event: Event) -> None:
        topic.next_seq = event.seq + 1
        topic.blocked_since = math.inf
        kept = self._labels.apply(event)
        if not kept and not self.ready:
            self._reached(topic.name, (event.epoch, event.seq))
        self.ready.extend(kept)

    def _report_gap(self, topic: _Topic, next_seq: int) -> None:
        if next_seq > topic.next_seq:
            missing = next_seq - topic.next_seq
            self.ready.append(Gap(_stream_of(topic.name), topic.name, topic.next_seq, missing))
            topic.next_seq = next_seq

    def _report_restart(self, topic: _Topic, epoch: str, *, is_complete: bool) -> None:
        self.ready.append(Restart(_stream_of(topic.name), topic.name, topic.epoch, epoch, is_complete))
        topic.past.append(topic.epoch)
        topic.epoch, topic.next_seq = epoch, 1

    def _take_replayed(self, answer: Replayed, pending: PendingRequest, now: float) -> None:
        topic, request = pending.topic, pending.request
        if topic is None or not isinstance(request, ReplayRequest) or answer.epoch != topic.epoch:
            return
        is_progress = answer.next_seq > request.from_seq or (answer.next_epoch or topic.epoch) != topic.epoch
        if topic.held and not is_progress:
            pending.is_fruitless = True
            return  # it is sent again, and given up in the end
        self._pending.done(answer.id)
        topic.asked = 0
        for payload in answer.events:
            event = wire.decode(payload, topic.name.encode())
            if event.epoch == topic.epoch and event.seq >= topic.next_seq:
                self._report_gap(topic, event.seq)
                self._hand_out(topic, event)
        self._report_gap(topic, answer.next_seq)
        topic.blocked_since = math.inf
        if answer.more and is_progress:
            self._ask_for(topic, request.to_seq, now)
            return
        if answer.next_epoch is not None and answer.next_epoch != topic.epoch:
            self._report_restart(topic, answer.next_epoch, is_complete=answer.end_is_known)
            if not topic.held:
                self._ask_for(topic, None, now)
        self._advance(topic, now)

    def _take_snapshot(self, answer: Snapshot, request: SnapshotRequest, now: float) -> None:
        numbers = {name: seq for name, seq in answer.next_seqs.items() if name.startswith(self._prefixes)}
        self._listed = numbers.keys() | (self._listed if request.after else set())
        if self._started:
            for name, next_seq in numbers.items():
                topic = self._topics.get(name) or self._begin(name, answer.epoch, 1)
                topic.expected = (answer.epoch, next_seq, now)
        elif self._resumed_epoch is not None:
            self._resume_listed(numbers, self._resumed_epoch, answer.epoch, now)
        else:
            self._begin_with_newest(numbers, answer)
        if answer.more_after is not None:
            self._pending.ask(None, replace(request, after=answer.more_after), now)
            return
        if self._started:
            self._expect_unlisted(answer.epoch, now)
            self._forget_unlisted(answer.epoch)
        # Soon for the first time: the subscription may have reached the daemon after the request.
        self._check_at = now + self._times.on_its_way_seconds
        if not self._started:
            if self._resumed_epoch is not None:
                self._resume_unlisted(self._resumed_epoch, answer.epoch, now)
            self._started = True
            early, self._early = self._early, []
            self._held -= len(early)
            for event in early:
                self._take(event, now)

    def _begin_with_newest(self, numbers: Mapping[str, int], answer: Snapshot) -> None:
        for name, next_seq in numbers.items():
            self._begin(name, answer.epoch, next_seq)
        for payload in answer.events:
            event = wire.decode(payload)
            topic = self._topics.get(wire.topic_of(event))
            if topic is not None and topic.epoch == event.epoch and event.seq == topic.next_seq - 1:
                self._position[topic.name] = (event.epoch, event.seq - 1)
                self.ready.extend(self._labels.apply(event))

    def _resume_listed(self, numbers: Mapping[str, int], resumed_epoch: str, epoch: str, now: float) -> None:
        """Asks for what has come since on the topics that the daemon lists."""
        for name, next_seq in numbers.items():
            topic = self._topics.get(name) or self._begin(name, resumed_epoch, 1)
            if topic.epoch == epoch and topic.next_seq > next_seq:
                # The stream was removed and added again, and its events are numbered from 1 again.
                topic = self._begin(name, epoch, 1)
            if (topic.epoch, topic.next_seq) != (epoch, next_seq):
                self._ask_for(topic, None, now)

    def _resume_unlisted(self, resumed_epoch: str, epoch: str, now: float) -> None:
        """Asks for topics without an event in the present epoch: they may have had some in those before it."""
        if resumed_epoch != epoch:
            streams = {_stream_of(name) for name in self._topics}
            of_streams = (wire.topic(kind, stream) for stream in sorted(streams) for kind in wire.KINDS)
            for name in of_streams:
                if name not in self._topics and name.startswith(self._prefixes) and not name.startswith("preview/"):
                    self._begin(name, resumed_epoch, 1)
        for topic in self._topics.values():
            if topic.name not in self._listed and topic.epoch != epoch:
                self._ask_for(topic, None, now)

    def _expect_unlisted(self, epoch: str, now: float) -> None:
        """After a restart of the daemon, has each topic that it no longer lists asked for once.

        Its last events before the restart may not have come, and no later event will show that.
        """
        for topic in self._topics.values():
            if topic.name not in self._listed and epoch not in {topic.epoch, topic.asked_in}:
                topic.asked_in = epoch
                topic.expected = (epoch, 1, now)

    def _begin(self, name: str, epoch: str, next_seq: int) -> _Topic:
        """Begins a topic with the event of this number."""
        topic = self._topics[name] = _Topic(name, epoch, next_seq)
        self._position[name] = (epoch, next_seq - 1)
        return topic

    def _check(self, now: float) -> None:
        """Asks from time to time for the newest number of each topic, and then for the events that are missing."""
        if now < self._check_at:
            return
        self._check_at = now + self._times.check_seconds
        expected = [topic for topic in self._topics.values() if topic.expected is not None]
        for topic in expected:
            epoch, next_seq, _ = topic.expected or ("", 0, 0.0)
            topic.expected = None
            is_behind = topic.next_seq < next_seq if topic.epoch == epoch else epoch not in topic.past
            if is_behind and not topic.held and not topic.asked:
                self._ask_for(topic, None, now)
        if not expected and not self._pending.has_snapshot:
            self._pending.ask(None, SnapshotRequest(0, self._prefixes_to_ask(), with_events=False), now)

    def _prolong(self, seconds: float) -> None:
        """Takes time in which the reader was busy elsewhere, or the daemon away, out of all waits.

        What the daemon was asked for may have been lost with it: it is asked again before it is given up.
        """
        self._heard_at += seconds
        self._early_since += seconds
        for topic in self._topics.values():
            topic.blocked_since += seconds
        self._pending.prolong(seconds)

    def _give_up(self, now: float) -> None:
        for number, pending in self._pending.all():
            topic = pending.topic
            if topic is None or not self._is_hopeless(pending, topic, now):
                continue
            self._pending.done(number)
            topic.asked, topic.blocked_since = 0, math.inf
            if not topic.held:
                continue
            event = topic.held[0]
            if event.epoch != topic.epoch:
                self._report_restart(topic, event.epoch, is_complete=False)
            self._report_gap(topic, event.seq)
            self._advance(topic, now)

    def _is_hopeless(self, pending: PendingRequest, topic: _Topic, now: float) -> bool:
        """Whether to stop waiting for an answer; the wait begins when the request is first sent."""
        if not self._is_reachable:
            return now - topic.blocked_since >= _GIVE_UP_SOON_SECONDS
        # While nothing is heard, the daemon may be away, and nothing comes that could be handed out instead.
        waited_seconds = min(now, self._heard_at + _AWAY_SECONDS) - pending.waits_since
        unanswered_seconds = self._heard_seconds - self._answered_at_seconds
        if min(waited_seconds, unanswered_seconds) >= self._times.give_up_seconds:
            self._is_reachable = False
            return True
        return waited_seconds >= (self._times.give_up_seconds if pending.is_fruitless else _GIVE_UP_ANYWAY_SECONDS)

    def _ask_for(self, topic: _Topic, to_seq: int | None, now: float) -> None:
        topic.blocked_since = min(topic.blocked_since, now)
        topic.asked = self._pending.ask(topic, ReplayRequest(0, topic.name, topic.next_seq, to_seq, topic.epoch), now)

    def _prefixes_to_ask(self) -> tuple[str, ...]:
        """The prefixes to ask for; empty, which means all topics, if they do not fit into a request."""
        is_short = sum(len(prefix.encode()) + 3 for prefix in self._prefixes) < MAX_REQUEST_BYTES // 2
        return self._prefixes if is_short and len(self._prefixes) <= MAX_PREFIXES else ()


@dataclass(slots=True)
class _Topic:
    """How far one topic has been handed out.

    Attributes:
        name: the topic.
        epoch: epoch of the next event to hand out.
        next_seq: number of the next event to hand out.
        held: events that came too early, in the order of their arrival.
        asked: id of the pending request; 0 for none.
        blocked_since: when the topic was asked for, with nothing handed out since; infinity while it is not blocked.
        expected: epoch and number that the daemon has reached, and when it reported them.
        asked_in: epoch of the daemon in which it was asked for although the daemon did not list it.
        past: epochs that have ended.
        unlisted: how often in a row the daemon did not list it.
    """

    name: str
    epoch: str
    next_seq: int
    held: deque[Event] = field(default_factory=deque)
    asked: int = 0
    blocked_since: float = math.inf
    expected: tuple[str, int, float] | None = None
    asked_in: str = ""
    past: deque[str] = field(default_factory=lambda: deque(maxlen=_PAST_EPOCHS))
    unlisted: int = 0


@dataclass(slots=True)
class PendingRequest:
    """One request that has no final answer yet.

    Attributes:
        request: as it is sent.
        topic: the topic that it asks for; None for a snapshot of all.
        send_at: when it is due, in monotonic seconds.
        is_sent: whether an answer may come.
        tries: how often it was sent since the daemon last refused it.
        waits_since: when it was first sent, in monotonic seconds.
        is_fruitless: whether an answer came that brought nothing.
    """

    request: SnapshotRequest | ReplayRequest
    topic: _Topic | None
    send_at: float
    is_sent: bool = False
    tries: int = 0
    waits_since: float = math.inf
    is_fruitless: bool = False


class PendingRequests:
    """All requests that have no final answer yet, by id; at most eight of them are sent at the same time.

    Attributes:
        not_before: nothing is sent earlier, in monotonic seconds, because the daemon has refused a request.
    """

    def __init__(self) -> None:
        self.not_before = 0.0
        self._last_id = 0
        self._by_id: dict[int, PendingRequest] = {}

    @property
    def has_snapshot(self) -> bool:
        """Whether a snapshot has been asked for."""
        return any(pending.topic is None for pending in self._by_id.values())

    def ask(self, topic: _Topic | None, request: SnapshotRequest | ReplayRequest, now: float) -> int:
        """Adds a request, which is sent as soon as there is room; returns its id."""
        self._last_id += 1
        self._by_id[self._last_id] = PendingRequest(replace(request, id=self._last_id), topic, now)
        return self._last_id

    def get(self, number: int) -> PendingRequest | None:
        """The request with this id; None where it is no longer pending."""
        return self._by_id.get(number)

    def all(self) -> list[tuple[int, PendingRequest]]:
        """Each request with its id, oldest first."""
        return list(self._by_id.items())

    def topics(self) -> Iterator[_Topic]:
        """The topics that are asked for."""
        return (pending.topic for pending in self._by_id.values() if pending.topic is not None)

    def done(self, number: int) -> None:
        """Removes a request that is answered or given up."""
        del self._by_id[number]

    def refused(self, pending: PendingRequest, now: float) -> None:
        """Postpones a request that the daemon has refused, and all others with it."""
        self.not_before = now + _REFUSED_SECONDS
        pending.is_sent, pending.send_at, pending.tries = False, self.not_before, 0

    def prolong(self, seconds: float) -> None:
        """Waits longer for the answers to all requests."""
        for pending in self._by_id.values():
            pending.waits_since += seconds

    def requests(self, now: float) -> list[bytes]:
        """The requests to send now."""
        if now < self.not_before:
            return []
        sent = sum(pending.is_sent for pending in self._by_id.values())
        requests = []
        for pending in self._by_id.values():
            if pending.send_at > now or (not pending.is_sent and sent >= _MAX_ASKED):
                continue
            sent += not pending.is_sent
            pending.is_sent = True
            pending.send_at = now + min(_ASK_AGAIN_SECONDS * 2**pending.tries, _MAX_ASK_AGAIN_SECONDS)
            pending.tries += 1
            pending.waits_since = min(pending.waits_since, now)
            requests.append(encode_request(pending.request))
        return requests

    def due(self) -> float:
        """When the next request is to be sent, in monotonic seconds; infinity for never."""
        dues = [pending.send_at for pending in self._by_id.values() if pending.is_sent]
        if len(dues) < _MAX_ASKED:
            dues += [pending.send_at for pending in self._by_id.values() if not pending.is_sent]
        return min(dues, default=math.inf)


def _stream_of(topic: str) -> str:
    return topic.split("/")[1]

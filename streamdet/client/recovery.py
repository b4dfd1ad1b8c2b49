"""Puts the events of each topic in order, and asks for those that are missing; what `subscribe` does with `heal`.

Nothing is sent or received here: `message` and `answer` take what came, `requests` says what to send, `due` when to
come back, and `ready` holds what can be handed out. So it works alike for threads and for asyncio.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

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
    Request,
    Snapshot,
    SnapshotRequest,
    decode_answer,
    encode_request,
)

_MAX_ASKED = 8
_ASK_AGAIN_SECONDS = 2.0
# A daemon that has much to read answers late: asking again and again would only add to it.
_MAX_ASK_AGAIN_SECONDS = 8.0
_REFUSED_SECONDS = 0.25

Subject = TypeVar("Subject")


@dataclass(slots=True)
class Asked(Generic[Subject]):
    """One request.

    Attributes:
        request: as it is sent.
        subject: what it is about; None for everything.
        send_at: when it is due, in monotonic seconds.
        is_sent: whether an answer may come.
        tries: how often it was sent since the daemon refused it.
        waits_since: when it was sent first, in monotonic seconds.
        is_fruitless: whether it was answered, and the answer brought nothing.
    """

    request: Request
    subject: Subject | None
    send_at: float
    is_sent: bool = False
    tries: int = 0
    waits_since: float = math.inf
    is_fruitless: bool = False


class PendingRequests(Generic[Subject]):
    """All requests that are under way, by their id.

    Attributes:
        not_before: nothing is sent earlier, in monotonic seconds; the daemon has asked for that.
    """

    def __init__(self) -> None:
        self.not_before = 0.0
        self._last_id = 0
        self._asked: dict[int, Asked[Subject]] = {}

    @property
    def asks_for_all(self) -> bool:
        """Whether one of them is about everything."""
        return any(asked.subject is None for asked in self._asked.values())

    def ask(self, subject: Subject | None, request: Request, now: float) -> int:
        """Has something asked for as soon as there is room; its id."""
        self._last_id += 1
        self._asked[self._last_id] = Asked(replace(request, id=self._last_id), subject, now)
        return self._last_id

    def get(self, number: int) -> Asked[Subject] | None:
        """One of them; None when it is not under way any more."""
        return self._asked.get(number)

    def all(self) -> list[tuple[int, Asked[Subject]]]:
        """Each with its id, the oldest first."""
        return list(self._asked.items())

    def subjects(self) -> Iterator[Subject]:
        """What they are about, each, but everything."""
        return (asked.subject for asked in self._asked.values() if asked.subject is not None)

    def done(self, number: int) -> None:
        """It was answered, or is given up."""
        del self._asked[number]

    def refused(self, asked: Asked[Subject], now: float) -> None:
        """The daemon wants to be asked later."""
        self.not_before = now + _REFUSED_SECONDS
        asked.is_sent, asked.send_at, asked.tries = False, self.not_before, 0

    def requests(self, now: float) -> list[bytes]:
        """What is to be sent now."""
        if now < self.not_before:
            return []
        sent = sum(asked.is_sent for asked in self._asked.values())
        requests = []
        for asked in self._asked.values():
            if asked.send_at > now or (not asked.is_sent and sent >= _MAX_ASKED):
                continue
            sent += not asked.is_sent
            asked.is_sent = True
            asked.send_at = now + min(_ASK_AGAIN_SECONDS * 2**asked.tries, _MAX_ASK_AGAIN_SECONDS)
            asked.tries += 1
            asked.waits_since = min(asked.waits_since, now)
            requests.append(encode_request(asked.request))
        return requests

    def due(self) -> float:
        """When the next one is to be sent, in monotonic seconds; infinity for never."""
        dues = [asked.send_at for asked in self._asked.values() if asked.is_sent]
        if len(dues) < _MAX_ASKED:
            dues += [asked.send_at for asked in self._asked.values() if not asked.is_sent]
        return min(dues, default=math.inf)


_MAX_HELD_EVENTS = 10_000
# An answer that does not come is given up when events have come for so long, and no other answer. While the daemon is
# away nothing comes, and no time is lost by waiting;
_GIVE_UP_SECONDS = 10.0
_AWAY_SECONDS = 5.0
# but whatever comes, it is given up when it has been asked for so long.
_GIVE_UP_ANYWAY_SECONDS = 60.0
# Once no one has answered for so long, events are not held up for as long again each time.
_GIVE_UP_SOON_SECONDS = 0.5
# The last event of a topic may be the one that is lost: no later one tells of it.
_CHECK_SECONDS = 5.0
# An event that has been published may be on its way for so long.
_ON_ITS_WAY_SECONDS = 1.0
_PAST_EPOCHS = 16
_UNLISTED_TO_FORGET = 3


@dataclass(slots=True)
class _Topic:
    """Where one topic stands.

    Attributes:
        epoch: of the next event to hand out.
        next_seq: its number.
        held: events that came too early, in the order of their arrival.
        asked: id of the request that is under way; 0 for none.
        blocked_since: when asking began without anything coming of it.
        expected: epoch and number that the daemon has reached, and when it said so.
        past: epochs that are over.
        unlisted: how often in a row the daemon did not name it.
    """

    name: str
    epoch: str
    next_seq: int
    held: deque[Event] = field(default_factory=deque)
    asked: int = 0
    blocked_since: float = math.inf
    expected: tuple[str, int, float] | None = None
    past: deque[str] = field(default_factory=lambda: deque(maxlen=_PAST_EPOCHS))
    unlisted: int = 0


class OrderedRecovery:
    """Makes events of messages and answers: in order, each once, and a `Gap` only for what no one has any more.

    Begins with the newest event of each topic that there is. Previews are not kept by anyone: they are counted only.

    Args:
        topics: beginnings of the topics that are subscribed to.
        labels: of the detections that are wanted; None for all.
        replay_endpoint: where the answers come from, for the message that there are none.

    Attributes:
        ready: what can be handed out.
    """

    def __init__(self, topics: Sequence[str], labels: Iterable[str] | None, replay_endpoint: str) -> None:
        self.ready: deque[Item] = deque()
        self._labels = Labels(labels)
        self._previews = GapDetector(labels)
        self._prefixes = tuple(topics)
        self._replay_endpoint = replay_endpoint
        self._topics: dict[str, _Topic] = {}
        self._listed: set[str] = set()
        self._early: list[Event] = []
        self._early_since = math.inf
        self._started = False
        self._is_reachable = False
        # Seconds in which events came, now and when the last answer came.
        self._heard_at = -math.inf
        self._heard_seconds = self._answered_at_seconds = 0.0
        self._held = 0
        self._asking: PendingRequests[_Topic] = PendingRequests()
        self._check_at = math.inf
        self._asking.ask(None, SnapshotRequest(0, self._asked_prefixes()), 0.0)

    @property
    def is_full(self) -> bool:
        """Whether so much is held back that no more messages should be read."""
        return self._held >= _MAX_HELD_EVENTS

    def message(self, parts: Sequence[bytes], now: float) -> None:
        """Takes a message that was published, at this time in monotonic seconds.

        Raises:
            WireError: it is no event.
        """
        if now - self._heard_at < _AWAY_SECONDS:
            self._heard_seconds += now - self._heard_at
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
        """Takes what the replay socket answered.

        Raises:
            WireError: it is no answer, or holds something else than events.
        """
        answer = decode_answer(parts)
        asked = self._asking.get(answer.id)
        self._is_reachable, self._answered_at_seconds = True, self._heard_seconds
        if asked is None:
            return
        if isinstance(answer, Refused):
            self._asking.refused(asked, now)
        elif isinstance(answer, Snapshot) and isinstance(asked.request, SnapshotRequest):
            self._asking.done(answer.id)
            self._take_snapshot(answer, asked.request, now)
        elif isinstance(answer, Replayed) and asked.subject is not None and answer.topic == asked.subject.name:
            self._take_replayed(answer, asked, now)

    def requests(self, now: float) -> list[bytes]:
        """What is to be sent now; also gives up what has been asked for too long.

        Raises:
            EndpointError: events come, and no one answers.
        """
        if not self._started and not self._is_reachable and now - self._early_since > _GIVE_UP_SECONDS:
            message = (
                f"events come, but no one answers at {self._replay_endpoint}; is replay switched on in the daemon?"
            )
            raise EndpointError(message)
        self._give_up(now)
        self._check(now)
        return self._asking.requests(now)

    def due(self) -> float:
        """When to call `requests` again, in monotonic seconds, though nothing has come."""
        due = self._asking.due()
        if not self._is_reachable:
            blocked = (topic.blocked_since for topic in self._asking.subjects())
            due = min([due, *(since + _GIVE_UP_SOON_SECONDS for since in blocked)])
        return min(max(due, self._asking.not_before), self._check_at)

    def _take(self, event: Event, now: float) -> None:
        name = wire.topic_of(event)
        topic = self._topics.get(name)
        if topic is None:
            # The snapshot did not have it: so it began after that.
            topic = self._topics[name] = _Topic(name, event.epoch, 1)
        if not topic.held and not topic.asked and event.epoch == topic.epoch and event.seq == topic.next_seq:
            self._hand_out(topic, event)
            return
        topic.held.append(event)
        self._held += 1
        self._advance(topic, now)

    def _advance(self, topic: _Topic, now: float) -> None:
        """Hands out what is in order, and asks for what is missing before the next."""
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
        """Forgets topics that the daemon itself does not know any more, and those of past epochs where they are many.

        One that has just begun may be missing in a list that was on its way.
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

    def _hand_out(self, topic: _Topic, event: Event) -> None:
        topic.next_seq = event.seq + 1
        topic.blocked_since = math.inf
        self.ready.append(self._labels.apply(event))

    def _tell_gap(self, topic: _Topic, next_seq: int) -> None:
        if next_seq > topic.next_seq:
            missing = next_seq - topic.next_seq
            self.ready.append(Gap(_stream_of(topic.name), topic.name, topic.next_seq, missing))
            topic.next_seq = next_seq

    def _tell_restart(self, topic: _Topic, epoch: str, *, is_complete: bool) -> None:
        self.ready.append(Restart(_stream_of(topic.name), topic.name, topic.epoch, epoch, is_complete))
        topic.past.append(topic.epoch)
        topic.epoch, topic.next_seq = epoch, 1

    def _take_replayed(self, answer: Replayed, asked: Asked[_Topic], now: float) -> None:
        topic, request = asked.subject, asked.request
        if topic is None or not isinstance(request, ReplayRequest) or answer.epoch != topic.epoch:
            return
        is_progress = answer.next_seq > request.from_seq or (answer.next_epoch or topic.epoch) != topic.epoch
        if topic.held and not is_progress:
            asked.is_fruitless = True
            return  # it will be asked again, and given up in the end
        self._asking.done(answer.id)
        topic.asked = 0
        for payload in answer.events:
            event = wire.decode(payload, topic.name.encode())
            if event.epoch == topic.epoch and event.seq >= topic.next_seq:
                self._tell_gap(topic, event.seq)
                self._hand_out(topic, event)
        self._tell_gap(topic, answer.next_seq)
        topic.blocked_since = math.inf
        if answer.more and is_progress:
            self._ask_for(topic, request.to_seq, now)
            return
        if answer.next_epoch is not None and answer.next_epoch != topic.epoch:
            self._tell_restart(topic, answer.next_epoch, is_complete=answer.end_is_known)
        self._advance(topic, now)

    def _take_snapshot(self, answer: Snapshot, request: SnapshotRequest, now: float) -> None:
        numbers = {name: seq for name, seq in answer.next_seqs.items() if name.startswith(self._prefixes)}
        self._listed = numbers.keys() | (self._listed if request.after else set())
        if self._started:
            for name, next_seq in numbers.items():
                topic = self._topics.setdefault(name, _Topic(name, answer.epoch, 1))
                topic.expected = (answer.epoch, next_seq, now)
        else:
            for name, next_seq in numbers.items():
                self._topics[name] = _Topic(name, answer.epoch, next_seq)
            for payload in answer.events:
                event = wire.decode(payload)
                topic = self._topics.get(wire.topic_of(event), _Topic("", "", 0))
                if topic.name and topic.epoch == event.epoch and event.seq == topic.next_seq - 1:
                    self.ready.append(self._labels.apply(event))
        if answer.more_after is not None:
            self._asking.ask(None, replace(request, after=answer.more_after), now)
            return
        if self._started:
            self._forget_unlisted(answer.epoch)
        # Soon for the first time: the subscription may have come in after the snapshot.
        self._check_at = now + _ON_ITS_WAY_SECONDS
        if not self._started:
            self._started = True
            early, self._early = self._early, []
            self._held -= len(early)
            for event in early:
                self._take(event, now)

    def _check(self, now: float) -> None:
        """Asks from time to time how far the daemon is, and then for what has not come of it."""
        if now < self._check_at:
            return
        self._check_at = now + _CHECK_SECONDS
        expected = [topic for topic in self._topics.values() if topic.expected is not None]
        for topic in expected:
            epoch, next_seq, _ = topic.expected or ("", 0, 0.0)
            topic.expected = None
            is_behind = topic.next_seq < next_seq if topic.epoch == epoch else epoch not in topic.past
            if is_behind and not topic.held and not topic.asked:
                self._ask_for(topic, None, now)
        if not expected and not self._asking.asks_for_all:
            self._asking.ask(None, SnapshotRequest(0, self._asked_prefixes(), with_events=False), now)

    def _give_up(self, now: float) -> None:
        for number, asked in self._asking.all():
            topic = asked.subject
            if topic is None or not self._is_hopeless(asked, topic, now):
                continue
            self._asking.done(number)
            topic.asked, topic.blocked_since = 0, math.inf
            if not topic.held:
                continue
            event = topic.held[0]
            if event.epoch != topic.epoch:
                self._tell_restart(topic, event.epoch, is_complete=False)
            self._tell_gap(topic, event.seq)
            self._advance(topic, now)

    def _is_hopeless(self, asked: Asked[_Topic], topic: _Topic, now: float) -> bool:
        """Whether to wait no longer for an answer; one that has not been asked for yet has lost no time."""
        if not self._is_reachable:
            return now - topic.blocked_since >= _GIVE_UP_SOON_SECONDS
        waited_seconds = now - asked.waits_since
        unanswered_seconds = self._heard_seconds - self._answered_at_seconds
        if min(waited_seconds, unanswered_seconds) >= _GIVE_UP_SECONDS:
            self._is_reachable = False
            return True
        return waited_seconds >= (_GIVE_UP_SECONDS if asked.is_fruitless else _GIVE_UP_ANYWAY_SECONDS)

    def _ask_for(self, topic: _Topic, to_seq: int | None, now: float) -> None:
        topic.blocked_since = min(topic.blocked_since, now)
        topic.asked = self._asking.ask(topic, ReplayRequest(0, topic.name, topic.next_seq, to_seq, topic.epoch), now)

    def _asked_prefixes(self) -> tuple[str, ...]:
        """What to ask for; everything where the list is too long for a request, and what is not wanted is left out."""
        is_short = sum(len(prefix.encode()) + 3 for prefix in self._prefixes) < MAX_REQUEST_BYTES // 2
        return self._prefixes if is_short and len(self._prefixes) <= MAX_PREFIXES else ()


def _stream_of(topic: str) -> str:
    return topic.split("/")[1]

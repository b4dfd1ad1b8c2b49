"""What the broker retains: for each stream its state, what is there, its entities in Home Assistant, its last alert."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter

from streamdet.bridges.mqtt.home_assistant import discovery_configs
from streamdet.bridges.mqtt.messages import Message, Source, Topics, check_topic, source_of, to_json
from streamdet.types import ObjectEvent, Reason, State, StateEvent

_Value = dict[str, Any] | str | bytes


@dataclass(frozen=True, slots=True)
class _Present:
    """An object that is there: its label, and the zones that it is in."""

    label: str
    zones: tuple[str, ...]


@dataclass(slots=True)
class _Stream:
    """What is known of one stream.

    Attributes:
        labels: that objects have had; each has a sensor.
        zones: of its geometry.
        objects: those that are there, by id.
        source: the newest event of its objects.
        state: the newest event of its state; None until one has come.
        heard_at: when one has come, or the connection to the daemon began, in monotonic seconds.
        published: the topics that the broker retains, and their values; None for a value of an earlier process.
        kept: values that stay until the stream goes, by topic; None as in `published`.
    """

    labels: dict[str, None] = field(default_factory=dict)
    zones: tuple[str, ...] = ()
    objects: dict[str, _Present] = field(default_factory=dict)
    source: Source | None = None
    state: StateEvent | None = None
    heard_at: float = 0.0
    published: dict[str, _Value | None] = field(default_factory=dict)
    kept: dict[str, bytes | None] = field(default_factory=dict)


def _check_text(text: str) -> str:
    text.encode()  # half of a surrogate pair is no text, though JSON can hold it
    return text


_Text = Annotated[str, AfterValidator(_check_text)]
_Topic = Annotated[str, AfterValidator(check_topic)]


@dataclass(frozen=True, slots=True)
class _Saved:
    """A stream as a process leaves it to the next one."""

    labels: list[_Text]
    zones: list[_Text]
    objects: dict[str, tuple[_Text, tuple[_Text, ...]]]
    source: Source | None
    topics: list[_Topic]
    kept: list[_Topic]


_SAVED = TypeAdapter(dict[_Text, _Saved])


class RetainedTopics:
    """Follows events, and yields the retained messages that have changed.

    Args:
        topics: where messages go.
        discovery_prefix: where Home Assistant finds entities; None for no discovery.
        version: of this program.
        labels: that every stream has a sensor for from its beginning.
    """

    def __init__(
        self, topics: Topics, discovery_prefix: str | None, version: str, labels: tuple[str, ...] = ()
    ) -> None:
        self._topics = topics
        self._discovery_prefix = discovery_prefix
        self._version = version
        self._labels = labels
        self._streams: dict[str, _Stream] = {}
        self._changed: set[str] = set()

    def object_event(self, event: ObjectEvent) -> None:
        """Notes what has become of an object; events may come again."""
        if event.phase == "end" and event.stream not in self._streams:
            return  # it may come after the stream was removed
        stream = self._stream(event.stream)
        stream.source = source_of(event)
        stream.labels[event.object.label] = None
        if event.phase == "end":
            stream.objects.pop(event.object.object_id, None)
        else:
            inside = tuple(visit.zone for visit in event.object.zones if visit.inside)
            stream.objects[event.object.object_id] = _Present(event.object.label, inside)

    def state_event(self, event: StateEvent, now: float, *, is_live: bool = False) -> None:
        """Notes the state of a stream and its zones.

        Args:
            event: the state.
            now: a moment in monotonic seconds.
            is_live: whether it has just been published; otherwise it may come from the past.
        """
        before = self._streams[event.stream].state if event.stream in self._streams else None
        is_old = before is not None and _is_older(event, before, is_live=is_live)
        if event.reason is Reason.REMOVED:
            # Of a cluster, the next owner may publish it already.
            if event.owner is None and not is_old:
                self._forget(event.stream)
            return
        stream = self._stream(event.stream)
        stream.heard_at = now
        if is_old:
            return  # a repetition that was waiting while newer ones came another way
        stream.state = event
        stream.zones = () if event.geometry is None else tuple(zone.name for zone in event.geometry.zones)

    def events_lost(self, stream: str) -> None:
        """Forgets which objects are there: ends may be among what was lost, and those that are there are updated."""
        self._stream(stream).objects.clear()

    def keep(self, stream: str, message: Message) -> None:
        """Notes a retained message that was published and stays until the stream goes."""
        found = self._stream(stream)
        found.kept[message.topic] = found.published[message.topic] = message.payload

    def daemon_connected(self, now: float) -> None:
        """From now on the daemon repeats the states of its streams."""
        for stream in self._streams.values():
            stream.heard_at = now

    def forget_silent(self, since: float) -> list[str]:
        """Forgets streams whose state was not repeated since then; returns their names."""
        silent = [name for name, stream in self._streams.items() if stream.heard_at < since]
        for name in silent:
            self._forget(name)
        return silent

    def republish(self) -> None:
        """All that is retained is published again: the broker may have lost it."""
        for name, stream in self._streams.items():
            stream.published = dict.fromkeys(stream.published)
            self._changed.add(name)

    def messages(self) -> list[Message]:
        """The messages that have changed since the call before."""
        messages = []
        for name in sorted(self._changed):
            stream = self._streams[name]
            values = self._values(name, stream)
            # First the configurations of entities: a program that follows them need not read empty states.
            gone = stream.published.keys() - values.keys()
            for topic in sorted(gone, key=lambda topic: (not topic.endswith("/config"), topic)):
                messages.append(Message(topic, b"", retain=True))
                del stream.published[topic]
            for topic, (value, source) in values.items():
                if value is not None and stream.published.get(topic) != value:
                    messages.append(Message(topic, _payload(value, source), retain=True))
                stream.published[topic] = value
            if not values:
                del self._streams[name]
        self._changed.clear()
        return messages

    def to_dict(self) -> dict[str, Any]:
        """What the next process must know."""
        return {
            name: {
                "labels": list(stream.labels),
                "zones": list(stream.zones),
                "objects": {key: [found.label, list(found.zones)] for key, found in stream.objects.items()},
                "source": None if stream.source is None else stream.source.to_dict(),
                "topics": sorted(stream.published.keys() | stream.kept.keys()),
                "kept": sorted(stream.kept),
            }
            for name, stream in self._streams.items()
        }

    def from_dict(self, saved: object) -> None:
        """Takes what the process before has saved.

        Raises:
            ValueError: it is not that.
        """
        self._streams = {
            name: _Stream(
                labels=dict.fromkeys(one.labels),
                zones=tuple(one.zones),
                objects={key: _Present(*found) for key, found in one.objects.items()},
                source=one.source,
                published=dict.fromkeys(one.topics),
                kept=dict.fromkeys(one.kept),
            )
            for name, one in _SAVED.validate_python(saved).items()
        }
        self._changed = set(self._streams)

    def _forget(self, name: str) -> None:
        """What the broker retains of a stream is deleted."""
        if name in self._streams:
            self._streams[name] = _Stream(published=self._streams[name].published)
            self._changed.add(name)

    def _stream(self, name: str) -> _Stream:
        self._changed.add(name)
        if name not in self._streams:
            self._streams[name] = _Stream(labels=dict.fromkeys(self._labels))
        return self._streams[name]

    def _values(self, name: str, stream: _Stream) -> dict[str, tuple[_Value | None, Source | None]]:
        """All that the broker is to retain of a stream, by topic; a value of None stays what it is."""
        if stream.state is None and not stream.labels and not stream.kept and not stream.zones:
            return {}
        of = self._topics.of
        values: dict[str, tuple[_Value | None, Source | None]] = {}
        if stream.state is not None:
            state, source = stream.state, source_of(stream.state)
            reason = None if state.reason is None else str(state.reason)
            values[of(name, "state")] = (
                {"stream": name, "state": str(state.state), "reason": reason, "detail": state.detail,
                 "since": state.since},
                source,
            )  # fmt: skip
            values[of(name, "availability")] = ("online" if state.state is State.UP else "offline", None)
        else:
            values |= dict.fromkeys((of(name, "state"), of(name, "availability")), (None, None))
        present = list(stream.objects.values())
        for label in stream.labels:
            count = sum(found.label == label for found in present)
            values[of(name, "labels", label)] = (
                {"stream": name, "label": label, "state": "ON" if count else "OFF", "count": count},
                stream.source,
            )
        for zone in stream.zones:
            labels = {label: sum(zone in found.zones and found.label == label for found in present)
                      for label in stream.labels}  # fmt: skip
            values[of(name, "zones", zone)] = (
                {"stream": name, "zone": zone, "count": sum(labels.values()), "labels": labels},
                stream.source,
            )
        values |= {topic: (payload, None) for topic, payload in stream.kept.items()}
        if self._discovery_prefix is not None:
            configs = discovery_configs(
                self._topics, self._discovery_prefix, name, stream.labels, stream.zones, self._version
            )
            values |= {topic: (config, None) for topic, config in configs.items()}
        return values


def _is_older(event: StateEvent, before: StateEvent, *, is_live: bool) -> bool:
    """Whether a state is from before another one of its stream; the clock may have been set back between them."""
    if event.epoch == before.epoch:
        return (event.seq, event.published_at) < (before.seq, before.published_at)
    return not is_live and event.published_at < before.published_at


def _payload(value: _Value, source: Source | None) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return to_json(value if source is None else {**value, **source.to_dict()})

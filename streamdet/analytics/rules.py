"""Rules: conditions on the objects of a stream, which raise alerts and clear them.

Each rule has one `_Watch`, of one of four kinds: presence of an object, crossing of a line, number of objects, absence
of objects. A watch is called when an object begins, ends, or changes its zones or its label, and otherwise only for
frames at which a duration may have been reached: most frames cost nothing.

All durations are seconds of the stream (`StreamClock`). The time of day and the cooldown, which continues over a
restart, are taken from the frames' `captured_at`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from streamdet.analytics.objects import LiveObject, ObjectChange
from streamdet.analytics.zones import Zones
from streamdet.config import RuleConfig, StreamConfig
from streamdet.config.rules import DAYS, minutes_of
from streamdet.types import Alert, Crossing, Detection, FrameInfo
from streamdet.wire import MAX_OBJECT_IDS

# `at_least` counts objects that were seen this recently: one that is occluded may have left.
_COUNTED_SECONDS = 0.5
# There must be fewer objects than `at_least` for this long: one that is not detected for a moment clears no alert.
_SETTLED_SECONDS = 1.0
# A duration that is exactly that of the rule is long enough, although the times of frames are rounded, in events more
# coarsely than live.
_ROUNDING_SECONDS = 0.001
# A pause between two frames counts as time without objects if it is not longer than this, or than the time after which
# an object is lost.
_WATCHED_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class AlertChange:
    """An alert is raised or cleared.

    Attributes:
        phase: "raised" once, "cleared" once later.
        frame: the frame that raises or clears it; when its object ends, the last one that shows it.
        alert: its state.
        rule: the rule that raised it.
    """

    phase: Literal["raised", "cleared"]
    frame: FrameInfo
    alert: Alert
    rule: RuleConfig


class Rules:
    """The rules of one stream.

    Args:
        new_alert_id: makes the id of an alert, unique over all streams and restarts.
    """

    def __init__(self, new_alert_id: Callable[[], str]) -> None:
        self._alerts = _Alerts(new_alert_id)
        self._watches: dict[str, _Watch] = {}
        self._time_zone: str | None = None
        self._longest_pause_seconds = _WATCHED_PAUSE_SECONDS
        # Confirmed objects by their id, and the label by which each was last judged.
        self._objects: dict[str, LiveObject] = {}
        self._labels: dict[str, str] = {}
        self._moment: _Moment | None = None

    def set_config(self, rules: Iterable[RuleConfig], config: StreamConfig) -> tuple[AlertChange, ...]:
        """Replaces the rules. A rule of the same name keeps its alerts, and does not raise them again.

        Args:
            rules: that apply to the stream.
            config: of the stream.

        Returns:
            The alerts that are cleared: their rule is removed, or its condition is no longer true.
        """
        before, self._watches = self._watches, {}
        is_elsewhere, self._time_zone = config.time_zone != self._time_zone, config.time_zone
        self._longest_pause_seconds = max(config.track_max_lost_seconds, _WATCHED_PAUSE_SECONDS)
        for rule in rules:
            watch = before.get(rule.name)
            if watch is not None and type(watch) is _kind_of(rule):
                del before[rule.name]
                is_other = is_elsewhere or watch.rule != rule
            else:
                watch, is_other = _kind_of(rule)(self._alerts), True
            self._watches[rule.name] = watch
            if is_other:
                watch.set_rule(rule, _Schedule(rule, config.time_zone))
                if self._moment is not None:
                    watch.begin(self._objects.values(), self._moment)
        for gone in before.values():
            if self._moment is not None:
                gone.clear_all(self._moment)
        return self._alerts.take()

    def restore(self, raised_at: Mapping[str, float]) -> None:
        """Restores when each rule, by name, last raised an alert before a restart, in Unix time."""
        self._alerts.raised_at.update(raised_at)

    def see(
        self,
        changes: Iterable[ObjectChange],
        live: Mapping[int, LiveObject],
        detections: Sequence[Detection],
        zones: Zones,
        frame: FrameInfo,
        now: float,
        *,
        is_still: bool = False,
    ) -> tuple[AlertChange, ...]:
        """Checks the rules after the next frame.

        Args:
            changes: of the stream's objects.
            live: the objects that have not ended, by track id.
            detections: in the frame, with the names of zones.
            zones: of the stream; they have seen these detections.
            frame: the frame.
            now: seconds of the stream, later than at the frame before.
            is_still: whether nothing was new since the frame before, so that the time counts, however long it is.
        """
        longest_pause_seconds = math.inf if is_still else self._longest_pause_seconds
        moment = _Moment.after(self._moment, detections, zones, frame, now, longest_pause_seconds)
        self._moment = moment
        if not self._watches and not changes:
            return ()
        for change in changes:
            if change.phase == "end":
                self._end(change, moment)
                continue
            one = live[change.object.track_id]
            if change.phase == "begin" or change.changes or change.crossings:
                self._update(one, change, moment)
        for one in [one for one in self._objects.values() if one.label != self._labels[one.object_id]]:
            self._update(one, None, moment)
        for watch in self._watches.values():
            if now >= watch.due:
                watch.step(moment)
        return self._alerts.take()

    def end(self, changes: Iterable[ObjectChange], *, everything: bool) -> tuple[AlertChange, ...]:
        """Checks the rules after objects have ended between two frames.

        Args:
            changes: their ends.
            everything: whether the stream ends or begins again, so that every alert is cleared.
        """
        moment = self._moment
        if moment is None:
            return ()
        for change in changes:
            self._end(change, moment)
        for watch in self._watches.values():
            if everything:
                watch.clear_all(moment)
            else:
                watch.settle(moment)
        cleared = self._alerts.take()
        if everything:
            self.forget()
        return cleared

    def forget(self) -> None:
        """Forgets all objects and alerts; cooldowns continue."""
        self._objects, self._labels, self._moment = {}, {}, None
        self._alerts.forget()
        for name, watch in self._watches.items():
            self._watches[name] = type(watch)(self._alerts)
            self._watches[name].set_rule(watch.rule, watch.schedule)

    def suppressed(self) -> tuple[str, ...]:
        """The rules whose alerts were suppressed by their cooldown since the last call."""
        names, self._alerts.suppressed = tuple(self._alerts.suppressed), []
        return names

    def _update(self, one: LiveObject, change: ObjectChange | None, moment: _Moment) -> None:
        self._objects[one.object_id], self._labels[one.object_id] = one, one.label
        for watch in self._watches.values():
            watch.update(one, change, moment)

    def _end(self, change: ObjectChange, moment: _Moment) -> None:
        one = self._objects.pop(change.object.object_id, None)
        self._labels.pop(change.object.object_id, None)
        if one is not None:
            for watch in self._watches.values():
                watch.gone(one, change, moment)
            self._alerts.gone(one)


@dataclass(frozen=True, slots=True)
class _Moment:
    """One frame.

    Attributes:
        detections: in the frame.
        zones: of the stream.
        frame: the frame.
        now: seconds of the stream.
        watched: seconds of the stream, without long pauses between frames.
        pause_end: when the latest long pause ended, a time of the stream.
        watched_before: what `now - watched` was before that pause.
    """

    detections: Sequence[Detection]
    zones: Zones
    frame: FrameInfo
    now: float
    watched: float
    pause_end: float
    watched_before: float

    @classmethod
    def after(
        cls,
        before: _Moment | None,
        detections: Sequence[Detection],
        zones: Zones,
        frame: FrameInfo,
        now: float,
        longest_pause_seconds: float,
    ) -> _Moment:
        """The moment of the next frame."""
        if before is None:
            return cls(detections, zones, frame, now, now, now, 0.0)
        step = now - before.now
        if step <= longest_pause_seconds:
            watched = before.watched + step
            return cls(detections, zones, frame, now, watched, before.pause_end, before.watched_before)
        return cls(detections, zones, frame, now, before.watched, now, before.now - before.watched)

    def watched_at(self, seconds: float) -> float:
        """What `watched` was at a time of the stream since the pause before the newest one."""
        if seconds >= self.pause_end:
            return seconds - (self.now - self.watched)
        return min(seconds - self.watched_before, self.watched)


class _Alerts:
    """Raises and clears alerts: makes ids, suppresses repeated alerts and those within the cooldown, collects changes.

    Attributes:
        raised_at: when each rule last raised an alert, in Unix time.
        suppressed: rules whose alerts the cooldown has suppressed, in their order.
    """

    def __init__(self, new_alert_id: Callable[[], str]) -> None:
        self._new_alert_id = new_alert_id
        self._changes: list[AlertChange] = []
        self._done: defaultdict[str, set[str]] = defaultdict(set)
        self.raised_at: dict[str, float] = {}
        self.suppressed: list[str] = []

    def is_done(self, rule: RuleConfig, one: LiveObject) -> bool:
        """Whether a rule of this name has already raised or suppressed an alert about an object."""
        return one.object_id in self._done[rule.name]

    def gone(self, one: LiveObject) -> None:
        """Forgets an object."""
        for done in self._done.values():
            done.discard(one.object_id)

    def forget(self) -> None:
        """Forgets all objects, and changes that were not taken."""
        self._done.clear()
        self._changes = []

    def take(self) -> tuple[AlertChange, ...]:
        """The changes since the last call."""
        if not self._changes:
            return ()
        changes, self._changes = tuple(self._changes), []
        return changes

    def raised(
        self,
        rule: RuleConfig,
        frame: FrameInfo,
        seconds: float,
        objects: Sequence[LiveObject],
        crossing: Crossing | None = None,
    ) -> Alert | None:
        """Raises an alert, unless the rule is in its cooldown.

        Args:
            rule: whose condition is true.
            frame: in which it became true.
            seconds: how long it has been true.
            objects: that meet it; a single one, once, unless the rule counts objects.
            crossing: of the line, if the rule has one.

        Returns:
            The alert, or None in the cooldown; a clock that was set back ends the cooldown.
        """
        one = objects[0] if rule.at_least is None and objects else None
        if one is not None:
            self._done[rule.name].add(one.object_id)
        at, before = frame.captured_at, self.raised_at.get(rule.name, -math.inf)
        if 0 <= at - before < rule.cooldown_seconds:
            self.suppressed.append(rule.name)
            return None
        alert = Alert(
            self._new_alert_id(),
            rule.name,
            at,
            seconds,
            tuple(each.object_id for each in objects[:MAX_OBJECT_IDS]),
            label=one.label if one else None,
            box=one.box if one else None,
            zone=rule.zone,
            line=crossing.line if crossing else None,
            direction=crossing.direction if crossing else None,
            count=None if rule.at_least is None else len(objects),
        )
        self.raised_at[rule.name] = at
        self._changes.append(AlertChange("raised", frame, alert, rule))
        return alert

    def cleared(
        self, rule: RuleConfig, frame: FrameInfo, alert: Alert, seconds: float, one: LiveObject | None = None
    ) -> None:
        """Clears an alert.

        Args:
            rule: that raised it.
            frame: the frame in which the condition is no longer true.
            alert: as it was raised.
            seconds: how long the condition was true in total.
            one: the object that met it, if it was a single one.
        """
        if one is not None:
            alert = replace(alert, label=one.label, box=one.box)
        self._changes.append(AlertChange("cleared", frame, replace(alert, seconds=seconds), rule))


class _Schedule:
    """The times of day and the days on which a rule holds, in the time zone of a stream.

    A span that crosses midnight belongs to the day on which it begins. Times are local: those in the hour that is
    skipped in spring do not occur, and those in the hour that is repeated in autumn occur twice.
    """

    def __init__(self, rule: RuleConfig, time_zone: str | None) -> None:
        self.is_always = not rule.between and not rule.days
        self._zone = ZoneInfo(time_zone) if time_zone else None
        self._days = frozenset(map(DAYS.index, rule.days or DAYS))
        self._spans = [(minutes_of(begin), minutes_of(end)) for begin, end in rule.between] or [(0, 24 * 60)]
        self._minute = -1
        self._held = False

    def holds(self, captured_at: float) -> bool:
        """Whether the rule holds at a time, in Unix seconds."""
        if self.is_always:
            return True
        # Time zones differ by whole minutes.
        minute = int(captured_at // 60)
        if minute != self._minute:
            self._minute, self._held = minute, self._holds_in(60.0 * minute)
        return self._held

    def _holds_in(self, at: float) -> bool:
        try:
            local = datetime.fromtimestamp(at, self._zone)
            day_before = (local.date() - timedelta(days=1)).weekday()
        except (ValueError, OverflowError, OSError):
            return False  # a camera's clock may show any time
        minute, day = 60 * local.hour + local.minute, local.weekday()
        for begin, end in self._spans:
            is_over_midnight = begin > end
            if day in self._days and begin <= minute and (minute < end or is_over_midnight):
                return True
            if is_over_midnight and day_before in self._days and minute < end:
                return True
        return False


class _Watch:
    """Checks the condition of one rule; the base of the four kinds.

    Attributes:
        rule: the rule.
        schedule: the times at which it holds.
        due: when `step` must be called next, in seconds of the stream; infinite if no duration is running.
    """

    rule: RuleConfig
    schedule: _Schedule

    def __init__(self, alerts: _Alerts) -> None:
        self.due = math.inf
        self._alerts = alerts

    def set_rule(self, rule: RuleConfig, schedule: _Schedule) -> None:
        """Replaces the rule by one of the same kind and name; alerts stay raised."""
        self.rule, self.schedule = rule, schedule
        self._labels = frozenset(rule.labels)

    def begin(self, objects: Iterable[LiveObject], moment: _Moment) -> None:
        """Takes the objects that are already present."""
        for one in objects:
            self.update(one, None, moment)

    def update(self, one: LiveObject, change: ObjectChange | None, moment: _Moment) -> None:
        """Takes an object that has begun, or has changed its zones or its label; `change` is what was published."""

    def gone(self, one: LiveObject, change: ObjectChange, moment: _Moment) -> None:
        """Takes the end of an object."""

    def step(self, moment: _Moment) -> None:
        """Takes a frame at which something may be due."""

    def settle(self, moment: _Moment) -> None:
        """Takes that objects have ended and no frame comes."""

    def clear_all(self, moment: _Moment) -> None:
        """Clears what is raised."""

    def _counts(self, one: LiveObject) -> bool:
        """Whether an object has one of the labels, and is in the zone."""
        if self._labels and one.label not in self._labels:
            return False
        if self.rule.zone is None:
            return True
        visit = one.visits.get(self.rule.zone)
        return visit is not None and visit.is_inside

    def _there_since(self, one: LiveObject) -> float:
        """Since when an object that counts is where it counts."""
        return one.began if self.rule.zone is None else one.visits[self.rule.zone].since


def _kind_of(rule: RuleConfig) -> type[_Watch]:
    if rule.line is not None:
        return _LineWatch
    if rule.none_for_seconds is not None:
        return _NoneWatch
    return _ObjectWatch if rule.at_least is None else _CountWatch


@dataclass(frozen=True, slots=True)
class _Raised:
    """An alert about one object, and since when its condition has been met, in seconds of the stream."""

    alert: Alert
    one: LiveObject
    since: float


class _EachWatch(_Watch):
    """Raises at most one alert for each object."""

    def __init__(self, alerts: _Alerts) -> None:
        super().__init__(alerts)
        self._raised: dict[str, _Raised] = {}

    def gone(self, one: LiveObject, change: ObjectChange, moment: _Moment) -> None:  # noqa: ARG002
        if one.object_id in self._raised:
            self._clear(one.object_id, change.frame, one.seen)

    def clear_all(self, moment: _Moment) -> None:
        for object_id in list(self._raised):
            self._clear(object_id, moment.frame, moment.now)

    def _raise(self, one: LiveObject, moment: _Moment, since: float, crossing: Crossing | None = None) -> None:
        alert = self._alerts.raised(self.rule, moment.frame, moment.now - since, [one], crossing)
        if alert is not None:
            self._raised[one.object_id] = _Raised(alert, one, since)

    def _clear(self, object_id: str, frame: FrameInfo, until: float) -> None:
        raised = self._raised.pop(object_id)
        self._alerts.cleared(self.rule, frame, raised.alert, until - raised.since, raised.one)


class _ObjectWatch(_EachWatch):
    """Raises an alert for each object that stays for `for_seconds`; clears it when that object has left or ended.

    If an object is occluded when `for_seconds` are over, or not clearly in the zone, the alert waits until it is.
    """

    def __init__(self, alerts: _Alerts) -> None:
        super().__init__(alerts)
        self._waiting: dict[str, LiveObject] = {}

    def set_rule(self, rule: RuleConfig, schedule: _Schedule) -> None:
        super().set_rule(rule, schedule)
        self._wanted_seconds = (rule.for_seconds or 0.0) - _ROUNDING_SECONDS
        self._waiting = {}

    def begin(self, objects: Iterable[LiveObject], moment: _Moment) -> None:
        super().begin(objects, moment)
        self._set_due()

    def update(self, one: LiveObject, change: ObjectChange | None, moment: _Moment) -> None:
        object_id = one.object_id
        if self._counts(one):
            if not self._alerts.is_done(self.rule, one):
                self._waiting[object_id] = one
                self._set_due()
            return
        self._waiting.pop(object_id, None)
        if object_id in self._raised:
            left = (each for each in change.changes if each.change == "leave") if change else ()
            seconds = next((each.seconds for each in left if each.zone == self.rule.zone), math.inf)
            self._clear(object_id, moment.frame, min(moment.now, self._raised[object_id].since + seconds))

    def gone(self, one: LiveObject, change: ObjectChange, moment: _Moment) -> None:
        self._waiting.pop(one.object_id, None)
        super().gone(one, change, moment)

    def step(self, moment: _Moment) -> None:
        if not self.schedule.holds(moment.frame.captured_at):
            if self._raised:
                self.clear_all(moment)
                self._set_due()
            return
        for one in list(self._waiting.values()):
            since = self._there_since(one)
            if one.seen == moment.now and self._was_there_until(one, moment) >= since + self._wanted_seconds:
                del self._waiting[one.object_id]
                self._raise(one, moment, since)
        self._set_due()

    def _was_there_until(self, one: LiveObject, moment: _Moment) -> float:
        turned = None if self.rule.zone is None else moment.zones.turned(self.rule.zone, one.track_id)
        return moment.now if turned is None else turned

    def _set_due(self) -> None:
        if self._raised and not self.schedule.is_always:
            self.due = -math.inf
            return
        self.due = min(
            (self._there_since(one) + self._wanted_seconds for one in self._waiting.values()), default=math.inf
        )


class _LineWatch(_EachWatch):
    """Raises an alert for each object that crosses the line; clears it when that object has ended."""

    def update(self, one: LiveObject, change: ObjectChange | None, moment: _Moment) -> None:
        if change is None or not change.crossings or self._alerts.is_done(self.rule, one) or not self._counts(one):
            return
        for crossing in change.crossings:
            if crossing.line == self.rule.line and self.rule.direction in (None, crossing.direction):
                if self.schedule.holds(moment.frame.captured_at):
                    self._raise(one, moment, moment.now, crossing)
                return


class _CountWatch(_Watch):
    """Raises an alert when `at_least` objects are present; clears it when there have been fewer for a while.

    Occluded objects keep an alert raised while they may reappear, but do not count towards raising one.
    """

    def __init__(self, alerts: _Alerts) -> None:
        super().__init__(alerts)
        self._there: dict[str, LiveObject] = {}
        self._since: float | None = None  # since when there are enough
        self._fewer_since: float | None = None
        self._is_done = False  # an alert was raised or suppressed since then
        self._alert: Alert | None = None

    def set_rule(self, rule: RuleConfig, schedule: _Schedule) -> None:
        super().set_rule(rule, schedule)
        self._enough = rule.at_least or 1
        self._wanted_seconds = (rule.for_seconds or 0.0) - _ROUNDING_SECONDS
        self._there = {}

    def begin(self, objects: Iterable[LiveObject], moment: _Moment) -> None:
        super().begin(objects, moment)
        self._count(moment.now)

    def update(self, one: LiveObject, change: ObjectChange | None, moment: _Moment) -> None:  # noqa: ARG002
        if self._counts(one):
            self._there[one.object_id] = one
            self._count(moment.now)
        elif self._there.pop(one.object_id, None) is not None:
            self._count(moment.now)

    def gone(self, one: LiveObject, change: ObjectChange, moment: _Moment) -> None:  # noqa: ARG002
        if self._there.pop(one.object_id, None) is not None:
            self._count(one.seen)

    def step(self, moment: _Moment) -> None:
        if self._fewer_since is not None:
            if moment.now - self._fewer_since >= _SETTLED_SECONDS:
                self._finish(moment)
            return
        if self._since is None:
            seen = self._seen(moment)
            if len(seen) < self._enough:
                return
            self._since = sorted(self._there_since(one) for one in seen)[self._enough - 1]
        if not self.schedule.holds(moment.frame.captured_at):
            self.clear_all(moment)
            self._is_done = False
        elif not self._is_done and moment.now - self._since >= self._wanted_seconds:
            seen = self._seen(moment)
            if len(seen) >= self._enough:
                self._is_done = True
                self._alert = self._alerts.raised(self.rule, moment.frame, moment.now - self._since, seen)

    def settle(self, moment: _Moment) -> None:
        if self._fewer_since is not None:
            self._finish(moment)

    def clear_all(self, moment: _Moment) -> None:
        if self._alert is not None and self._since is not None:
            until = moment.now if self._fewer_since is None else self._fewer_since
            # Objects that take turns being missed may never have been in one frame.
            self._alerts.cleared(self.rule, moment.frame, self._alert, max(until - self._since, 0.0))
            self._alert = None

    def _count(self, at: float) -> None:
        """Notes since when there are fewer, a time of the stream, or that there are enough again."""
        is_enough = len(self._there) >= self._enough
        if is_enough:
            self._fewer_since = None
        elif self._since is not None and self._fewer_since is None:
            self._fewer_since = at
        self.due = -math.inf if is_enough or self._since is not None else math.inf

    def _seen(self, moment: _Moment) -> list[LiveObject]:
        """The objects that are certainly present: they were seen a short time ago."""
        return [one for one in self._there.values() if moment.now - one.seen <= _COUNTED_SECONDS]

    def _finish(self, moment: _Moment) -> None:
        self.clear_all(moment)
        self._since = self._fewer_since = None
        self._is_done = False
        self._count(moment.now)


class _NoneWatch(_Watch):
    """Raises an alert when no object was present for `none_for_seconds`; clears it when one is.

    Only time with frames counts. While a detection may be the beginning of an object, the alert waits.
    """

    def __init__(self, alerts: _Alerts) -> None:
        super().__init__(alerts)
        self._there: dict[str, LiveObject] = {}
        self._since: float | None = None  # none since then, in watched seconds; None before the first frame, too
        self._is_done = False  # an alert was raised or suppressed since then
        self._alert: Alert | None = None

    def set_rule(self, rule: RuleConfig, schedule: _Schedule) -> None:
        super().set_rule(rule, schedule)
        self._wanted_seconds = (rule.none_for_seconds or 0.0) - _ROUNDING_SECONDS
        self._there = {}
        self.due = -math.inf

    def update(self, one: LiveObject, change: ObjectChange | None, moment: _Moment) -> None:  # noqa: ARG002
        if self._counts(one):
            self._there[one.object_id] = one
            self._clear(moment, moment.watched_at(self._there_since(one)))
            self._since, self._is_done, self.due = None, False, math.inf
        else:
            self._leave(one, moment, moment.now)

    def gone(self, one: LiveObject, change: ObjectChange, moment: _Moment) -> None:  # noqa: ARG002
        self._leave(one, moment, one.seen)

    def step(self, moment: _Moment) -> None:
        if self._since is None:
            self._since = moment.watched
        missing_seconds = self._wanted_seconds - (moment.watched - self._since)
        if missing_seconds > 0:
            self.due = moment.now + missing_seconds
        elif not self.schedule.holds(moment.frame.captured_at):
            self.clear_all(moment)
            self._is_done = False
        elif not self._is_done and not any(map(self._may_count, moment.detections)):
            self._is_done = True
            self._alert = self._alerts.raised(self.rule, moment.frame, moment.watched - self._since, [])

    def clear_all(self, moment: _Moment) -> None:
        self._clear(moment, moment.watched)

    def _leave(self, one: LiveObject, moment: _Moment, at: float) -> None:
        if self._there.pop(one.object_id, None) is not None and not self._there:
            self._since, self.due = moment.watched_at(at), -math.inf

    def _may_count(self, found: Detection) -> bool:
        is_labelled = not self._labels or found.label in self._labels
        return is_labelled and (self.rule.zone is None or self.rule.zone in found.zones)

    def _clear(self, moment: _Moment, until: float) -> None:
        if self._alert is not None and self._since is not None:
            self._alerts.cleared(self.rule, moment.frame, self._alert, max(until - self._since, 0.0))
            self._alert = None

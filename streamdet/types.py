"""The types of what travels from a camera to a subscriber; imports nothing of streamdet.

Every value is frozen; to change one, make another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    # Subscribers have no use for numpy, and it takes longer to import than all the rest of them.
    import numpy as np
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the source frame; 0 <= x1 < x2 <= width, and likewise y."""
Clock = Literal["source", "daemon"]
Direction = Literal["in", "out"]
Point = tuple[float, float]
"""x and y as parts of the picture's width and height, 0 to 1, from its top left corner."""


class State(StrEnum):
    """What a stream is doing."""

    CONNECTING = "connecting"
    UP = "up"
    STALLED = "stalled"
    DOWN = "down"


class Reason(StrEnum):
    """Why a stream is down."""

    REFUSED = "refused"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    TIMEOUT = "timeout"
    DNS = "dns"
    TLS = "tls"
    NO_VIDEO = "no_video"
    UNSUPPORTED_CODEC = "unsupported_codec"
    ENDED = "ended"
    DECODE_ERROR = "decode_error"
    OVERLOAD = "overload"
    INTERNAL_ERROR = "internal_error"
    PAUSED = "paused"
    REMOVED = "removed"


class Drop(StrEnum):
    """Why a captured frame was not published."""

    SUPERSEDED = "superseded"
    STALE = "stale"
    RATE_LIMITED = "rate_limited"
    DECODE_ERROR = "decode_error"
    INTERNAL_ERROR = "internal_error"
    SHUTDOWN = "shutdown"
    DAMAGED = "damaged"
    NOT_DECODED = "not_decoded"
    GATED = "gated"


class Pass(StrEnum):
    """Why the motion gate of a stream lets a frame through."""

    LEARNING = "learning"
    MOTION = "motion"
    OBJECTS = "objects"
    PERIODIC = "periodic"
    WATCHED = "watched"
    AUDIT = "audit"


class EndReason(StrEnum):
    """Why an object has ended."""

    LOST = "lost"
    STREAM_DOWN = "stream_down"
    REMOVED = "removed"
    RELOAD = "reload"
    STOPPING = "stopping"
    RESTART = "restart"
    INTERNAL_ERROR = "internal_error"


class Picture(Protocol):
    """A decoded frame in the form of its decoder; colour is converted only in `to_rgb`."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous; may be called from any thread, more than once."""


@dataclass(frozen=True, slots=True)
class DetectionSettings:
    """What counts as a detection in a picture.

    Attributes:
        labels: the labels that count; if empty, all that the weights know.
        score_threshold: 0 to 1; the score must be above it.
        score_thresholds: label and threshold of each label that has a threshold of its own.
        min_size: least height of the box, as a fraction of the picture's height; 0 to 1.
        max_size: greatest height, likewise.
        max_detections: most detections in one picture; those with the highest scores count.
        tiles: into how many parts each side of the picture is cut, to look at them more closely; 1 for none.
    """

    labels: tuple[str, ...] = ()
    score_threshold: float = 0.5
    score_thresholds: tuple[tuple[str, float], ...] = ()
    min_size: float = 0.0
    max_size: float = 1.0
    max_detections: int = 100
    tiles: int = 1

    @property
    def looks(self) -> int:
        """How many pictures the detector looks at for one frame: the whole, and its tiles."""
        return looks_at(self.tiles)


def looks_at(tiles: int) -> int:
    """How many pictures the detector looks at for one frame: the whole, and its tiles.

    Args:
        tiles: along each side of the frame; 1 for none.
    """
    return 1 if tiles == 1 else 1 + tiles**2


class Demand(Protocol):
    """Which frames of a stream are worth decoding: those that would be detected."""

    @property
    def max_fps(self) -> float | None:
        """Frames per second that are taken at most, on average; None where all are."""

    def is_due(self, at_monotonic_seconds: float) -> bool:
        """Whether `max_fps` would let a frame pass that comes at this moment."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One captured frame.

    Attributes:
        stream: name of the stream.
        seq: number of the frame in its stream, from 1 at the start of the daemon; reconnects do not reset it.
        pts_seconds: presentation time in the stream's own clock; None where the source gives none.
        captured_at: Unix time in seconds.
        clock: whose clock `captured_at` is: the camera's ("source") or this machine's ("daemon").
        captured_monotonic_seconds: `time.monotonic()` at the moment of capture; latencies count from here.
        picture: the pixels.
        decode_seconds: what decoding took.
        packet_pts: the timestamp of the packet that it was decoded from (see `EncodedPacket`); None if it has none.
        settings: what counts as a detection in it; those that its stream has when it leaves the batch queue.
        begins: whether it is the first one of a connection.
        is_gated: whether the motion gate holds it back: it shows nothing new.
        is_audit: whether it is detected only to learn what the motion gate misses.
        gated_before: frames of the stream that the motion gate has held back before it.
    """

    stream: str
    seq: int
    pts_seconds: float | None
    captured_at: float
    clock: Clock
    captured_monotonic_seconds: float
    picture: Picture
    decode_seconds: float = 0.0
    packet_pts: int | None = None
    settings: DetectionSettings = field(default=DetectionSettings(), repr=False)
    begins: bool = False
    is_gated: bool = False
    is_audit: bool = False
    gated_before: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known of a stream after one of its frames was analysed.

    Attributes:
        seq: number of the frame.
        is_settled: whether all objects stand still and were seen lately: while nothing moves, nothing is new.
        boxes: of the objects that do not, in pixels.
        width: of the frame, in pixels.
        height: of the frame, in pixels.
    """

    seq: int
    is_settled: bool
    boxes: tuple[Box, ...] = ()
    width: int = 1
    height: int = 1


class SceneWatch(Protocol):
    """The motion gates, for who analyses what is detected; any thread may call."""

    def set_scene(self, stream: str, scene: Scene) -> None:
        """Takes what is known of a stream after one of its frames was analysed."""

    def newest_held(self, stream: str) -> Frame | None:
        """The newest frame of a stream if it was held back; else None."""


@dataclass(frozen=True, slots=True)
class VideoParameters:
    """What a decoder needs to decode the packets of a stream.

    Attributes:
        codec: "h264" or "hevc".
        parameter_sets: VPS, SPS and PPS, in this order, without start codes.
        length_bytes: bytes of the length before each unit of a packet, as in MP4; 0 where start codes separate them.
        sample_aspect: width of a pixel divided by its height, if the container contradicts the codec; else None.
        quarter_turns: counter-clockwise turns that show the picture upright, 0 to 3.
    """

    codec: Literal["h264", "hevc"]
    parameter_sets: tuple[bytes, ...] = field(repr=False)
    length_bytes: int = 0
    sample_aspect: Fraction | None = None
    quarter_turns: int = 0


def units_of(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The NAL units of a packet of H.264 or H.265, none of them empty.

    Args:
        data: the packet.
        length_bytes: of the length before each unit; 0 where start codes separate them.
    """
    if not length_bytes:
        begin = data.find(b"\0\0\1") + 3
        while begin >= 3:
            end = data.find(b"\0\0\1", begin)
            # The next start code may have a zero more; a unit never ends with one.
            if unit := data[begin : end if end >= 0 else len(data)].rstrip(b"\0"):
                yield unit
            begin = end + 3 if end >= 0 else 0
        return
    at = 0
    while at + length_bytes < len(data):
        begin = at + length_bytes
        at = begin + int.from_bytes(data[at:begin])
        if unit := data[begin:at]:
            yield unit


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPacket:
    """One encoded picture of a camera.

    Attributes:
        data: the bytes.
        pts: when it is shown, in units of `time_base`; None if the source sends no timestamp.
        dts: when it is decoded, likewise.
        duration: how long it is shown, likewise.
        time_base: seconds.
        is_key: whether decoding can begin with it.
        begins: whether it is the first of a connection, or of a repetition of a file: timestamps begin again.
        parameters: what its decoder needs.
        arrived_monotonic_seconds: `time.monotonic()` when it was read.
    """

    data: bytes = field(repr=False)
    pts: int | None
    dts: int | None
    duration: int | None
    time_base: Fraction
    is_key: bool
    begins: bool
    parameters: VideoParameters
    arrived_monotonic_seconds: float


class PacketSink(Protocol):
    """Takes the encoded packets of one stream, from the thread of its capture; must not block."""

    @property
    def is_open(self) -> bool:
        """Whether packets are wanted now; while they are not, none is copied."""

    def put(self, packet: EncodedPacket) -> None:
        """Takes the next packet, in the order of decoding."""

    def accept(self) -> None:
        """Reports that the codec of a new connection is one whose packets are passed on, while they are wanted."""

    def refuse(self, codec: str) -> None:
        """Reports that the codec of the stream is one whose packets are not passed on."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object in one frame.

    Attributes:
        label: name of the category, from the weights.
        score: 0 to 1.
        box: x1, y1, x2, y2 in pixels of the source frame, floats; 0 <= x1 < x2 <= width, and likewise y.
        track_id: the same for the same object in successive frames; None without tracking.
        zones: names of the stream's zones that the object is in.
    """

    label: str
    score: float
    box: Box
    track_id: int | None = None
    zones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Crossing:
    """An object went over one of the stream's lines.

    Attributes:
        line: its name.
        direction: "in" from the left of the line to its right, as seen from its first point towards its second;
            "out" the other way.
        track_id: of the object.
        label: of the object.
    """

    line: str
    direction: Direction
    track_id: int
    label: str


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """A frame without its pixels, as in an event; attributes as in `Frame`, sizes in pixels."""

    seq: int
    pts_seconds: float | None
    captured_at: float
    clock: Clock
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Which node of a cluster watches a stream, and since which grant.

    Attributes:
        node: name of the node.
        generation: of the claim that the stream belongs to; of two nodes that publish one stream, the one with the
            higher generation owns it.
    """

    node: str
    generation: int


@dataclass(frozen=True, slots=True)
class DetectionEvent:
    """What was found in one frame; empty results are events too.

    Attributes:
        stream: name of the stream.
        epoch: new at each start of the daemon.
        seq: number of the event in its topic and epoch, from 1, without gaps at the sender.
        published_at: Unix time in seconds.
        frame: the frame that the boxes belong to.
        detections: by falling score.
        crossings: lines that were crossed between the frame before and this one.
        trace_id: of the trace of this frame, 32 hexadecimal digits; None where it was not traced.
        owner: the node that published it; None where the stream belongs to no cluster.
        gated: frames between the one of the event before and this one that the motion gate has held back, because they
            showed nothing new.
    """

    stream: str
    epoch: str
    seq: int
    published_at: float
    frame: FrameInfo
    detections: tuple[Detection, ...]
    crossings: tuple[Crossing, ...] = ()
    trace_id: str | None = None
    owner: Owner | None = None
    gated: int = 0


@dataclass(frozen=True, slots=True)
class PreviewEvent:
    """A small picture of one frame, with what was found in that very frame; sent only while someone subscribes.

    Attributes:
        stream: name of the stream.
        epoch: new at each start of the daemon.
        seq: number of the event in its topic and epoch, from 1, without gaps at the sender.
        published_at: Unix time in seconds.
        frame: the frame that the picture shows and the boxes belong to; width and height are those of the frame.
        detections: by falling score; boxes in pixels of the frame, not of the smaller picture.
        jpeg: the picture.
        owner: the node that published it; None where the stream belongs to no cluster.
    """

    stream: str
    epoch: str
    seq: int
    published_at: float
    frame: FrameInfo
    detections: tuple[Detection, ...]
    jpeg: bytes = field(repr=False)
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class ZoneVisit:
    """How long an object has been in a zone.

    Attributes:
        zone: its name.
        seconds: of the stream, all visits together.
        inside: whether it is there now; at the end of the object, whether it was there when it was last seen.
    """

    zone: str
    seconds: float
    inside: bool


@dataclass(frozen=True, slots=True)
class ZoneChange:
    """What an object has just done in a zone.

    Attributes:
        change: "enter"; "leave"; "dwell", when a visit reaches one of the zone's `dwell_seconds`; "loiter", when it
            reaches `loiter_seconds`.
        zone: its name.
        seconds: of this visit; 0 for "enter", and for "dwell" and "loiter" the duration that it has reached.
    """

    change: Literal["enter", "leave", "dwell", "loiter"]
    zone: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Shot:
    """One view of an object: where it is in one frame.

    Attributes:
        frame_seq: number of the frame.
        captured_at: Unix time in seconds.
        score: 0 to 1.
        box: pixels of the source frame.
    """

    frame_seq: int
    captured_at: float
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class TrackedObject:
    """One object, from the first frame that shows it until now.

    Attributes:
        object_id: unique, also over restarts of the daemon.
        track_id: of its detections.
        label: the one with the largest sum of scores over its life.
        score: the best so far, 0 to 1.
        box: where it was last seen.
        began_at: Unix time in seconds of the first frame that shows it.
        seconds: from then until it was last seen, by the stream's clock.
        is_stationary: whether it stands still.
        path: where its anchor (the middle of its lower edge) was: x and y as parts of width and height, and seconds
            since it began; thinned out as it grows longer.
        zones: those that it has been in, in the order of their first visit.
        best: the view with the best score and size.
    """

    object_id: str
    track_id: int
    label: str
    score: float
    box: Box
    began_at: float
    seconds: float
    is_stationary: bool
    path: tuple[tuple[float, float, float], ...]
    zones: tuple[ZoneVisit, ...]
    best: Shot


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """A kept picture.

    Attributes:
        picture_id: to fetch it by.
        frame_seq: number of the frame that it shows.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        box: of the object in pixels of the picture; None where it shows no single object.
        jpeg: the picture itself, if it came with the event; None if it must be fetched.
    """

    picture_id: str
    frame_seq: int
    width: int
    height: int
    box: Box | None
    jpeg: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """An object began, changed or ended.

    Attributes:
        stream: name of the stream.
        epoch: new at each start of the daemon.
        seq: number of the event in its topic and epoch, from 1, without gaps at the sender.
        published_at: Unix time in seconds.
        phase: "begin" once, when it is certain that there is an object; "update" at most once a second and at each
            change of zone; "end" once.
        frame: the frame that made the event; at the end, the last one that shows the object.
        object: what is known of it.
        changes: what it has done in zones since the event before.
        crossings: the lines that it has crossed since the event before.
        reason: why it ended; None before, and if a newer daemon sent an unknown reason.
        picture: its best shot, at the end; None where no pictures are kept.
        owner: the node that published it; None where the stream belongs to no cluster.
    """

    stream: str
    epoch: str
    seq: int
    published_at: float
    phase: Literal["begin", "update", "end"]
    frame: FrameInfo
    object: TrackedObject
    changes: tuple[ZoneChange, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    reason: EndReason | None = None
    picture: PictureInfo | None = None
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule whose condition was met.

    Attributes:
        alert_id: unique, also over restarts of the daemon.
        rule: its name.
        raised_at: Unix time in seconds of the frame in which the condition was met.
        seconds: how long the condition has lasted, by the stream's clock; at "cleared", in all.
        object_ids: the objects that meet it: one, or those that were counted, or none where none is the condition.
        label: of the one object; None for several or none.
        box: of the one object in the frame of the event; None for several or none.
        zone: where the rule looks; None for the whole picture.
        line: that was crossed; None for other rules.
        direction: of the crossing; None for other rules.
        count: objects at once; None where the rule does not count.
    """

    alert_id: str
    rule: str
    raised_at: float
    seconds: float
    object_ids: tuple[str, ...]
    label: str | None = None
    box: Box | None = None
    zone: str | None = None
    line: str | None = None
    direction: Direction | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """The condition of a rule is met, or no longer.

    Attributes:
        stream: name of the stream.
        epoch: new at each start of the daemon.
        seq: number of the event in its topic and epoch, from 1, without gaps at the sender.
        published_at: Unix time in seconds.
        phase: "raised", and later "cleared", each once for an alert.
        frame: the frame that made the event.
        alert: what is known of it.
        picture: of the frame in which it was raised; None where the rule asks for none.
        clip_id: to fetch the clip around it by, some seconds later; None where the rule asks for none, and where
            there is none.
        owner: the node that published it; None where the stream belongs to no cluster.
        clip_seconds: what the rule asks for: seconds before and after the frame in which it was raised; None for none.
        clip_missing: why there is no clip though the rule asks for one, in one word; else None.
    """

    stream: str
    epoch: str
    seq: int
    published_at: float
    phase: Literal["raised", "cleared"]
    frame: FrameInfo
    alert: Alert
    picture: PictureInfo | None = None
    clip_id: str | None = None
    owner: Owner | None = None
    clip_seconds: tuple[float, float] | None = None
    clip_missing: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """A zone or a mask (a polygon, at least three points) or a line (two points), with its name."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is drawn over a stream's picture; the attributes are the keys of the stream's configuration."""

    zones: tuple[Shape, ...] = ()
    lines: tuple[Shape, ...] = ()
    masks: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class StateEvent:
    """A stream changed its state; repeated from time to time for late subscribers.

    Attributes:
        stream: name of the stream.
        epoch: new at each start of the daemon.
        seq: number of the event in its topic and epoch, from 1, without gaps at the sender.
        published_at: Unix time in seconds.
        state: what the stream is doing.
        reason: why it is down (also: why it was down, while it connects again); None when all is well.
        detail: one line for people, without secrets; empty when all is well.
        since: Unix time in seconds at which the state began.
        geometry: the stream's zones, lines and masks; None if it has none.
        owner: the node that published it; None where the stream belongs to no cluster.
    """

    stream: str
    epoch: str
    seq: int
    published_at: float
    state: State
    reason: Reason | None
    detail: str
    since: float
    geometry: Geometry | None = None
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """State of one stream at one moment, as capture reports it; attributes as in `StateEvent`."""

    stream: str
    state: State
    reason: Reason | None
    detail: str
    since: float

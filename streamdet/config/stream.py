"""One stream: `[[streams]]` with its zones, lines and masks, and `[stream_defaults]` with the same keys."""

from __future__ import annotations

import difflib
import zoneinfo
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, create_model, field_validator

from streamdet.config.addresses import UrlKind, kind_of_url, with_small_scheme
from streamdet.config.values import AS_NUMBER, Number, Seconds, Switch, Threshold, parse_seconds, refuse, table
from streamdet.types import Point, looks_at
from streamdet.wire import MAX_POINTS, MAX_SHAPES

MAX_DWELLS = 8
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

TILES = {"off": 1, "2x2": 2, "3x3": 3}
"""Values of `tiles`, and the number of tiles along each side."""
HWACCELS = ("none", "auto", "cuda", "drm", "qsv", "v4l2m2m", "vaapi", "vdpau", "videotoolbox", "vulkan")
OF_ONE_STREAM = ("name", "url", "detect_url", "zones", "lines", "masks", "gate_zones")
"""Keys that cannot have a default for all streams."""
# Marks a key whose change keeps the connection: it affects what is done with frames, not how they are read.
KEEPS_CONNECTION = "x-keeps-connection"
_KEEPS_CONNECTION: dict[str, Any] = {KEEPS_CONNECTION: True}
# Keys that apply to some kinds of url only; all others apply to every kind.
KEY_FITS: dict[str, frozenset[UrlKind]] = {
    "transport": frozenset({UrlKind.RTSP}),
    "tls_verify": frozenset({UrlKind.RTSPS, UrlKind.HTTPS}),
    "tls_ca_file": frozenset({UrlKind.RTSPS, UrlKind.HTTPS}),
    "pace": frozenset({UrlKind.FILE}),
    "loop": frozenset({UrlKind.FILE, UrlKind.HTTP, UrlKind.HTTPS}),
    "video_track": frozenset(set(UrlKind) - {UrlKind.DEVICE}),
    "decode": frozenset(set(UrlKind) - {UrlKind.DEVICE}),
}


def _point(value: object) -> object:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(type(side) in (int, float) and 0 <= side <= 1 for side in value)
    ):
        refuse("must be a point: two numbers from 0 to 1, such as [0.5, 1.0]")
    return tuple(value)


_Point = Annotated[tuple[float, float], BeforeValidator(_point)]


Anchor = Literal["bottom", "center", "any"]
_VisitSeconds = Annotated[float, Field(gt=0, le=86_400), BeforeValidator(parse_seconds)]
_Part = Annotated[float, Field(ge=0, le=1), AS_NUMBER]


def _above_min_size(max_size: float, info: ValidationInfo) -> float:
    if max_size <= info.data.get("min_size", 0.0):
        refuse(f"is {max_size:g}; must be above min_size, {info.data.get('min_size', 0.0):g}")
    return max_size


def _time_zone(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if not known:
            refuse("cannot be used, because this machine has no list of time zones; install tzdata")
        same = {zone.lower(): zone for zone in known}
        near = difflib.get_close_matches(name.lower().replace(" ", "_"), same, 1, cutoff=0.6)
        meant = f'did you mean "{same[near[0]]}"?' if near else 'write one such as "Europe/Berlin"'
        refuse(f'is "{name[:40]}", which is not a time zone that this machine knows; {meant}')
    return name


def _hwaccel(name: str) -> str:
    if name not in HWACCELS:
        refuse(f"must be one of {', '.join(HWACCELS)}")
    return name


class _Shape(BaseModel):
    model_config = table("on reload")

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Its name in events and metrics: small letters, digits, - _ . (1 to 64), the first one a letter or "
        "digit; no two of a stream may share one.",
        examples=["door"],
    )
    labels: tuple[str, ...] = Field(
        (), description="Only objects with these labels count; empty for all.", examples=[["person"]]
    )
    min_size: _Part = Field(
        0.0,
        description="Only objects of at least this height count: that of the box, as a part of the picture's height.",
        examples=[0.1],
    )
    max_size: _Part = Field(
        1.0, description="Only objects of at most this height count, as in `min_size`.", examples=[0.8]
    )

    _is_above_min_size = field_validator("max_size")(_above_min_size)


class PolygonConfig(_Shape):
    """The area within a polygon."""

    polygon: tuple[_Point, ...] = Field(
        description="Its corners, [x, y], as parts of the picture's width and height from the top left; 3 to 64.",
        examples=[[[0.1, 0.5], [0.4, 0.5], [0.4, 1.0], [0.1, 1.0]]],
    )
    anchor: Anchor = Field(
        "bottom",
        description='What of an object must be inside: "bottom" the middle of the lower edge of its box, where it '
        'stands; "center" the middle of the box; "any" any part of the box.',
        examples=["any"],
    )

    @field_validator("polygon")
    @classmethod
    def _is_simple(cls, polygon: tuple[Point, ...]) -> tuple[Point, ...]:
        if not 3 <= len(polygon) <= MAX_POINTS:
            refuse(f"has {len(polygon)} points; a polygon has 3 to {MAX_POINTS}")
        if len(set(polygon)) < len(polygon):
            refuse("has a point twice; leave the second one out: the polygon is closed automatically")
        if all(side_of(polygon[0], polygon[1], corner) == 0 for corner in polygon):
            refuse("has no area; its corners lie on one line")
        if crossing := crossing_sides(polygon):
            first, second = crossing
            refuse(f"crosses itself: side {first + 1} meets side {second + 1}; give the corners in their order")
        return polygon


class ZoneConfig(PolygonConfig):
    """An area that objects enter and leave."""

    min_score: Threshold = Field(
        0.0, description="Only objects whose best score so far is at least this count.", examples=[0.7]
    )
    dwell_seconds: tuple[_VisitSeconds, ...] = Field(
        (),
        description="Durations of a visit that are reported when they are reached: up to 8, the shortest first.",
        examples=[[10, 60]],
    )
    loiter_seconds: _VisitSeconds | None = Field(
        None,
        description="A visit that lasts this long is reported as loitering. Default: no visit is.",
        examples=["5 min"],
    )

    @field_validator("dwell_seconds")
    @classmethod
    def _rise(cls, dwell_seconds: tuple[float, ...]) -> tuple[float, ...]:
        if len(dwell_seconds) > MAX_DWELLS:
            refuse(f"has {len(dwell_seconds)} durations; at most {MAX_DWELLS} are allowed")
        for before, after in pairwise(dwell_seconds):
            if before == after:
                refuse(f"has {before:g} s twice; leave one out")
            if before > after:
                refuse(f"has {before:g} s before {after:g} s; give the shortest first")
        return dwell_seconds


class MaskConfig(PolygonConfig):
    """An area whose detections are left out."""


class LineConfig(_Shape):
    """A line that objects cross."""

    points: tuple[_Point, ...] = Field(
        description="Its two ends, [x, y], as in `polygon`. An object that crosses from its left to its right, seen "
        'from the first end towards the second, goes "in".',
        examples=[[[0.0, 0.75], [1.0, 0.75]]],
    )
    anchor: Literal["bottom", "center"] = Field(
        "bottom",
        description='What of an object must cross: "bottom" the middle of the lower edge of its box, where it stands; '
        '"center" the middle of the box.',
        examples=["center"],
    )
    min_score: Threshold = Field(
        0.0, description="Only objects whose best score so far is at least this count.", examples=[0.7]
    )

    @field_validator("points")
    @classmethod
    def _is_a_line(cls, points: tuple[Point, ...]) -> tuple[Point, ...]:
        if len(points) != 2:
            refuse(f"has {len(points)} points; a line has 2")
        if points[0] == points[1]:
            refuse("begins where it ends")
        return points


SHAPES: dict[str, type[ZoneConfig | LineConfig | MaskConfig]] = {
    "zones": ZoneConfig,
    "lines": LineConfig,
    "masks": MaskConfig,
}
"""The shapes in the lists of a stream."""
POINTS = ("polygon", "points")
"""Keys of shapes that hold points."""
Shapes = tuple[ZoneConfig, ...] | tuple[LineConfig, ...] | tuple[MaskConfig, ...]


def check_shapes(shapes: Shapes) -> None:
    """Refuses shapes that cannot be in one list.

    Raises:
        ValueError: there are too many, or two have the same name.
    """
    if len(shapes) > MAX_SHAPES:
        refuse(f"are {len(shapes)}; at most {MAX_SHAPES} are allowed")
    names = [shape.name for shape in shapes]
    for name in names:
        if names.count(name) > 1:
            refuse(f'hold the name "{name}" twice; every one needs a name of its own')


class StreamConfig(BaseModel):
    """One stream: where its pictures come from, and how they are read."""

    model_config = table("on reload")

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Its name in events, metrics and logs: small letters, digits, - _ . (1 to 64), the first one a "
        "letter or digit; no two streams may share one.",
        examples=["front-door"],
    )
    url: str = Field(
        repr=False,
        description="Where its pictures come from: rtsp://, rtsps://, http://, https:// (MJPEG, JPEG or HLS), "
        "file:///, the path of a file (relative to this file), /dev/videoN, or the number of a V4L2 device.",
        examples=["rtsp://${FRONT_DOOR_LOGIN}@192.0.2.5/stream1", "clip.mp4", "/dev/video0", "0"],
    )
    detect_url: str | None = Field(
        None,
        repr=False,
        description="A smaller stream of the same camera, on which detection runs. `url` is then read for clips alone, "
        "without decoding it, while a rule asks for them. Both over the network.",
        examples=["rtsp://${FRONT_DOOR_LOGIN}@192.0.2.5/stream2"],
    )
    backend: Literal["auto", "av", "opencv"] = Field(
        "auto",
        description="No longer used: PyAV reads network streams and files, OpenCV reads devices. To be deleted.",
        examples=["av"],
    )
    transport: Literal["auto", "tcp", "udp"] = Field(
        "auto", description='How RTSP carries pictures; "auto" tries TCP, then UDP. For rtsp:// only.', examples=["udp"]
    )
    video_track: Annotated[int, Field(ge=0, le=999)] | None = Field(
        None,
        description="Which of several videos of a file, or variants of a playlist, is read: 0 for the first. Default: "
        "FFmpeg's choice, by frames and bit rate, and never a cover picture.",
        examples=[1],
    )
    hwaccel: str = Field(
        "none",
        description='Hardware that decodes H.264 and H.265 of live streams: "none", "auto" (what takes clearly less '
        f"CPU time in a trial) or a name: {', '.join(HWACCELS[2:])}. Where it fails, the CPU decodes, and one line "
        "says so.",
        examples=["auto", "vaapi"],
        json_schema_extra={"enum": list(HWACCELS)},
    )
    decode: Literal["auto", "all", "reference", "keyframes"] = Field(
        "auto",
        description='Which pictures are decoded: "all"; "reference", without those that no other depends on (H.264, '
        'H.265); "keyframes" alone; "auto", all that `max_fps` lets through, and those that they depend on. Others '
        "are counted as `not_decoded`. Not for devices.",
        examples=["keyframes"],
    )
    tls_verify: Switch = Field(
        True,  # noqa: FBT003 - the default of the field
        description="Whether the server must show a certificate that is valid for its host. For rtsps:// and https://.",
        examples=[False],
    )
    tls_ca_file: str | None = Field(
        None,
        min_length=1,
        description="Certificates (PEM) to trust instead of the system's, relative to this file. For rtsps:// and "
        "https://.",
        examples=["/etc/streamdet/cameras-ca.pem"],
    )
    pace: Literal["realtime", "fastest"] = Field(
        "realtime",
        description='How a file is read: "realtime" as a live stream, "fastest" as fast as detection goes, losing '
        "nothing. For files only.",
        examples=["fastest"],
    )
    loop: Switch = Field(
        False,  # noqa: FBT003 - the default of the field
        description="Whether a file starts again at its end, also one behind http:// or a complete HLS playlist. "
        "It does not affect live streams.",
        examples=[True],
    )
    max_fps: Annotated[float, Field(gt=0, le=1000), AS_NUMBER] | None = Field(
        None,
        description="Frames per second that are detected at most. Default: all.",
        examples=[10],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    gate: Literal["off", "motion"] = Field(
        "off",
        description='Which frames are detected: "off" all, "motion" those in which something moves or an object does; '
        "frames that show nothing new are left out and counted as `gated`. docs/gate.md says what it saves and misses.",
        examples=["motion"],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    gate_max_seconds: Seconds = Field(
        10.0,
        ge=0.1,
        le=60,
        description="With `gate`: at least one frame is detected in this time, whatever moves.",
        examples=["30 s"],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    max_frame_age_seconds: Seconds = Field(
        2.0,
        gt=0,
        le=3600,
        description="Frames that have waited longer are dropped as stale.",
        examples=["500 ms"],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    weight: Number = Field(
        1.0,
        ge=0.001,
        le=1000,
        description="Its share if there are more frames than can be detected; 2 gets twice the frames of 1.",
        examples=[2],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    connect_timeout_seconds: Seconds = Field(
        5.0, gt=0, le=300, description="How long it may take to open a connection.", examples=["5 s"]
    )
    stall_seconds: Seconds = Field(
        10.0,
        gt=0,
        le=3600,
        description="Without a frame for this long, the stream counts as stalled and is reconnected.",
        examples=["10 s"],
    )

    labels: tuple[str, ...] = Field(
        (),
        description="Publish only these labels of those that `[detector]` publishes; empty for all of them.",
        examples=[["person"]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    score_threshold: Threshold | None = Field(
        None,
        description="Detections with a lower score are not published. Default: the thresholds of `[detector]`, also "
        "those for single labels, all of which this one replaces.",
        examples=[0.3],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    score_thresholds: dict[str, Threshold] = Field(
        {},
        description="Thresholds for single labels, instead of all others.",
        examples=[{"person": 0.4}],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    min_size: Threshold = Field(
        0.0,
        description="Only detections are published whose box is at least this high, as a part of the picture's height.",
        examples=[0.05],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    max_size: Threshold = Field(
        1.0,
        description="Only detections are published whose box is at most this high, as a part of the picture's height.",
        examples=[0.5],
        json_schema_extra=_KEEPS_CONNECTION,
    )

    tiles: Literal["off", "2x2", "3x3"] = Field(
        "off",
        description="Into how many overlapping tiles each frame is cut. The detector looks at them as well as at the "
        "whole frame, and so finds smaller objects, for the cost of 5 frames or of 10. docs/tiles.md says what it "
        "finds.",
        examples=["2x2"],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    track: Switch = Field(
        True,  # noqa: FBT003 - the default of the field
        description="Whether detections get track ids, the same for the same object in successive frames. Lines need "
        "them.",
        examples=[False],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    track_start_score: Threshold = Field(
        0.6,
        description="Detections with a lower score may continue a track, but begin none.",
        examples=[0.5],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    track_max_lost_seconds: Seconds = Field(
        2.0,
        ge=0,
        le=60,
        description="How long an object that is not detected keeps its track id.",
        examples=["5 s"],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    zones: tuple[ZoneConfig, ...] = Field(
        (),
        description="Areas; each detection lists those that it is in, and objects enter and leave them.",
        examples=[[{"name": "door", "polygon": [[0.1, 0.5], [0.4, 0.5], [0.4, 1.0], [0.1, 1.0]]}]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    lines: tuple[LineConfig, ...] = Field(
        (),
        validate_default=True,
        description="Lines; events report which objects crossed them, and in which direction.",
        examples=[[{"name": "gate", "points": [[0.0, 0.75], [1.0, 0.75]]}]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    masks: tuple[MaskConfig, ...] = Field(
        (),
        description="Areas; detections in them are left out. A mask for all objects, without labels and sizes, is "
        "black in all pictures that leave the daemon.",
        examples=[[{"name": "street", "polygon": [[0.0, 0.0], [1.0, 0.0], [1.0, 0.2]], "labels": ["car"]}]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    gate_zones: tuple[str, ...] = Field(
        (),
        validate_default=True,
        description="With `gate`: names of zones; only what moves in them starts detection. Default: what moves "
        "anywhere but in a mask for all objects.",
        examples=[["door"]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    time_zone: str | None = Field(
        None,
        min_length=1,
        description="The time zone in which rules take the time of day, by its IANA name. Default: this machine's.",
        examples=["Europe/Berlin"],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    blur: tuple[str, ...] = Field(
        (),
        description="Labels of objects that are made unrecognisable in all pictures that leave the daemon; rules for "
        "such a stream cannot have clips. docs/objects.md says what this cannot promise.",
        examples=[["person"]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    paused: Switch = Field(
        False,  # noqa: FBT003 - the default of the field
        description="Whether the stream is paused: it is not connected, and its state is `down` with the reason "
        "`paused`. `streamdet streams pause` and `resume` change it at run time.",
        examples=[True],
    )

    @field_validator("url")
    @classmethod
    def _leads_somewhere(cls, url: str) -> str:
        kind_of_url(url)
        return with_small_scheme(url)

    @field_validator("detect_url")
    @classmethod
    def _is_a_substream(cls, detect_url: str | None, info: ValidationInfo) -> str | None:
        if detect_url is None or "url" not in info.data:
            return detect_url
        kinds = {kind_of_url(detect_url), kind_of_url(info.data["url"])}
        if kinds & {UrlKind.FILE, UrlKind.DEVICE}:
            refuse(
                "is for cameras with two streams over the network: this url and it must begin with rtsp://, "
                "rtsps://, http:// or https://"
            )
        return with_small_scheme(detect_url)

    @property
    def detected(self) -> StreamConfig:
        """The configuration by which the stream that detection runs on is read."""
        if self.detect_url is None:
            return self
        return self.model_copy(update={"url": self.detect_url, "detect_url": None})

    @property
    def looks(self) -> int:
        """How many pictures the detector looks at for one frame: the whole, and its tiles."""
        return looks_at(TILES[self.tiles])

    @field_validator("zones", "lines", "masks")
    @classmethod
    def _fit_together(cls, shapes: Shapes, info: ValidationInfo) -> Shapes:
        check_shapes(shapes)
        if info.data.get("track") is not False:
            return shapes
        if shapes and info.field_name == "lines":
            refuse("need track ids; set track = true, or delete them")
        for shape in shapes:
            if isinstance(shape, ZoneConfig) and (shape.dwell_seconds or shape.loiter_seconds):
                refuse(f'hold durations for "{shape.name}", which need track ids; set track = true, or delete them')
        return shapes

    @field_validator("gate_zones")
    @classmethod
    def _are_zones(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        zones = [zone.name for zone in info.data.get("zones", ())]
        for name in names if "zones" in info.data else ():
            if name not in zones:
                known = f"its zones are {', '.join(zones)}" if zones else "the stream has no zones"
                refuse(f'holds "{name[:40]}", which is no zone of this stream; {known}')
        return names

    _is_above_min_size = field_validator("max_size")(_above_min_size)
    _is_a_time_zone = field_validator("time_zone")(_time_zone)
    _is_known = field_validator("hwaccel")(_hwaccel)

    @field_validator("transport", "decode", "tls_verify", "tls_ca_file", "pace", "loop", "video_track")
    @classmethod
    def _fits_url(cls, value: object, info: ValidationInfo) -> object:
        field = str(info.field_name)
        if "url" not in info.data or value == cls.model_fields[field].default:
            return value
        fits = KEY_FITS[field]
        if kind_of_url(info.data["url"]) not in fits:
            urls = " and ".join("files" if kind is UrlKind.FILE else f"{kind}://" for kind in sorted(fits))
            refuse(f"applies to {urls} only; delete it here")
        return value


def keeps_connection(before: StreamConfig, after: StreamConfig) -> bool:
    """Whether a stream can change to its next configuration without reconnecting."""
    return not any(
        getattr(before, key) != getattr(after, key)
        for key, field in StreamConfig.model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(KEEPS_CONNECTION))
    )


def _stream_defaults() -> type[BaseModel]:
    keys: dict[str, Any] = {
        key: (field.annotation, field) for key, field in StreamConfig.model_fields.items() if key not in OF_ONE_STREAM
    }
    checks: dict[str, Any] = {
        "_is_above_min_size": field_validator("max_size")(_above_min_size),
        "_is_a_time_zone": field_validator("time_zone")(_time_zone),
        "_is_known": field_validator("hwaccel")(_hwaccel),
    }
    model = create_model("StreamDefaults", __config__=table("on reload"), __validators__=checks, **keys)
    model.__doc__ = "Defaults for all streams; a stream's own values win."
    return model


StreamDefaults = _stream_defaults()


def side_of(start: Point, end: Point, point: Point) -> float:
    """Above 0 to the right of the line as seen from its start (y points down), below 0 to its left, 0 on it."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def segments_meet(start: Point, end: Point, other_start: Point, other_end: Point) -> bool:
    """Whether two segments have a point in common, their ends included."""
    one, two = side_of(start, end, other_start), side_of(start, end, other_end)
    three, four = side_of(other_start, other_end, start), side_of(other_start, other_end, end)
    if (one > 0) != (two > 0) and (three > 0) != (four > 0) and 0 not in (one, two, three, four):
        return True
    return any(
        side == 0 and _within(*ends, point)
        for side, ends, point in (
            (one, (start, end), other_start),
            (two, (start, end), other_end),
            (three, (other_start, other_end), start),
            (four, (other_start, other_end), end),
        )
    )


def crossing_sides(polygon: tuple[Point, ...]) -> tuple[int, int] | None:
    """Two sides of a polygon, counted from 0, that meet elsewhere than in a shared corner; None if no sides do."""
    count = len(polygon)
    sides = [(polygon[index], polygon[(index + 1) % count]) for index in range(count)]
    for first in range(count):
        for second in range(first + 1, count):
            if second == first + 1 or (first == 0 and second == count - 1):
                # Neighbours share a corner; they cross only where one runs back along the other.
                near, far = (first, second) if second == first + 1 else (second, first)
                if _runs_back(sides[near][0], sides[near][1], sides[far][1]):
                    return first, second
            elif segments_meet(*sides[first], *sides[second]):
                return first, second
    return None


def _within(start: Point, end: Point, point: Point) -> bool:
    """Whether a point on the line through both ends lies between them."""
    low_x, high_x = sorted((start[0], end[0]))
    low_y, high_y = sorted((start[1], end[1]))
    return low_x <= point[0] <= high_x and low_y <= point[1] <= high_y


def _runs_back(start: Point, corner: Point, end: Point) -> bool:
    forward = (corner[0] - start[0]) * (end[0] - corner[0]) + (corner[1] - start[1]) * (end[1] - corner[1])
    return side_of(start, corner, end) == 0 and forward < 0

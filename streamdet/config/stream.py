"""`[[streams]]`, and `[stream_defaults]` with the same keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, create_model, field_validator

from streamdet.config.addresses import UrlKind, kind_of_url, with_small_scheme
from streamdet.config.shapes import NAME_PATTERN, LineConfig, PolygonConfig, check_shapes
from streamdet.config.tables.base import Threshold, table
from streamdet.config.values import AS_NUMBER, Number, Seconds, Switch, refuse

HWACCELS = ("none", "auto", "cuda", "drm", "qsv", "vaapi", "vdpau", "videotoolbox", "vulkan")
OF_ONE_STREAM = ("name", "url", "zones", "lines", "masks")
"""Keys that make no sense for all streams at once."""
_TLS_KINDS = frozenset({UrlKind.RTSPS, UrlKind.HTTPS})
# Marks a key whose change leaves the connection as it is: it says what is done with frames, not how they are read.
KEEPS_CONNECTION = "x-keeps-connection"
_KEEPS_CONNECTION: dict[str, Any] = {KEEPS_CONNECTION: True}
# Which keys of a stream mean something for which kind of url; all others fit every kind.
KEY_FITS: dict[str, frozenset[UrlKind]] = {
    "transport": frozenset({UrlKind.RTSP}),
    "tls_verify": frozenset({UrlKind.RTSPS, UrlKind.HTTPS}),
    "tls_ca_file": frozenset({UrlKind.RTSPS, UrlKind.HTTPS}),
    "pace": frozenset({UrlKind.FILE}),
    "loop": frozenset({UrlKind.FILE, UrlKind.HTTP, UrlKind.HTTPS}),
    "video_track": frozenset(set(UrlKind) - {UrlKind.DEVICE}),
}


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
        description="Where its pictures come from: rtsp://, rtsps://, http://, https:// (MJPEG or HLS), file:///, the "
        "path of a file (relative to this file), /dev/videoN, or the number of a V4L2 device.",
        examples=["rtsp://${FRONT_DOOR_LOGIN}@192.0.2.5/stream1", "clip.mp4", "/dev/video0", "0"],
    )
    backend: Literal["auto", "av", "opencv"] = Field(
        "auto",
        description='What reads it: "av" (PyAV), "opencv", or "auto": PyAV for network and files, OpenCV for devices. '
        "OpenCV reads no HLS, and nothing over TLS.",
        examples=["av"],
    )
    transport: Literal["auto", "tcp", "udp"] = Field(
        "auto", description='How RTSP carries pictures; "auto" tries TCP, then UDP. For rtsp:// only.', examples=["udp"]
    )
    video_track: Annotated[int, Field(ge=0, le=999)] | None = Field(
        None,
        description="Which of several videos of a file, or variants of a playlist, is read: 0 for the first. Without "
        "it the best as FFmpeg chooses: no cover, the one of most frames and the highest bit rate. For PyAV only.",
        examples=[1],
    )
    hwaccel: str = Field(
        "none",
        description='Hardware decoding: "none", "auto" (whatever this machine has) or a name: '
        f"{', '.join(HWACCELS[2:])}. Falls back to software, and says so in one line.",
        examples=["auto", "vaapi"],
        json_schema_extra={"enum": list(HWACCELS)},
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
        description="Whether a file begins again at its end, also one behind http:// or a complete HLS playlist. "
        "Live streams have no end, and are not changed by it.",
        examples=[True],
    )
    max_fps: Annotated[float, Field(gt=0, le=1000), AS_NUMBER] | None = Field(
        None,
        description="Frames per second that are detected at most; without it, all.",
        examples=[10],
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
        description="Its share when there are more frames than can be detected; 2 gets twice the frames of 1.",
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
        description="Without a frame for so long, the stream counts as stalled and is connected anew.",
        examples=["10 s"],
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
    zones: tuple[PolygonConfig, ...] = Field(
        (),
        description="Areas; detections say in which ones the middle of their lower edge lies.",
        examples=[[{"name": "door", "polygon": [[0.1, 0.5], [0.4, 0.5], [0.4, 1.0], [0.1, 1.0]]}]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    lines: tuple[LineConfig, ...] = Field(
        (),
        validate_default=True,
        description="Lines; events say which objects went over them, and in which direction.",
        examples=[[{"name": "gate", "points": [[0.0, 0.75], [1.0, 0.75]]}]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    masks: tuple[PolygonConfig, ...] = Field(
        (),
        description="Areas; detections whose lower edge has its middle there are left out.",
        examples=[[{"name": "street", "polygon": [[0.0, 0.0], [1.0, 0.0], [1.0, 0.2]], "labels": ["car"]}]],
        json_schema_extra=_KEEPS_CONNECTION,
    )
    paused: Switch = Field(
        False,  # noqa: FBT003 - the default of the field
        description="Whether it is left alone for now: nothing is connected, its state is `down` with the reason "
        "`paused`. `streamdet streams pause` and `resume` change it at run time.",
        examples=[True],
    )

    @field_validator("url")
    @classmethod
    def _leads_somewhere(cls, url: str) -> str:
        kind_of_url(url)
        return with_small_scheme(url)

    @field_validator("backend")
    @classmethod
    def _speaks_safely(cls, backend: str, info: ValidationInfo) -> str:
        if backend == "opencv" and "url" in info.data and kind_of_url(info.data["url"]) in _TLS_KINDS:
            refuse('"opencv" brings a TLS library that is no longer maintained; use "av" for rtsps:// and https://')
        return backend

    @field_validator("zones", "lines", "masks")
    @classmethod
    def _fit_together(
        cls, shapes: tuple[PolygonConfig, ...] | tuple[LineConfig, ...], info: ValidationInfo
    ) -> tuple[PolygonConfig, ...] | tuple[LineConfig, ...]:
        check_shapes(shapes)
        if shapes and info.field_name == "lines" and info.data.get("track") is False:
            refuse("need track ids; set track = true, or delete them")
        return shapes

    @field_validator("hwaccel")
    @classmethod
    def _is_known(cls, hwaccel: str) -> str:
        if hwaccel not in HWACCELS:
            refuse(f"must be one of {', '.join(HWACCELS)}")
        return hwaccel

    @field_validator("transport", "tls_verify", "tls_ca_file", "pace", "loop", "video_track")
    @classmethod
    def _fits_url(cls, value: object, info: ValidationInfo) -> object:
        field = str(info.field_name)
        if "url" not in info.data or value == cls.model_fields[field].default:
            return value
        fits = KEY_FITS[field]
        if field == "video_track" and info.data.get("backend") == "opencv":
            refuse('means something for PyAV only; delete it here, or backend = "opencv"')
        if kind_of_url(info.data["url"]) not in fits:
            urls = " and ".join("files" if kind is UrlKind.FILE else f"{kind}://" for kind in sorted(fits))
            refuse(f"means something for {urls} only; delete it here")
        return value


def keeps_connection(before: StreamConfig, after: StreamConfig) -> bool:
    """Whether a stream need not be connected anew for its next configuration."""
    return not any(
        getattr(before, key) != getattr(after, key)
        for key, field in StreamConfig.model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(KEEPS_CONNECTION))
    )


def _stream_defaults() -> type[BaseModel]:
    keys: dict[str, Any] = {
        key: (field.annotation, field) for key, field in StreamConfig.model_fields.items() if key not in OF_ONE_STREAM
    }
    model = create_model("StreamDefaults", __config__=table("on reload"), **keys)
    model.__doc__ = "Defaults for all streams; what stands in a stream itself wins."
    return model


StreamDefaults = _stream_defaults()

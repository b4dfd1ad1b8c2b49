"""The configuration of one daemon: a model for each table of the file, and `Config`, all of them together.

`[[streams]]` is in `stream.py`. The description of a key is what editors show and what docs/configuration.md says.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from streamdet.config.bridges import MAX_WEBHOOKS, BridgesConfig, WebhookConfig
from streamdet.config.files import FilesConfig
from streamdet.config.listening import parse_host_port, parse_publisher_endpoint, refuse_others_without_keys
from streamdet.config.mqtt import MqttConfig
from streamdet.config.rules import RuleConfig
from streamdet.config.stream import TILES, StreamConfig
from streamdet.config.values import (
    AS_NUMBER,
    AS_WHOLE_NUMBER,
    ON_RELOAD,
    Bytes,
    Number,
    Seconds,
    Switch,
    Threshold,
    WholeNumber,
    refuse,
    table,
)
from streamdet.config.web import WebConfig
from streamdet.security.endpoints import MAX_SOCKET_PATH_BYTES, is_loopback
from streamdet.types import DetectionSettings

Model = Literal[
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
]

MAX_NODE_CHARACTERS = 64
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")


def _is_auto(value: object) -> str:
    return "[auto]" if value == "auto" else "[number]"


# The tags are in brackets, so that error messages cannot take them for keys.
AutoOrBatchSize = Annotated[
    Annotated[Literal["auto"], Tag("[auto]")] | Annotated[int, Field(ge=1, le=64), AS_WHOLE_NUMBER, Tag("[number]")],
    Discriminator(_is_auto),
]
_BATCH_SIZE = 8


def _sorted(thresholds: dict[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(thresholds.items()))


class DetectorConfig(BaseModel):
    """The detector: weights, thresholds, batches."""

    model_config = table("at a restart")

    weights: str = Field(
        "embedded",
        min_length=1,
        description='Weights of the detector: "embedded" (part of the package), "coco" (torchvision\'s own, downloaded '
        "at first use; needs `model`), or a file (.safetensors, or .pth with a state dict), relative to this file.",
        examples=["embedded", "coco", "/var/lib/streamdet/yard.safetensors"],
    )
    model: Model | None = Field(
        None,
        validate_default=True,
        description='Architecture; needed for weights = "coco" and for .pth files, not allowed for "embedded"; other '
        "weights contain it.",
        examples=["fasterrcnn_resnet50_fpn"],
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:all|cuda:[0-9]{1,2})$",
        description='Where the detector runs: "cpu", "cuda", "cuda:1", "cuda:all" (engine = "graph" only), or "auto", '
        'which takes a CUDA device if there is one; with engine = "graph", all of them.',
        examples=["auto", "cpu", "cuda:0"],
    )
    engine: Literal["auto", "torch", "graph", "openvino", "reference"] = Field(
        "auto",
        description='What runs the model: "torch"; "graph", all of it as one CUDA graph; "openvino", often faster on a '
        'CPU (needs the extra of that name); "reference", torchvision\'s own code, slow, to compare with; or "auto", '
        "the fastest that agrees with torch in fp32 in a trial on this machine, at the first start (see `streamdet "
        "engines`).",
        examples=["auto", "torch"],
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description='Numbers that the model computes with: "fp32", exact; "bf16", half the size; "int8", a quarter '
        '(engine = "openvino" only); or "auto": the fastest in the trial that finds the same objects as fp32.',
        examples=["auto", "fp32"],
    )
    workers: Annotated[int, Field(ge=1, le=64), AS_WHOLE_NUMBER] | None = Field(
        None,
        description="Batches that are detected at the same time on a CPU, each by one thread. Default: as many as the "
        "cores allow, measured while running.",
        examples=[4],
    )
    score_threshold: Threshold = Field(
        0.5,
        description="Detections with a lower score are not published.",
        examples=[0.5, "${SCORE_THRESHOLD}"],
        json_schema_extra=ON_RELOAD,
    )
    score_thresholds: dict[str, Threshold] = Field(
        {},
        description="Thresholds for single labels, instead of `score_threshold`.",
        examples=[{"person": 0.4}],
        json_schema_extra=ON_RELOAD,
    )
    labels: tuple[str, ...] = Field(
        (),
        description="Publish only these labels; empty for all that the weights know.",
        examples=[["person", "car"]],
        json_schema_extra=ON_RELOAD,
    )
    max_detections: WholeNumber = Field(
        100,
        ge=1,
        le=1000,
        description="Detections per frame at most; those with the highest scores are kept.",
        examples=[50],
        json_schema_extra=ON_RELOAD,
    )
    max_batch_size: AutoOrBatchSize = Field(
        "auto",
        description='Largest number of frames that are detected together, at most one per stream; or "auto": on a CPU '
        "the fewest that come within a tenth of the best throughput in the trial, to keep latency low, otherwise 8.",
        examples=["auto", 16],
    )
    max_batch_delay_seconds: Seconds = Field(
        0.01,
        ge=0,
        le=1,
        description="How long the first frame of a batch waits for others, at the most: the batch leaves sooner when "
        "it is full, or when no other stream is expected to send a frame before that. A longer wait makes batches "
        "larger and events later.",
        examples=["10 ms", 0.005],
    )

    @property
    def largest_batch(self) -> int:
        """Frames of a batch at most; 8 for "auto" as long as no trial has found a better number."""
        return _BATCH_SIZE if self.max_batch_size == "auto" else self.max_batch_size

    def settings_for(self, stream: StreamConfig | None = None) -> DetectionSettings:
        """What counts as a detection: what the stream says, and this table for what the stream leaves open.

        A `score_threshold` of the stream also replaces the `score_thresholds` of this table.
        """
        if stream is None:
            own = _sorted(self.score_thresholds)
            return DetectionSettings(self.labels, self.score_threshold, own, max_detections=self.max_detections)
        by_label = {} if stream.score_threshold is not None else self.score_thresholds
        return DetectionSettings(
            labels=stream.labels or self.labels,
            score_threshold=self.score_threshold if stream.score_threshold is None else stream.score_threshold,
            score_thresholds=_sorted({**by_label, **stream.score_thresholds}),
            min_size=stream.min_size,
            max_size=stream.max_size,
            max_detections=self.max_detections,
            tiles=TILES[stream.tiles],
        )

    @field_validator("model")
    @classmethod
    def _fits_weights(cls, model: str | None, info: ValidationInfo) -> str | None:
        weights = info.data.get("weights", "")
        if weights == "coco" and model is None:
            refuse('is missing; weights = "coco" needs a model, such as model = "fasterrcnn_resnet50_fpn"')
        if weights == "embedded" and model is not None:
            refuse('does not go with weights = "embedded"; delete it, or write weights = "coco"')
        return model


class PublisherConfig(BaseModel):
    """Where events are published."""

    model_config = table("at a restart")

    endpoint: str = Field(
        "tcp://127.0.0.1:5555",
        description="Where subscribers connect: tcp://HOST:PORT (port 0 takes any free one), or ipc://PATH. Other "
        "machines can connect only where the two keys that begin with curve_ are set: then 0.0.0.0 is every address "
        "of this machine.",
        examples=["tcp://127.0.0.1:5555", "tcp://[::1]:5555", "ipc:///run/streamdet/events"],
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="A group of this machine whose members may use an ipc:// endpoint; without it, the daemon's own.",
        examples=["streamdet"],
    )
    curve_server_key_file: str | None = Field(
        None,
        min_length=1,
        description="The daemon's secret key, made by `streamdet keys generate --server`: from then on everything is "
        "encrypted, and only allowed clients can subscribe. Relative to this file.",
        examples=["keys/server.key_secret"],
    )
    curve_allowed_clients_directory: str | None = Field(
        None,
        min_length=1,
        description="The directory with the public keys (NAME.key) of the allowed clients. Files that are added "
        "or removed count at once, without a restart or a reload. Relative to this file.",
        examples=["clients"],
    )
    high_water_mark_events: WholeNumber = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Events queued for one slow subscriber at most; further ones are dropped for this subscriber only.",
        examples=[1000],
    )
    state_interval_seconds: Seconds = Field(
        10.0,
        ge=0.01,
        le=3600,
        description="How often the state of every stream is repeated, for late subscribers.",
        examples=["10 s", "1 min"],
    )
    preview_width: WholeNumber = Field(
        640,
        ge=32,
        le=1920,
        description="Longer side of a preview in pixels at most; of more than four watched streams they are smaller.",
        examples=[640],
    )
    preview_quality: WholeNumber = Field(
        75, ge=1, le=100, description="Quality of the JPEG pictures of previews.", examples=[75]
    )
    preview_max_fps: Number = Field(
        5.0,
        gt=0,
        le=60,
        description="Previews of one stream per second at most; none are made while there are no subscribers to them.",
        examples=[5],
    )
    preview_total_fps: Number = Field(
        24.0,
        gt=0,
        le=10_000,
        description="Previews of all watched streams together per second; each gets one, a single stream its own rate.",
        examples=[24],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_endpoint(cls, endpoint: str) -> str:
        parse_publisher_endpoint(endpoint)
        return endpoint

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        if (self.curve_server_key_file is None) != (self.curve_allowed_clients_directory is None):
            here, there = "curve_server_key_file", "curve_allowed_clients_directory"
            here, there = (there, here) if self.curve_server_key_file is None else (here, there)
            refuse(f"needs {there} as well; set both or neither", key=here)
        if self.curve_server_key_file is None:
            refuse_others_without_keys(self.endpoint)
        return self


class ReplayConfig(BaseModel):
    """What subscribers can request: the newest event of each topic, and events that they have lost."""

    model_config = table("at a restart")

    endpoint: str = Field(
        "auto",
        min_length=1,
        description='Where requests are answered: tcp://HOST:PORT or ipc://PATH, as for `[publisher]`; "off"; or '
        '"auto": the port after that of `[publisher]`, or its path with -replay added, if it is free.',
        examples=["auto", "off", "tcp://127.0.0.1:5556"],
    )
    max_events: WholeNumber = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="Events kept in memory at most, for all streams together; the oldest are dropped.",
        examples=[100_000],
    )
    max_bytes: Bytes = Field(
        32 * 2**20,
        ge=2**20,
        le=2**36,
        description="Bytes of these events at most.",
        examples=["64 MiB"],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_endpoint(cls, endpoint: str) -> str:
        if endpoint not in ("auto", "off"):
            parse_publisher_endpoint(endpoint)
        return endpoint


class SpoolConfig(BaseModel):
    """Events on disk, so that subscribers can also request them after a restart of the daemon."""

    model_config = table("at a restart")

    directory: str | None = Field(
        None,
        min_length=1,
        description="A directory for this daemon alone, relative to this file; created if it is missing. Without it "
        "no events are kept on disk.",
        examples=["/var/lib/streamdet/streamdet/spool"],
    )
    max_bytes: Bytes = Field(
        2**30,
        ge=2**25,
        le=2**43,
        description="Size on disk at most; the oldest events are deleted.",
        examples=["10 GiB"],
    )
    max_age_seconds: Seconds = Field(
        86400.0,
        ge=60,
        le=31_536_000,
        description="Older events are deleted.",
        examples=["24 h", "1 h"],
    )


class PicturesConfig(BaseModel):
    """Pictures of objects, when they end, and of alerts whose rule has `picture = true`, kept on disk."""

    model_config = table("at a restart")

    directory: str | None = Field(
        None,
        min_length=1,
        description="A directory for the pictures of this daemon alone, relative to this file; created if it is "
        "missing. Without it there are no pictures.",
        examples=["/var/lib/streamdet/streamdet/pictures"],
    )
    max_bytes: Bytes = Field(
        2**30,
        ge=2**20,
        le=2**43,
        description="Size on disk at most; the oldest pictures are deleted, also beyond 200,000 of them.",
        examples=["10 GiB"],
    )
    max_age_seconds: Seconds = Field(
        604_800.0,
        ge=60,
        le=31_536_000,
        description="Older pictures are deleted.",
        examples=["168 h", "24 h"],
    )
    size: Literal["crop", "frame"] = Field(
        "crop",
        description='What a picture shows: "crop", the object with a margin around it; or "frame", the whole frame. '
        "Alerts about several objects or none always show the whole frame.",
        examples=["frame"],
    )
    margin: Number = Field(
        0.25,
        ge=0,
        le=4,
        description="The margin on each side of the object, as a part of the longer side of its box.",
        examples=[0.5],
    )
    quality: WholeNumber = Field(85, ge=1, le=100, description="Quality of the JPEG pictures.", examples=[85])
    boxes: Switch = Field(
        default=False, description="Whether the boxes of the objects are drawn into the pictures.", examples=[True]
    )
    in_events: Switch = Field(
        default=False,
        description="Whether the event carries its picture as well, in a third part of the message. An alert then "
        "waits for its picture, for half a second at most.",
        examples=[True],
    )


class ClipsConfig(BaseModel):
    """Clips around alerts whose rule has `clip_seconds`, kept on disk as MP4, in the encoding of the camera."""

    model_config = table("at a restart")

    directory: str | None = Field(
        None,
        min_length=1,
        description="A directory for the clips of this daemon alone, relative to this file; created if it is missing. "
        "Without it there are no clips.",
        examples=["/var/lib/streamdet/streamdet/clips"],
    )
    ring_seconds: Seconds = Field(
        30.0,
        gt=0,
        le=600,
        description="The longest clip. Each stream that has a rule with clips keeps this much encoded video in memory, "
        "plus two seconds and the time between two key frames.",
        examples=["30 s", "1 min"],
    )
    max_ring_bytes: Bytes = Field(
        64 * 2**20,
        ge=2**20,
        le=2**32,
        description="Memory for each of these streams at most; if it is too small for `ring_seconds`, clips are "
        "shorter.",
        examples=["64 MiB"],
    )
    max_bytes: Bytes = Field(
        10 * 2**30,
        ge=2**24,
        le=2**43,
        description="Size on disk at most; the oldest clips are deleted.",
        examples=["10 GiB"],
    )
    max_age_seconds: Seconds = Field(
        604_800.0,
        ge=60,
        le=31_536_000,
        description="Older clips are deleted.",
        examples=["168 h", "24 h"],
    )

    @field_validator("max_bytes")
    @classmethod
    def _holds_a_clip(cls, max_bytes: int, info: ValidationInfo) -> int:
        largest = info.data.get("max_ring_bytes", 0)
        if max_bytes < largest:
            refuse(f"is less than max_ring_bytes = {largest}: the largest clip would not fit; raise it")
        return max_bytes


class MetricsConfig(BaseModel):
    """The pages for Prometheus (/metrics) and for health checks (/healthz, /readyz)."""

    model_config = table("at a restart")

    endpoint: str = Field(
        "127.0.0.1:9095",
        description="HOST:PORT of the metrics page (port 0 takes any free one). Where other machines can reach it, a "
        "certificate and a password are needed.",
        examples=["127.0.0.1:9095", "[::1]:9095"],
    )
    tls_certificate_file: str | None = Field(
        None,
        min_length=1,
        description="Certificate (PEM, with those between it and the authority) to serve https:// with. Relative to "
        "this file.",
        examples=["metrics.pem"],
    )
    tls_key_file: str | None = Field(
        None,
        min_length=1,
        description="The key of that certificate (PEM, without a password). Relative to this file.",
        examples=["metrics.key"],
    )
    username: str = Field(
        "streamdet", min_length=1, description="The user name for the password.", examples=["streamdet"]
    )
    password_file: str | None = Field(
        None,
        min_length=1,
        description="The password, as `streamdet web --set-password FILE` stores it: only a hash. Relative to this "
        "file.",
        examples=["metrics.password"],
    )
    hosts: list[str] = Field(
        [],
        max_length=100,
        description="Host names, besides `localhost` and addresses, that requests may use. Empty: on "
        "loopback no others, so that no web site reads them through a browser of this machine (DNS rebinding); "
        "elsewhere any.",
        examples=[["metrics.example.org"]],
    )
    insecure: Switch = Field(
        default=False,
        description="Whether other machines may read the page without encryption or password: anyone who reaches the "
        "port sees the streams' names and states.",
        examples=[False],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_endpoint(cls, endpoint: str) -> str:
        parse_host_port(endpoint)
        return endpoint

    @field_validator("username")
    @classmethod
    def _is_username(cls, username: str) -> str:
        if ":" in username or not username.isascii() or not username.isprintable() or len(username) > 100:
            refuse("must be up to 100 letters, digits and signs without a colon")
        return username

    @field_validator("hosts")
    @classmethod
    def _are_names(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if _HOST_NAME.fullmatch(host) is None:
                refuse("must be names of machines, without http:// and port, like metrics.example.org")
        return hosts

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            here, there = ("certificate", "key") if self.tls_key_file is None else ("key", "certificate")
            refuse(f"needs tls_{there}_file as well; set both or neither", key=f"tls_{here}_file")
        closed = self.tls_key_file is not None and self.password_file is not None
        if not closed and not self.insecure and not is_loopback(parse_host_port(self.endpoint).host):
            refuse(
                "would be open to other machines without any check: set tls_certificate_file, tls_key_file and "
                "password_file (streamdet web --set-password FILE makes one), or use 127.0.0.1:9095 or [::1]:9095",
                key="endpoint",
            )
        return self


class LogConfig(BaseModel):
    """What is logged, on standard error."""

    model_config = table("on reload")

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The lowest level that is logged.", examples=["warning"]
    )
    format: Literal["auto", "text", "json"] = Field(
        "auto",
        description='"text" for people, "json" for programs (one object per line), "auto": text. Lines to systemd\'s '
        "journal have no time, which the journal adds, and begin with their priority (see sd-daemon(3)).",
        examples=["json"],
    )


class ControlConfig(BaseModel):
    """Where programs reach the control API of the daemon, which `streamdet reload` and `streamdet streams` use."""

    model_config = table("at a restart")

    path: str = Field(
        "auto",
        min_length=1,
        description='The Unix socket: a path, relative to this file; "off" for none; or "auto": '
        "$RUNTIME_DIRECTORY/control.sock, as systemd sets it, else a socket of this file's own in "
        "$XDG_RUNTIME_DIR/streamdet/, and for root in /run/streamdet/.",
        examples=["auto", "off", "/run/streamdet/control.sock"],
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="A group of this machine whose members may use the socket, too; without it, only the daemon's own "
        "user and root.",
        examples=["streamdet"],
    )
    listen: str | None = Field(
        None,
        description="HOST:PORT at which the API can be reached over TCP as well (port 0 takes any free one), with the "
        "certificate, the login and the names of [metrics]; without it over the Unix socket alone. Where other "
        "machines can reach it, a certificate and a password are needed.",
        examples=["127.0.0.1:9096", "0.0.0.0:9096"],
    )
    changes_file: str = Field(
        "auto",
        min_length=1,
        description="The file that keeps what `streamdet streams ... --persist` changes, written by the daemon alone: "
        'a path, relative to this file, or "auto": $STATE_DIRECTORY/streams.json, as systemd sets it, else beside '
        "this file, with .streams.json for its ending.",
        examples=["auto", "/var/lib/streamdet/streamdet/streams.json"],
    )

    @field_validator("path")
    @classmethod
    def _fits_a_socket(cls, path: str) -> str:
        if len(path.encode(errors="replace")) > MAX_SOCKET_PATH_BYTES or "\0" in path:
            refuse(f"must be a path of at most {MAX_SOCKET_PATH_BYTES} bytes, such as /run/streamdet/control.sock")
        return path

    @field_validator("listen")
    @classmethod
    def _is_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            parse_host_port(endpoint)
        return endpoint


class NodeConfig(BaseModel):
    """This daemon as a node of a cluster, which grants streams to it over the control API; without one, unused."""

    model_config = table("at a restart")

    name: str | None = Field(
        None,
        pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NODE_CHARACTERS - 1}}}$",
        description="The name of the node in events and in the cluster; without it that of the machine.",
        examples=["hall-2"],
    )
    on_lost_head: Literal["keep", "stop"] = Field(
        "keep",
        description='What becomes of granted streams whose lease is not renewed: "keep" runs them on until the cluster '
        'is back; "stop" stops them, so that no camera is ever connected to two nodes for longer than a lease.',
        examples=["stop"],
        json_schema_extra=ON_RELOAD,
    )


class TracingConfig(BaseModel):
    """Traces of single frames, from capture to publication, for an OpenTelemetry collector. Needs `streamdet[otel]`."""

    model_config = table("at a restart")

    endpoint: str | None = Field(
        None,
        description="Where traces go: the http:// or https:// address of a collector that speaks OTLP; without it "
        "nothing is traced. Headers for a login come from OTEL_EXPORTER_OTLP_HEADERS.",
        examples=["http://127.0.0.1:4318/v1/traces"],
    )
    sample_ratio: Annotated[float, Field(ge=0, le=1), AS_NUMBER] = Field(
        0.001, description="Share of the detected frames that are traced, chosen by chance.", examples=[0.01]
    )

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        try:
            parts = urlsplit(endpoint)
            well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            well_formed = False
        if not well_formed:
            refuse("must be the address of a collector, such as http://127.0.0.1:4318/v1/traces")
        if parts.username or parts.password:
            refuse("must not hold a login; put it into the environment variable OTEL_EXPORTER_OTLP_HEADERS")
        return endpoint


class Config(BaseModel):
    """The whole configuration of one daemon, with the defaults of all streams already in every stream."""

    model_config = table("on reload")

    detector: DetectorConfig = Field(DetectorConfig(), description="The detector.")
    publisher: PublisherConfig = Field(PublisherConfig(), description="Where events are published.")
    replay: ReplayConfig = Field(ReplayConfig(), description="What subscribers can request.")
    spool: SpoolConfig = Field(SpoolConfig(), description="Events on disk.")
    pictures: PicturesConfig = Field(PicturesConfig(), description="Pictures of objects and alerts.")
    clips: ClipsConfig = Field(ClipsConfig(), description="Clips around alerts.")
    metrics: MetricsConfig = Field(MetricsConfig(), description="Where Prometheus reads.")
    log: LogConfig = Field(LogConfig(), description="What is logged.")
    control: ControlConfig = Field(ControlConfig(), description="Where the control API listens.")
    node: NodeConfig = Field(NodeConfig(), description="This daemon as a node of a cluster.")
    tracing: TracingConfig = Field(TracingConfig(), description="Where traces of single frames go.")
    web: WebConfig = Field(WebConfig(), description="What users of the page may do; not read by the daemon.")
    stream_defaults: dict[str, Any] = Field(
        {}, repr=False, description="Defaults for all streams, which are in every one already; for those of run time."
    )
    streams: tuple[StreamConfig, ...] = Field((), description="The streams, one table [[streams]] each.")
    rules: tuple[RuleConfig, ...] = Field((), description="What raises alerts, one table [[rules]] each.")
    bridges: BridgesConfig = Field(BridgesConfig(), description="What all bridges share; not read by the daemon.")
    webhooks: tuple[WebhookConfig, ...] = Field(
        (),
        max_length=MAX_WEBHOOKS,
        description="Receivers over HTTP, one table [[webhooks]] each; not read by the daemon.",
    )
    mqtt: MqttConfig = Field(MqttConfig(), description="The broker of the MQTT bridge; not read by the daemon.")
    files: FilesConfig = Field(FilesConfig(), description="The recording of the files bridge; not read by the daemon.")

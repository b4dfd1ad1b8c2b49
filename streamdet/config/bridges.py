"""Bridges, which carry events elsewhere: `[bridges]`, what they share, and `[[webhooks]]`. The daemon reads neither."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

from streamdet.config.listening import parse_host_port
from streamdet.config.stream import NAME_PATTERN
from streamdet.config.values import Seconds, Switch, nearest_or, refuse, table
from streamdet.errors import EndpointError
from streamdet.security.endpoints import is_loopback, parse_endpoint
from streamdet.security.redact import remember_secret
from streamdet.wire import events_schema

METRICS_KEYS = {
    "webhook": ("bridges", "webhook_metrics_endpoint"),
    "mqtt": ("mqtt", "metrics_endpoint"),
    "files": ("files", "metrics_endpoint"),
}
"""Table and key of each bridge's metrics page."""

BRIDGES = tuple(METRICS_KEYS)
"""Every bridge, as `streamdet bridge` and `streamdet install-service --bridge` name it."""

MAX_WEBHOOKS = 64
WebhookEvent = Literal["raised", "cleared", "ended"]
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_LINK = re.compile(r"https?://[^\s@?#<>|\"\x00-\x20\x7f-\U0010ffff]+")
_OUR_HEADERS = ("content-type", "content-length", "host", "idempotency-key", "streamdet-signature", "transfer-encoding")

ACCEPTS = {
    "events": 'a list of `"raised"`, `"cleared"`, `"ended"`',
    "fields": "a table of names, each with the path of a field of the event",
    "headers": "a table of names, each with a text",
}
"""What the keys accept that are neither numbers nor words."""


@functools.cache
def event_fields() -> tuple[str, ...]:
    """The fields of alerts and objects, as paths such as "alert.rule"."""
    shapes = events_schema()["$defs"]
    found: dict[str, None] = {}

    def add(shape: dict[str, Any], prefix: str) -> None:
        for part in (shape, *shape.get("allOf", ())):
            named = shapes[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
            if named is not shape:
                add(named, prefix)
        for name, field in shape.get("properties", {}).items():
            found[prefix + name] = None
            add(field, f"{prefix}{name}.")

    for kind in ("alerts", "objects"):
        add(shapes[kind], "")
    return tuple(found)


class BridgesConfig(BaseModel):
    """What all bridges (`streamdet bridge`) share; the daemon does not read it."""

    model_config = table("at a restart")

    endpoint: str = Field(
        "auto",
        description="Where the daemon publishes: tcp://HOST:PORT or ipc://PATH, and its replay at the port after it, "
        'or "auto": as [publisher] and [replay] of this file say.',
        examples=["auto", "tcp://192.0.2.9:5555"],
    )
    server_key_file: str | None = Field(
        None,
        min_length=1,
        description="The daemon's public key, where it asks for keys (`curve_...` in [publisher]). Relative to this "
        "file.",
        examples=["server.key"],
    )
    client_key_file: str | None = Field(
        None,
        min_length=1,
        description="The bridge's own keys, made by `streamdet keys generate`. Relative to this file.",
        examples=["bridge.key_secret"],
    )
    state_directory: str = Field(
        "auto",
        min_length=1,
        description="A directory where the bridges keep how far they have come, relative to this file; created if it "
        'is missing. "auto": $STATE_DIRECTORY, as systemd sets it, else beside this file, ending in .bridges.',
        examples=["auto", "/var/lib/streamdet-bridges"],
    )
    webhook_metrics_endpoint: str = Field(
        "127.0.0.1:9097",
        description="HOST:PORT of the metrics page of `streamdet bridge webhook`, on loopback (port 0 takes any free "
        "one).",
        examples=["127.0.0.1:9097"],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_endpoint(cls, endpoint: str) -> str:
        if endpoint != "auto":
            try:
                parse_endpoint(endpoint)
            except EndpointError as error:
                refuse(str(error))
        return endpoint

    @field_validator("webhook_metrics_endpoint")
    @classmethod
    def _is_on_loopback(cls, endpoint: str) -> str:
        if not is_loopback(parse_host_port(endpoint).host):
            refuse("would be open to other machines; use an address of loopback, such as 127.0.0.1:9097")
        return endpoint

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        if (self.server_key_file is None) != (self.client_key_file is None):
            here, there = ("server", "client") if self.client_key_file is None else ("client", "server")
            refuse(f"needs {there}_key_file as well; set both or neither", key=f"{here}_key_file")
        return self

    def directory_of(self, bridge: str, config_path: Path) -> Path:
        """Where a bridge keeps how far it has come."""
        if self.state_directory != "auto":
            return Path(self.state_directory) / bridge
        state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        return Path(state) if state else config_path.absolute().with_suffix(".bridges") / bridge


class WebhookConfig(BaseModel):
    """A receiver of alerts and ended objects over HTTP; the daemon does not read it. docs/bridges.md has examples."""

    model_config = table("at a restart")

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Its name in metrics and the log, and of the file that keeps how far it has come.",
        examples=["pager"],
    )
    url: str = Field(
        max_length=2048,
        repr=False,
        description="Where events are posted: https://, or http:// with `allow_private`. Masked in the log.",
        examples=["https://ntfy.sh/${NTFY_TOPIC}"],
    )
    shape: Literal["event", "ntfy", "slack", "alertmanager"] = Field(
        "event",
        description='What is posted: "event", the event as JSON, or the `fields` of it; "ntfy", "slack" (also for '
        'receivers that are compatible with it), "alertmanager": what these expect.',
        examples=["ntfy"],
    )
    events: tuple[WebhookEvent, ...] = Field(
        ("raised",),
        description='Which events are posted: alerts that are "raised", or "cleared", and objects that have "ended".',
        examples=[["raised", "cleared"]],
    )
    streams: tuple[str, ...] = Field(
        (), description="Only events of these streams; empty for all.", examples=[["yard"]]
    )
    rules: tuple[str, ...] = Field((), description="Only alerts of these rules; empty for all.", examples=[["seen"]])
    labels: tuple[str, ...] = Field(
        (),
        description="Only objects with these labels, and alerts about one; empty for all.",
        examples=[["person"]],
    )
    fields: dict[str, str] = Field(
        {},
        max_length=100,
        description='With shape = "event": post only these, by the name that the receiver expects, each with the path '
        'of a field of the event, or "picture_url" with picture = "url"; null where an event has no such field.',
        examples=[{"camera": "stream", "what": "alert.rule"}],
    )
    headers: dict[str, str] = Field(
        {},
        max_length=50,
        repr=False,
        description="Further headers, such as a login; keep secrets elsewhere, and write ${NAME}. Masked in the log.",
        examples=[{"Authorization": "Bearer ${TOKEN}"}],
    )
    secret: str | None = Field(
        None,
        min_length=8,
        repr=False,
        description="Signs each request with HMAC-SHA256 in the header Streamdet-Signature; write ${NAME}. Masked in "
        "the log.",
        examples=["${WEBHOOK_SECRET}"],
    )
    picture: Literal["none", "attached", "url"] = Field(
        "none",
        description='How the picture of an event goes with it: "attached", the JPEG itself (shapes "event" and '
        '"ntfy"); "url", a link below `picture_url` (all shapes).',
        examples=["attached"],
    )
    picture_url: str | None = Field(
        None,
        max_length=2048,
        description="Where those who read events reach pictures, such as /v1/pictures of the control API behind a "
        "proxy; the link to a picture is this, a slash and its `picture_id`.",
        examples=["https://cameras.example.org/v1/pictures"],
    )
    allow_private: Switch = Field(
        default=False,
        description="Whether the receiver may have a private or loopback address, and be reached by http://.",
        examples=[True],
    )
    ca_file: str | None = Field(
        None,
        min_length=1,
        description="Certificates (PEM) of the authority of an https:// receiver. Default: those of this machine. "
        "Relative to this file.",
        examples=["receiver-ca.pem"],
    )
    timeout_seconds: Seconds = Field(
        10.0, gt=0, le=300, description="How long to wait for a connection, and for the answer.", examples=["10 s"]
    )
    retry_seconds: Seconds = Field(
        1.0,
        ge=0.05,
        le=300,
        description="The pause before a request is repeated; it doubles up to five minutes.",
        examples=["1 s"],
    )
    give_up_seconds: Seconds = Field(
        86400.0,
        ge=0,
        le=31_536_000,
        description="An event that is older than this when a request fails is a dead letter: it is not posted again.",
        examples=["24 h", "10 min"],
    )

    @field_validator("events")
    @classmethod
    def _are_some(cls, events: tuple[WebhookEvent, ...]) -> tuple[WebhookEvent, ...]:
        if not events:
            refuse('is empty; must be a list such as ["raised", "cleared"]')
        return events

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER.fullmatch(name) or name.lower() in _OUR_HEADERS:
                refuse(f'hold "{name[:40]}", which is no header that can be set here')
            if len(value) > 4096 or not value.isascii() or not value.isprintable():
                refuse(f'hold a value of "{name}" that is no printable ASCII')
        return headers

    @field_validator("fields")
    @classmethod
    def _are_paths(cls, fields: dict[str, str]) -> dict[str, str]:
        for path in fields.values():
            if path != "picture_url" and path not in event_fields():
                meant = nearest_or(path, event_fields(), 'such as "alert.rule" or "stream"; docs/events.md has all')
                refuse(f'hold "{path[:40]}", which is not a field of an alert or an object; {meant}')
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or not self.url.isascii() or not self.url.isprintable() or " " in self.url:
            refuse("must be the address of a receiver, such as https://example.org/hook", key="url")
        if parts.username or parts.password:
            refuse("must not hold a login; put it into headers, such as Authorization", key="url")
        if parts.scheme == "http" and not self.allow_private:
            problem = "would send events without encryption; use https://, or set allow_private for a receiver nearby"
            refuse(problem, key="url")
        if self.fields and self.shape != "event":
            refuse(f'goes with shape = "event" alone, not with "{self.shape}"', key="fields")
        self._picture_fits()
        if self.shape == "alertmanager" and "ended" in self.events:
            refuse('hold "ended", but shape = "alertmanager" takes alerts alone; leave it out', key="events")
        if self.shape == "ntfy" and not parts.path.rpartition("/")[2]:
            refuse("must end in the topic, such as https://ntfy.sh/my-topic", key="url")
        return self

    def _picture_fits(self) -> None:
        if self.picture == "attached" and self.shape not in ("event", "ntfy"):
            refuse(f'cannot be "attached" with shape = "{self.shape}"; write "url", and set picture_url', key="picture")
        if self.picture == "url" and self.picture_url is None:
            refuse('is "url"; set picture_url to where pictures are reached', key="picture")
        if self.picture_url is not None and not _LINK.fullmatch(self.picture_url):
            problem = "must be an address without a login, such as https://cameras.example.org/v1/pictures"
            refuse(problem, key="picture_url")

    def remember_secrets(self) -> None:
        """Masks what may be secret in everything that is logged from now on."""
        parts = urlsplit(self.url)
        path = parts.path.strip("/")
        for secret in (self.url, self.secret, path, path.rpartition("/")[2], *self.headers.values()):
            if secret:
                remember_secret(secret)


def of_bridges(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables of a file that bridges read."""
    wanted = ("publisher", "replay", "log", *BRIDGE_TABLES)
    return {name: tables[name] for name in wanted if name in tables}


BRIDGE_TABLES = ("bridges", "webhooks", "mqtt", "files")
"""The tables that only bridges read."""

"""`[mqtt]`: where `streamdet bridge mqtt` publishes, and what. The daemon does not read it."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

from streamdet.config.listening import parse_host_port
from streamdet.config.values import Seconds, Switch, refuse, table
from streamdet.security.endpoints import is_loopback
from streamdet.security.redact import remember_secret

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_MAX_TOPIC_CHARACTERS = 256


class MqttConfig(BaseModel):
    """The MQTT broker of `streamdet bridge mqtt`; the daemon does not read it. docs/bridges.md has the topics."""

    model_config = table("at a restart")

    broker: str | None = Field(
        None,
        max_length=512,
        description="Where to connect: mqtt://HOST or, with TLS, mqtts://HOST; :PORT where it is not 1883 or 8883.",
        examples=["mqtt://127.0.0.1", "mqtts://broker.example.org:8883"],
    )
    protocol: Literal["5", "3.1.1"] = Field(
        "5", description="The version of MQTT that the broker speaks.", examples=["3.1.1"]
    )
    client_id: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description='By which the broker knows the bridge; it allows one connection for each. Default: "streamdet-" '
        "and the `prefix`.",
        examples=["streamdet-garage"],
    )
    username: str | None = Field(
        None, min_length=1, max_length=256, description="The user name of the login.", examples=["streamdet"]
    )
    password: str | None = Field(
        None,
        min_length=1,
        repr=False,
        description="The password of the login; write ${NAME}. Masked in the log.",
        examples=["${MQTT_PASSWORD}"],
    )
    insecure: Switch = Field(
        default=False,
        description="Whether the password may go to another machine by mqtt://, where the network can read it.",
        examples=[True],
    )
    ca_file: str | None = Field(
        None,
        min_length=1,
        description="Certificates (PEM) of the authority of an mqtts:// broker. Default: those of this machine. "
        "Relative to this file.",
        examples=["broker-ca.pem"],
    )
    certificate_file: str | None = Field(
        None,
        min_length=1,
        description="The bridge's own certificate (PEM), where the broker asks for one. Relative to this file.",
        examples=["bridge.pem"],
    )
    key_file: str | None = Field(
        None,
        min_length=1,
        description="The key (PEM) of that certificate, without a password. Relative to this file.",
        examples=["bridge.key"],
    )
    prefix: str = Field(
        "streamdet",
        min_length=1,
        max_length=_MAX_TOPIC_CHARACTERS,
        description="The first levels of every topic; another one for each bridge of a broker.",
        examples=["home/streamdet"],
    )
    home_assistant: Switch = Field(
        default=True,
        description="Whether Home Assistant finds each stream by itself: a device with a sensor for each label and "
        "zone, and the picture of the last alert.",
        examples=[False],
    )
    discovery_prefix: str = Field(
        "homeassistant",
        min_length=1,
        max_length=_MAX_TOPIC_CHARACTERS,
        description="Where it looks for them, as in its settings.",
        examples=["homeassistant"],
    )
    labels: tuple[str, ...] = Field(
        (),
        description="Labels that each stream has a presence topic for from its beginning; others get one when an "
        "object with that label is first there.",
        examples=[["person", "car"]],
    )
    object_updates: Switch = Field(
        default=True,
        description="Whether the updates of objects are published, up to one a second for each; their begin and end "
        "always are.",
        examples=[False],
    )
    late_after_seconds: Seconds = Field(
        60.0,
        ge=1,
        le=86400,
        description="Events that are older when they are published are marked as late; no retained topic shows them.",
        examples=["1 min"],
    )
    forget_after_seconds: Seconds = Field(
        300.0,
        ge=1,
        le=604_800,
        description="A stream whose state the daemon has not repeated for so long is removed, with its entities; at "
        "least three times `state_interval_seconds` of [publisher].",
        examples=["5 min", "1 h"],
    )
    metrics_endpoint: str = Field(
        "127.0.0.1:9098",
        description="HOST:PORT of the metrics page of `streamdet bridge mqtt`, on loopback (port 0: any free one).",
        examples=["127.0.0.1:9098"],
    )

    @field_validator("prefix", "discovery_prefix")
    @classmethod
    def _is_a_topic(cls, prefix: str) -> str:
        if any(level == "" for level in prefix.split("/")) or not prefix.isprintable() or set("+#") & set(prefix):
            refuse("must be levels of a topic, such as home/streamdet, without + and #")
        if prefix.startswith("$"):
            refuse("must not begin with $, which brokers keep for themselves")
        return prefix

    @field_validator("metrics_endpoint")
    @classmethod
    def _is_on_loopback(cls, endpoint: str) -> str:
        if not is_loopback(parse_host_port(endpoint).host):
            refuse("would be open to other machines; use an address of loopback, such as 127.0.0.1:9098")
        return endpoint

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            here, there = ("certificate", "key") if self.key_file is None else ("key", "certificate")
            refuse(f"needs {there}_file as well; set both or neither", key=f"{here}_file")
        if self.password is not None and self.username is None:
            refuse("needs a username", key="password")
        if self.broker is None:
            return self
        try:
            parts = urlsplit(self.broker)
            good = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.path.strip("/") or parts.query or parts.fragment or not self.broker.isprintable():
            refuse("must be mqtt://HOST:PORT or mqtts://HOST:PORT", key="broker")
        if parts.username or parts.password:
            refuse("must not hold a login; put it into username and password", key="broker")
        for key in ("ca_file", "certificate_file"):
            if getattr(self, key) and not self.is_tls:
                refuse("goes with a broker of mqtts:// alone", key=key)
        if not self.is_tls and self.password is not None and not self.insecure and not is_loopback(self.address[0]):
            refuse("would travel in the clear: use mqtts:// in broker, or set insecure = true", key="password")
        return self

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.broker is not None and self.broker.startswith("mqtts:")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the broker."""
        parts = urlsplit(self.broker or "")
        return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)

    def remember_secrets(self) -> None:
        """Masks the password in everything that is logged from now on."""
        if self.password:
            remember_secret(self.password)

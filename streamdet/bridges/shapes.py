"""What is posted of an event: the shapes that receivers of web hooks expect.

The sources: https://docs.ntfy.sh/publish/ (JSON at the root of the server; an attachment as the body of a PUT to the
topic), https://api.slack.com/messaging/webhooks and its mrkdwn, which Mattermost and Rocket.Chat accept as well, and
https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import Header
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
from urllib3.filepost import encode_multipart_formdata

from streamdet import wire
from streamdet.config import WebhookConfig
from streamdet.types import AlertEvent, ObjectEvent
from streamdet.wire.occurrence import occurrence_of
from streamdet.wire.replay import MAX_TIME

# Alertmanager takes an alert that is not repeated for resolved after some minutes, unless its end is known.
_FIRING_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Post:
    """One request to a receiver, without what all of them have.

    Attributes:
        body: what is posted.
        headers: its content type, and others of this shape.
        method: of HTTP.
        target: path and query.
        has_picture: whether the picture is in it, without which it is posted if it is refused.
    """

    body: bytes
    headers: dict[str, str]
    method: str
    target: str
    has_picture: bool = False


def post_of(event: AlertEvent | ObjectEvent, config: WebhookConfig, picture: bytes | None = None) -> Post:
    """The request that an event becomes.

    Args:
        event: an alert, or an object that has ended.
        config: of the receiver.
        picture: JPEG that goes with it; None for none.
    """
    parts = urlsplit(config.url)
    query = f"?{parts.query}" if parts.query else ""
    path = parts.path or "/"
    if config.shape == "ntfy":
        if picture is not None:
            return Post(picture, _ntfy_headers(event), "PUT", path + query, has_picture=True)
        path = path.rpartition("/")[0] + "/"  # the topic stands in the message
    body = orjson.dumps(shape_of(event, config))
    if picture is None:
        return Post(body, {"Content-Type": "application/json"}, "POST", path + query)
    body, content_type = encode_multipart_formdata(
        {"event": ("event.json", body, "application/json"), "picture": ("picture.jpg", picture, "image/jpeg")}
    )
    return Post(body, {"Content-Type": content_type}, "POST", path + query, has_picture=True)


def shape_of(event: AlertEvent | ObjectEvent, config: WebhookConfig) -> Any:  # noqa: ANN401 - any JSON
    """What is posted of an event, as JSON."""
    link = None
    if config.picture == "url" and config.picture_url is not None and event.picture is not None:
        link = f"{config.picture_url.rstrip('/')}/{quote(event.picture.picture_id, safe='')}"
    if config.shape == "slack":
        return {"text": _escaped_for_slack(_sentence(event)) + (f" (<{link}|picture>)" if link else "")}
    if config.shape == "ntfy":
        return {
            "topic": urlsplit(config.url).path.rpartition("/")[2],
            "title": _title(event),
            "message": _sentence(event),
            "priority": _priority(event),
            **({"attach": link, "filename": "picture.jpg"} if link else {}),
        }
    if config.shape == "alertmanager" and isinstance(event, AlertEvent):
        return [_for_alertmanager(event, link)]
    whole: dict[str, Any] = wire.to_dict(event)
    if config.picture == "url":
        whole["picture_url"] = link
    if not config.fields:
        return whole
    return {name: _field(whole, path) for name, path in config.fields.items()}


def _field(value: Any, path: str) -> Any:  # noqa: ANN401 - any JSON
    """The field of an event at a path such as "alert.rule"; None where it has none."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _title(event: AlertEvent | ObjectEvent) -> str:
    return event.alert.rule if isinstance(event, AlertEvent) else event.object.label


def _priority(event: AlertEvent | ObjectEvent) -> int:
    """Of ntfy: 4 is high, 2 is low."""
    return 4 if isinstance(event, AlertEvent) and event.phase == "raised" else 2


def _sentence(event: AlertEvent | ObjectEvent) -> str:
    """One line for people."""
    if isinstance(event, ObjectEvent):
        return f"{event.object.label} on {event.stream}, seen for {event.object.seconds:.0f} s"
    alert = event.alert
    what = alert.label or (f"{alert.count} objects" if alert.count is not None else "")
    where = " ".join(f"{noun} {name}" for noun, name in (("in", alert.zone), ("over", alert.line)) if name)
    about = " ".join(part for part in (what, where) if part)
    over = f", over after {alert.seconds:.0f} s" if event.phase == "cleared" else ""
    return f"{alert.rule} on {event.stream}{f': {about}' if about else ''}{over}"


def _ntfy_headers(event: AlertEvent | ObjectEvent) -> dict[str, str]:
    """What says in headers what the JSON of ntfy would, as the body is the picture."""
    return {
        "Content-Type": "image/jpeg",
        "Filename": "picture.jpg",
        "Title": _header(_title(event)),
        "Message": _header(_sentence(event)),
        "Priority": str(_priority(event)),
    }


def _header(text: str) -> str:
    """The value of a header, in the encoding of RFC 2047 where it is no printable ASCII."""
    if text.isascii() and text.isprintable() and "=?" not in text:
        return text
    return Header(text, "utf-8").encode(linesep="").replace("\n", "")


def _escaped_for_slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _for_alertmanager(event: AlertEvent, link: str | None) -> dict[str, Any]:
    alert = event.alert
    labels = {"alertname": alert.rule, "stream": event.stream, "alert_id": alert.alert_id}
    further = {"label": alert.label, "zone": alert.zone, "line": alert.line}
    # By the daemon's clock: that of a camera may be hours ahead, and an alert that ends before it starts is refused.
    starts_at = occurrence_of(wire.to_dict(event)).began_at
    ends_at = starts_at + _FIRING_SECONDS
    if event.phase == "cleared":
        ends_at = min(starts_at + alert.seconds, event.published_at)
        starts_at = min(starts_at, ends_at)
    return {
        "labels": {**labels, **{name: value for name, value in further.items() if value}},
        "annotations": {"summary": _sentence(event), **({"picture": link} if link else {})},
        "startsAt": _timestamp(starts_at),
        "endsAt": _timestamp(ends_at),
        **({"generatorURL": link} if link else {}),
    }


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(min(max(at, 0.0), MAX_TIME), UTC).isoformat()

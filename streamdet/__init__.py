"""Real-time object detection on many live video streams.

What a subscriber needs is here: `subscribe`, `subscribe_async`, `subscribe_nodes`, `Past`, and the events. It is
imported when it is first used, so that neither `import streamdet` nor a subscriber waits for torch or a video library.
"""

from __future__ import annotations

import sys

from streamdet._moved import MovedModules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from streamdet.client.cluster import ClusterSubscription, subscribe
    from streamdet.client.nodes import Late, Moved, NodesSubscription, subscribe_nodes
    from streamdet.client.past import AsyncPast, Past
    from streamdet.client.subscription import AsyncSubscription, Gap, Restart, Subscription, subscribe_async
    from streamdet.errors import EndpointError, NotKeptError, StreamdetError, WireError
    from streamdet.types import (
        Alert,
        AlertEvent,
        Crossing,
        Detection,
        DetectionEvent,
        EndReason,
        FrameInfo,
        Geometry,
        ObjectEvent,
        Owner,
        PictureInfo,
        PreviewEvent,
        Reason,
        Shape,
        Shot,
        State,
        StateEvent,
        TrackedObject,
        ZoneChange,
        ZoneVisit,
    )

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "AlertEvent",
    "AsyncPast",
    "AsyncSubscription",
    "ClusterSubscription",
    "Crossing",
    "Detection",
    "DetectionEvent",
    "EndReason",
    "EndpointError",
    "FrameInfo",
    "Gap",
    "Geometry",
    "Late",
    "Moved",
    "NodesSubscription",
    "NotKeptError",
    "ObjectEvent",
    "Owner",
    "Past",
    "PictureInfo",
    "PreviewEvent",
    "Reason",
    "Restart",
    "Shape",
    "Shot",
    "State",
    "StateEvent",
    "StreamdetError",
    "Subscription",
    "TrackedObject",
    "WireError",
    "ZoneChange",
    "ZoneVisit",
    "__version__",
    "subscribe",
    "subscribe_async",
    "subscribe_nodes",
]

_HOMES = {
    "client": (
        "AsyncPast",
        "AsyncSubscription",
        "ClusterSubscription",
        "Gap",
        "Late",
        "Moved",
        "NodesSubscription",
        "Past",
        "Restart",
        "Subscription",
        "subscribe",
        "subscribe_async",
        "subscribe_nodes",
    ),
    "errors": ("EndpointError", "NotKeptError", "StreamdetError", "WireError"),
    "types": (
        "Alert",
        "AlertEvent",
        "Crossing",
        "Detection",
        "DetectionEvent",
        "EndReason",
        "FrameInfo",
        "Geometry",
        "ObjectEvent",
        "Owner",
        "PictureInfo",
        "PreviewEvent",
        "Reason",
        "Shape",
        "Shot",
        "State",
        "StateEvent",
        "TrackedObject",
        "ZoneChange",
        "ZoneVisit",
    ),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    import importlib  # noqa: PLC0415 - the program blocks signals before it imports what takes time

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"streamdet.{module}"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.meta_path.append(MovedModules())

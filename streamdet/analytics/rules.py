"""Rules: conditions on the objects of a stream that raise alerts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamdet.types import Alert, FrameInfo


@dataclass(frozen=True, slots=True)
class AlertChange:
    """An alert is raised or cleared.

    Attributes:
        phase: "raised" once, "cleared" once later.
        frame: the frame that makes the difference; when its object ends, the last one that shows it.
        alert: what is known of it.
    """

    phase: Literal["raised", "cleared"]
    frame: FrameInfo
    alert: Alert

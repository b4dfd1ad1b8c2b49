"""A subscriber that may be killed at any moment: it writes each item, and the position after it, as one line.

Arguments: endpoint of the daemon, file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from streamdet import Gap, Restart, subscribe
from streamdet.types import PreviewEvent
from streamdet.wire import topic_of

endpoint, path = sys.argv[1], Path(sys.argv[2])
whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
os.truncate(path, len(whole) + bool(whole)) if path.exists() else None
position = json.loads(whole.rpartition(b"\n")[2])["position"] if whole else None
with (
    path.open("ab", buffering=0) as file,
    subscribe(endpoint, kinds=["objects", "alerts", "state"], replay=True, resume=position) as events,
):
    for item in events:
        line: dict[str, object] = {"position": events.position()}
        if isinstance(item, Gap):
            line["gap"] = [item.topic, item.first, item.count]
        elif not isinstance(item, Restart | PreviewEvent):
            line["event"] = [topic_of(item), item.epoch, item.seq]
        file.write(json.dumps(line).encode() + b"\n")

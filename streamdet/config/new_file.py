"""The text of a first configuration file: the streams, and what people set next, each with a sentence about it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamdet.config.secrets import SERVICE_FOLDER

_SERVICE_STATE = Path("/var/lib/streamdet")
_HEAD = """\
# The configuration of streamdet. `streamdet schema config --markdown` describes every key;
# `streamdet check FILE --probe` finds what is wrong with a file, and tries its streams.
# Lines that begin with "#" and a key are examples, or defaults.

[detector]
weights = "embedded"        # finds person, bicycle, car, motorcycle, bus and truck
score_threshold = 0.5       # detections with a lower score are not published
#labels = ["person", "car"] # publish only these

# Where events are published, and where Prometheus reads; on this machine alone.
[publisher]
#endpoint = "tcp://127.0.0.1:5555"

[metrics]
#endpoint = "127.0.0.1:9095"

"""
_KEPT = """\
# What happened is kept on disk for the page's review and `streamdet alerts`: events for a day, pictures of objects and
# alerts, and clips of alerts whose rule asks for one, for a week. Delete these three tables to keep nothing.
[spool]
directory = {spool}

[pictures]
directory = {pictures}

[clips]
directory = {clips}

# People who may draw zones and make rules on the page, each with a password:
#   streamdet web --set-password {users} --user NAME --role operator
#[web]
#allow_changes = true
#password_file = {users_text}

"""
_NO_STREAMS = """\
# There are no streams yet: the daemon waits. Add one while it runs,
#   streamdet streams add front-door 'rtsp://${FRONT_DOOR_LOGIN}@192.0.2.5/stream1' --persist
# or here, as below, with `streamdet reload` after that. A file NAME in the folder of secrets is ${NAME}.
#[[streams]]
#name = "front-door"
#url = "rtsp://${FRONT_DOOR_LOGIN}@192.0.2.5/stream1"
"""
_RULE = """
# What raises alerts. A rule applies to all streams that it does not leave out.
#[[rules]]
#name = "person at night"
#labels = ["person"]
#for_seconds = 2
#picture = true
#clip_seconds = [5, 10]     # before and after it; for H.264 and H.265
#between = ["22:00", "06:00"]
"""


@dataclass(frozen=True, slots=True)
class NewStream:
    """A stream of the new file.

    Attributes:
        name: valid, and of no other stream.
        url: with `${NAME}` in place of secrets.
        remarks: what was found when it was tried, a line each.
    """

    name: str
    url: str
    remarks: tuple[str, ...] = ()


def state_folder(file: Path) -> Path:
    """Where what happened is kept: the service's own folder, else one beside the file, as "streamdet.state"."""
    if file.absolute().parent == SERVICE_FOLDER:
        return _SERVICE_STATE / file.stem
    return Path(f"{file.stem}.state")


def new_file_text(file: Path, streams: Sequence[NewStream], max_fps: float | None = None) -> str:
    """A configuration.

    Args:
        file: where it will be.
        streams: it has these.
        max_fps: of each stream; None for no limit.

    Returns:
        TOML.
    """
    folder, users = state_folder(file), f"{file.stem}.users"
    kept = _KEPT.format(
        **{name: _text(str(folder / name)) for name in ("spool", "pictures", "clips")},
        users=shlex.quote(str(file.with_name(users))), users_text=_text(users),
    )  # fmt: skip
    return _HEAD + kept + ("\n".join(_stream(each, max_fps) for each in streams) if streams else _NO_STREAMS) + _RULE


def _stream(stream: NewStream, max_fps: float | None) -> str:
    limit = "#max_fps = 10" if max_fps is None else f"max_fps = {max_fps:g}"
    remarks = "".join(f"# {remark}\n" for remark in stream.remarks)
    return (
        f"[[streams]]\nname = {_text(stream.name)}\nurl = {_text(stream.url)}\n{remarks}"
        f"{limit:<27} # detect at most so many frames per second\n"
        '#zones = [{ name = "door", polygon = [[0.1, 0.5], [0.4, 0.5], [0.4, 1.0]] }]\n'
    )


def _text(text: str) -> str:
    """A text in quotes; what JSON escapes, TOML escapes in the same way."""
    return json.dumps(text, ensure_ascii=False)

"""`[control]`."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from streamdet.config.tables.base import table
from streamdet.config.values import refuse

# sockaddr_un holds 108 bytes, the last one a zero.
MAX_SOCKET_PATH_BYTES = 107


class ControlConfig(BaseModel):
    """Where `streamdet reload` and `streamdet streams` reach the daemon; only programs on this machine can."""

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
    changes_file: str = Field(
        "auto",
        min_length=1,
        description="The file that keeps what `streamdet streams ... --persist` changes, written by the daemon alone: "
        'a path, relative to this file, or "auto": $STATE_DIRECTORY/streams.json, as systemd sets it, else beside '
        "this file, with .streams.json for its ending.",
        examples=["auto", "/var/lib/streamdet/streams.json"],
    )

    @field_validator("path")
    @classmethod
    def _fits_a_socket(cls, path: str) -> str:
        if len(path.encode(errors="replace")) > MAX_SOCKET_PATH_BYTES or "\0" in path:
            refuse(f"must be a path of at most {MAX_SOCKET_PATH_BYTES} bytes, such as /run/streamdet/control.sock")
        return path

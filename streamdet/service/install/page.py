"""What the unit of the page needs where its users may change something: the control socket, and the file of users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamdet.config.control_paths import AUTO
from streamdet.config.toml import parse, read_text
from streamdet.errors import ConfigError, InstallError

_SOCKET = "/run/streamdet/streamdet/control.sock"


@dataclass(frozen=True, slots=True)
class PageChanges:
    """`[web] allow_changes`, as the unit has it.

    Attributes:
        group: that may use the socket.
        socket: of the daemon.
        users: the file of users.
    """

    group: str
    socket: str
    users: str

    @classmethod
    def of(cls, config: Path, folder: Path, group: str) -> PageChanges | None:
        """What a configuration says; None where changes are off, or the file is missing or wrong.

        Args:
            config: where it is now.
            folder: that its paths are relative to on the system that runs it.
            group: of the service.

        Raises:
            InstallError: changes are on, and something that they need is missing.
        """
        try:
            tables = parse(config, read_text(config)) if config.exists() else {}
        except ConfigError:
            return None  # the daemon reports it
        web, control = tables.get("web"), tables.get("control", {})
        if not isinstance(web, dict) or web.get("allow_changes") is not True:
            return None
        users = web.get("password_file")
        path = control.get("path", AUTO) if isinstance(control, dict) else None
        if not isinstance(users, str) or not users:
            way = "streamdet web --set-password /etc/streamdet/page.users --user NAME --role operator makes one"
            message = f"{config}: [web] allow_changes needs password_file, too: {way}"
            raise InstallError(message)
        if not isinstance(control, dict) or control.get("group") != group or not isinstance(path, str):
            why = f'needs group = "{group}" in [control], so that the page may use the control socket'
            message = f"{config}: [web] allow_changes {why}; restart the daemon then"
            raise InstallError(message)
        return cls(group, _SOCKET if path == AUTO else str(folder / path), str(folder / users))

    def drop_in(self) -> str:
        """The part of the unit."""
        return f"""\
# [web] allow_changes is on; written by `streamdet install-service --page`, which will write it again, or delete it when
# changes are off.
[Service]
# For the control socket alone: of what else this group may read, the page sees nothing.
SupplementaryGroups={self.group}
InaccessiblePaths=-/etc/streamdet -/var/lib/streamdet -/var/cache/streamdet
LoadCredential=page.users:{self.users}
SetCredential=page.toml:[web]\\nallow_changes = true\\npassword_file = "page.users"\\n
ExecStart=
ExecStart=/usr/bin/env streamdet web --config ${{CREDENTIALS_DIRECTORY}}/page.toml --socket {self.socket} \
$STREAMDET_WEB_OPTIONS
"""

"""A group of commands that suggests the right word for a wrong one."""

from __future__ import annotations

import difflib
import re

import click

# What people try first, from other programs.
_MEANT = {
    "start": "run", "serve": "web", "page": "web", "ui": "web", "open": "web", "dashboard": "web",
    "list": "streams list", "ls": "streams list", "ps": "streams list", "add": "streams add",
    "remove": "streams remove", "rm": "streams remove", "pause": "streams pause", "stream": "streams",
    "stop": "systemctl stop streamdet", "restart": "systemctl restart streamdet", "log": "journalctl -u streamdet",
    "logs": "journalctl -u streamdet", "config": "check", "validate": "check", "probe": "check --probe",
    "test": "rules test", "install": "install-service", "new": "init", "create": "init", "setup": "init",
    "events": "watch", "subscribe": "watch", "mqtt": "bridge mqtt", "webhook": "bridge webhook", "health": "status",
    "info": "version", "completions": "completion", "benchmark": "bench", "detect": "run",
}  # fmt: skip
# In a group of streams, keys and so on.
_MEANT_BELOW = {"ls": "list", "rm": "remove", "delete": "remove", "get": "show", "set": "change", "edit": "change",
                "new": "add", "create": "add", "stop": "pause", "start": "resume", "status": "list"}  # fmt: skip
_SOURCE = re.compile(r".*(?:://|\.toml$|\.mp4$|\.mkv$)|/dev/video", re.IGNORECASE)


class Group(click.Group):
    """Suggests the command that is meant; otherwise as click's own."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name.

        Raises:
            click.UsageError: there is none, and it says which one may be meant; not while a shell completes a line.
        """
        command = self.load_command(ctx, cmd_name)
        if command is None and not ctx.resilient_parsing:
            meant = self._meant(ctx, cmd_name)
            ctx.fail(f"no such command {cmd_name[:80]!r}.{f' Did you mean {meant!r}?' if meant else ''}")
        return command

    def load_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a name; None if there is none."""
        return super().get_command(ctx, name)

    def _meant(self, ctx: click.Context, word: str) -> str:
        if ctx.parent is None and _SOURCE.match(word):
            # It is not repeated: it may hold a password.
            return "run SOURCE"
        names = self.list_commands(ctx)
        if ctx.parent is None:
            meant = _MEANT
        else:
            meant = {wrong: right for wrong, right in _MEANT_BELOW.items() if right in names}
        near = next(iter(difflib.get_close_matches(word, [*names, *meant], 1)), "")
        return meant.get(word) or meant.get(near, near)

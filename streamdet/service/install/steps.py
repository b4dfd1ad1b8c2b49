"""The kinds of steps: each can say what it would do, can do it, and can be repeated."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from streamdet.errors import InstallError
from streamdet.security.files import write_atomically

# Verbs that mean that nothing has to be done.
SETTLED = frozenset({"unchanged", "kept", "absent", "left out"})
_VERB_WIDTH = 14


def line(verb: str, what: object) -> str:
    """A line that reports a step."""
    return f"{verb:{_VERB_WIDTH}}  {what}"


class Step(Protocol):
    """One step."""

    def verb(self) -> str:
        """What it would do now, in one word; one of SETTLED when nothing."""

    def __str__(self) -> str:
        """What it acts on."""

    def do(self) -> None:
        """Does it."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder exists, with a mode and a group (by number); one that is there already only gets what its mode lacks."""

    path: Path
    mode: int
    group: int | None = None

    def __str__(self) -> str:
        return f"{self.path}/"

    def verb(self) -> str:
        """What it would do now."""
        if not self.path.is_dir():
            return "create"
        return "open" if self.mode & ~self.path.stat().st_mode else "unchanged"

    def do(self) -> None:
        """Makes it, and the folders above it; or adds what its mode lacks."""
        if self.path.is_dir():
            self.path.chmod(stat.S_IMODE(self.path.stat().st_mode) | self.mode)
            return
        self.path.mkdir(parents=True)
        _settle(self.path, self.mode, self.group)


@dataclass(frozen=True, slots=True)
class File:
    """A file holds a text.

    Attributes:
        keep: a file that is there already stays as it is; why, for people.
    """

    path: Path
    text: str
    mode: int = 0o644
    group: int | None = None
    keep: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.keep})" if self.keep and self.path.exists() else str(self.path)

    def verb(self) -> str:
        """What it would do now."""
        if not self.path.exists():
            return "create"
        if self.keep:
            return "kept"
        return "unchanged" if self.path.read_bytes() == self.text.encode() else "replace"

    def do(self) -> None:
        """Writes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, self.text.encode(), mode=self.mode, group=self.group)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link for convenience; whatever else has its name stays, and so does a folder that is read-only."""

    path: Path
    target: Path

    def __str__(self) -> str:
        why = " (the folder is read-only)" if self.verb() == "left out" else ""
        return f"{self.path} -> {self.target}{why}"

    def verb(self) -> str:
        """What it would do now."""
        if self.path.is_symlink():
            return "unchanged" if self.path.readlink() == self.target else "replace"
        if self.path.exists():
            return "kept"
        folder = self.path.parent
        # Only root can find out: others see what root would do.
        may = not folder.exists() or os.geteuid() != 0 or os.access(folder, os.W_OK)
        return "create" if may else "left out"

    def do(self) -> None:
        """Makes it point there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(self.target)


@dataclass(frozen=True, slots=True)
class Remove:
    """A file is absent; with `with_folder` also its folder, unless the folder contains anything else."""

    path: Path
    with_folder: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def verb(self) -> str:
        """What it would do now."""
        return "remove" if os.path.lexists(self.path) else "absent"

    def do(self) -> None:
        """Removes it."""
        self.path.unlink()
        if self.with_folder and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


@dataclass(frozen=True, slots=True)
class Command:
    """A program is run."""

    arguments: Sequence[str]

    def __str__(self) -> str:
        return " ".join(self.arguments)

    def verb(self) -> str:
        """Always the same."""
        return "run"

    def do(self) -> None:
        """Runs it."""
        program = shutil.which(self.arguments[0])
        if program is None:
            message = f"there is no program {self.arguments[0]}"
            raise InstallError(message)
        # Fixed programs with arguments of our own making; no shell.
        result = subprocess.run(  # noqa: S603
            [program, *self.arguments[1:]], capture_output=True, text=True, check=False
        )
        if result.returncode:
            said = " ".join((result.stderr or result.stdout).split()) or f"it ended with {result.returncode}"
            message = f"{self} failed: {said}"
            raise InstallError(message)


def _settle(path: Path, mode: int, group: int | None) -> None:
    path.chmod(mode)
    if group is not None:
        os.chown(path, -1, group)

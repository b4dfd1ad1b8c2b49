"""The Python environment of the program, and what its unit must mount so that the service can read it."""

from __future__ import annotations

import re
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import streamdet
from streamdet.errors import InstallError

# The unit hides these from the service (ProtectHome=tmpfs, PrivateTmp=yes); what lies in them has to be mounted, one by
# one.
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - only named
# The link to the version that runs; see `versions`.
CURRENT = Path("/opt/streamdet/current")
# What needs no quoting in a unit file.
_PLAIN = re.compile(r"[A-Za-z0-9/._+@-]+")
_PATH_TAIL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the program is.

    Attributes:
        scripts: the folder that holds the program `streamdet`.
        folders: all folders that the program needs besides the system's own.
    """

    scripts: Path
    folders: tuple[Path, ...]

    def check(self) -> None:
        """Checks that the service's user can start the program.

        Raises:
            InstallError: it cannot; the message says what to do.
        """
        program = self.scripts / "streamdet"
        if not program.is_file():
            message = f"there is no program {program}: install streamdet into this environment first (`make setup`)"
            raise InstallError(message)
        self.check_folders(program, Path(streamdet.__file__))

    def check_folders(self, *others: Path) -> None:
        """Checks that the service's user can read the folders, the interpreter, and other files.

        Raises:
            InstallError: it cannot; the message says what to do.
        """
        for folder in (self.scripts, *self.folders):
            if not _PLAIN.fullmatch(str(folder)):
                message = f"{folder} holds characters that a unit file cannot: make the environment in another folder"
                raise InstallError(message)
        for path in (*others, Path(sys.executable).resolve(), *self.folders):
            if (closed := _closed_to_others(path, self.hidden())) is not None:
                message = f"the service's user cannot read {closed}, which {path} needs: chmod o+rX {closed}"
                raise InstallError(message)

    def drop_in(self) -> str:
        """The part of the unit that says where the program is."""
        lines = [
            "# Where the program is; written by `streamdet install-service`, which will write it again.",
            "[Service]",
            f"Environment=PATH={self.scripts}:{_PATH_TAIL}",
        ]
        lines += [f"BindReadOnlyPaths={folder}" for folder in self.hidden()]
        return "\n".join(lines) + "\n"

    def hidden(self) -> list[Path]:
        """The folders in users' homes or among temporary files, which the unit hides."""
        return [folder for folder in self.folders if _is_within(folder, HIDDEN)]


def this_environment() -> Environment:
    """The environment of this process."""
    scripts = Path(sysconfig.get_path("scripts"))
    needed = [Path(sys.prefix), Path(sys.base_prefix), Path(streamdet.__file__).parent, *_interpreters()]
    folders = {variant for path in needed for variant in (path, path.resolve())}
    return Environment(scripts, tuple(sorted(_outermost(folders))))


def own_environment() -> Environment:
    """The environment of the service's own that is the current one, with the interpreter of this process."""
    needed = [Path(sys.base_prefix), *_interpreters()]
    folders = {variant for path in needed for variant in (path, path.resolve())}
    return Environment(CURRENT / "bin", tuple(sorted(_outermost(folders))))


def _interpreters() -> Iterator[Path]:
    """The folders of the interpreter, from the environment's own name of it along every link."""
    path = Path(sys.executable)
    while path.is_symlink():
        path = path.parent / path.readlink()
        # Only the prefix above bin/ is of use: the libraries lie beside it.
        yield path.parent.parent


def _outermost(folders: Iterable[Path]) -> set[Path]:
    """Leaves out what lies in another one, and what every service can read anyway."""
    folders = {folder for folder in folders if not _is_within(folder, (Path("/usr"),)) and folder != Path("/")}
    return {folder for folder in folders if not _is_within(folder, folders - {folder})}


def _is_within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _closed_to_others(path: Path, mounted: Iterable[Path]) -> Path | None:
    """The first of a path's folders, or itself, that only its owner or group can enter or read.

    Mounting makes a folder reachable whatever the modes above it; from there on they count.
    """
    parts = [*reversed(path.parents), path]
    base = next((folder for folder in mounted if path.is_relative_to(folder)), None)
    for part in parts if base is None else [part for part in parts if part.is_relative_to(base)]:
        mode = part.stat().st_mode
        if not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH):
            return part
    return None

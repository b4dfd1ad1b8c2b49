"""The service's own environments, one for each version, and the link that says which of them runs.

    /opt/streamdet/0.2.0/      an environment: a copy of the one that `install-service` runs in, complete or not there
    /opt/streamdet/0.1.0/      files that did not change are the same ones on disk (hard links)
    /opt/streamdet/current     a link to the one that runs; it is replaced at once, and never missing
    /opt/streamdet/previous    a link to the one before, for the way back

A copy needs no network and no package index, and is exactly what was tried in the environment that it was made of.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import venv
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import cache_from_source
from pathlib import Path

import streamdet
from streamdet.errors import InstallError

_FOLDER = Path("opt/streamdet")
_MARK = "streamdet-version.json"
_NAME = re.compile(r"[-A-Za-z0-9._]+")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(\[(?P<extras>[^]]*)\])?\s*(?P<bounds>[^;]*)(?P<marker>;.*)?"
)
_EXTRA = re.compile(r"""\bextra\s*==\s*["']([\w.-]+)["']""")
_BOUND = re.compile(r"(<=|>=|==|!=|<|>|~=)\s*([0-9][0-9.]*)")
# What `zipfile` raises for a file that was cut, or changed on its way.
_BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError)
_PROGRAM = """#!{python}
import sys

from streamdet.__main__ import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Versions:
    """The environments of one system.

    Attributes:
        root: the system's root folder; other than / for a system that does not run (an image).
    """

    root: Path = Path("/")

    @property
    def folder(self) -> Path:
        """What they lie in."""
        return self.root / _FOLDER

    def path_of(self, name: str) -> Path:
        """The environment of a version."""
        return self.folder / name

    def partial_of(self, name: str) -> Path:
        """Where it is made, and deleted: whatever is interrupted, what has its name is complete."""
        return self.folder / f".{name}.partial"

    def names(self) -> list[str]:
        """The versions that are complete, the oldest first."""
        marks = sorted(self.folder.glob(f"*/{_MARK}"), key=lambda mark: mark.stat().st_mtime_ns)
        return [mark.parent.name for mark in marks if not mark.parent.is_symlink() and mark.parent.name[0] != "."]

    def current(self) -> str | None:
        """The version that the service runs; None before the first."""
        return self._target("current")

    def previous(self) -> str | None:
        """The version before; None if there is none, or it was deleted."""
        return self._target("previous")

    def this(self) -> str | None:
        """The version that this process runs in; None if it runs in another environment."""
        prefix = Path(sys.prefix).resolve()
        return prefix.name if prefix.parent == self.folder.resolve() and (prefix / _MARK).is_file() else None

    def switch(self, name: str) -> None:
        """Makes a version the current one; a reader sees the old one or the new one."""
        before = self.current()
        if before is not None and before != name:
            self._link("previous", before)
        self._link("current", name)

    def lead_back_to(self, name: str | None) -> None:
        """Sets the version before, after one that was never ready was left again: that one is no way back."""
        if name is None:
            (self.folder / "previous").unlink(missing_ok=True)
        else:
            self._link("previous", name)

    def prune(self, keep: int) -> list[str]:
        """Deletes the oldest versions, never the current one nor the one before.

        Args:
            keep: how many may stay, 2 or more.

        Returns:
            The names of the deleted ones.
        """
        names = self.names()
        spare = [name for name in names if name not in (self.current(), self.previous())]
        gone = spare[: max(len(names) - keep, 0)]
        for name in gone:
            self.delete(name)
        return gone

    def delete(self, name: str) -> None:
        """Deletes a version."""
        partial = self.partial_of(name)
        shutil.rmtree(partial, ignore_errors=True)
        self.path_of(name).rename(partial)
        shutil.rmtree(partial)

    def _target(self, link: str) -> str | None:
        path = self.folder / link
        name = path.readlink().name if path.is_symlink() else None
        return name if name and (self.path_of(name) / _MARK).is_file() else None

    def _link(self, link: str, name: str) -> None:
        new = self.folder / f".{link}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        new.replace(self.folder / link)


@dataclass(frozen=True, slots=True)
class RemoveVersions:
    """A step: no version is there, nor a link to one; nor the folder, unless it contains anything else."""

    versions: Versions

    def __str__(self) -> str:
        return f"{self.versions.folder}/"

    def verb(self) -> str:
        """What it would do now."""
        return "remove" if self.versions.names() else "absent"

    def do(self) -> None:
        """Removes them."""
        for name in ("current", "previous"):
            (self.versions.folder / name).unlink(missing_ok=True)
        for name in self.versions.names():
            self.versions.delete(name)
        if not any(self.versions.folder.iterdir()):
            self.versions.folder.rmdir()


@dataclass(frozen=True, slots=True)
class Release:
    """What is to be installed: the packages of this environment, with streamdet from there or from a wheel.

    Attributes:
        version: of streamdet.
        digest: of all its files; the same one means the same installation.
        tops: files and folders for site-packages, by the names that they have there.
        wheel: of streamdet; None for the code that runs now.
    """

    version: str
    digest: str
    tops: dict[str, Path]
    wheel: Path | None

    def name_in(self, versions: Versions) -> tuple[str, bool]:
        """Its name among the versions, and whether it is there; other builds of a version get a number."""
        for number in range(1, 1000):
            name = self.version if number == 1 else f"{self.version}-{number}"
            mark = versions.path_of(name) / _MARK
            if not mark.is_file():
                return name, False
            if json.loads(mark.read_text("utf-8")).get("digest") == self.digest:
                return name, True
        message = f"{versions.folder} has 999 builds of {self.version}: delete old ones"
        raise InstallError(message)


def this_release(wheel: Path | None) -> Release:
    """What this environment holds.

    Args:
        wheel: of streamdet, to take instead of the code that runs.

    Raises:
        InstallError: it cannot be copied, or the wheel needs other packages than it has.
    """
    own = _distribution("streamdet")
    if own is None:
        message = "streamdet is not installed in this environment, so it cannot be copied: make setup, or use --here"
        raise InstallError(message)
    version, requires = streamdet.__version__, own.requires or []
    digest = hashlib.sha256()
    if wheel is not None:
        version, requires = _read_wheel(wheel)
        digest.update(wheel.read_bytes())
    tops: dict[str, Path] = {}
    for package in _needed(requires):
        for name in {entry.parts[0] for entry in package.files or ()} - {"..", "__pycache__", "bin"}:
            tops[name] = Path(str(package.locate_file(name)))
    for name, path in sorted(tops.items()):
        for file, status in _files(path):
            digest.update(f"{name}/{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    if wheel is None:
        package_folder = Path(streamdet.__file__).parent
        for file, _status in _files(package_folder):
            digest.update(f"{file.relative_to(package_folder)}\n".encode() + file.read_bytes())
    return Release(version, digest.hexdigest(), tops, wheel)


def make_environment(release: Release, versions: Versions, name: str) -> None:
    """Makes the environment of a release, as a whole or not at all.

    Raises:
        InstallError: it cannot be written.
    """
    final, partial = versions.path_of(name), versions.partial_of(name)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        versions.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        venv.EnvBuilder(symlinks=True, with_pip=False).create(partial)
        packages = partial / Path(sysconfig.get_path("platlib")).relative_to(sys.prefix)
        current = versions.current()
        same = versions.path_of(current) / packages.relative_to(partial) if current is not None else None
        for top, path in sorted(release.tops.items()):
            _copy(path, packages / top, None if same is None else same / top)
        _add_streamdet(release.wheel, packages)
        _compile(partial / "bin/python", packages)
        for script in (partial / "bin").glob("[aA]ctivate*"):
            script.unlink()  # they would name the folder of now
        program = partial / "bin/streamdet"
        program.write_text(_PROGRAM.format(python=Path("/") / _FOLDER / name / "bin/python"), "utf-8")
        program.chmod(0o755)
        partial.chmod(0o755)
        (partial / _MARK).write_text(json.dumps({"version": release.version, "digest": release.digest}) + "\n", "utf-8")
        partial.rename(final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        message = f"{final} cannot be made: {error.filename or ''} {error.strerror or error}"
        raise InstallError(message) from error
    except _BROKEN_ARCHIVE as error:
        shutil.rmtree(partial, ignore_errors=True)
        message = f"{release.wheel} is damaged ({error}): fetch it again"
        raise InstallError(message) from error


# ---- what belongs to it ----


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _needed(requires: list[str]) -> Iterator[Distribution]:
    """The packages that streamdet needs, and those of its extras that are here; and what they need in turn."""
    waiting, seen, given = list(requires), set[tuple[str, frozenset[str]]](), set[str]()
    while waiting:
        if (match := _REQUIREMENT.match(waiting.pop())) is None:
            continue
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        extras = frozenset(part.strip() for part in (match["extras"] or "").split(","))
        package = None if (name, extras) in seen else _distribution(name)
        seen.add((name, extras))
        if package is None:
            continue
        waiting += [text for text in package.requires or [] if set(_EXTRA.findall(text)) <= extras]
        if name not in given:
            given.add(name)
            yield package


def _read_wheel(wheel: Path) -> tuple[str, list[str]]:
    """The version of a wheel and what it requires, all of which this environment has.

    Raises:
        InstallError: it is no wheel of streamdet, or needs another environment.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if re.fullmatch(r"streamdet-[^/]+\.dist-info/METADATA", n))
            text = archive.read(name).decode()
    except (OSError, ValueError, *_BROKEN_ARCHIVE) as error:
        message = f"{wheel} is no wheel of streamdet ({error})"
        raise InstallError(message) from None
    fields = [line.partition(": ")[::2] for line in text.partition("\n\n")[0].splitlines()]
    version = next((value for key, value in fields if key == "Version"), "")
    if not _NAME.fullmatch(version):
        message = f"{wheel} is no wheel of streamdet: it has no version"
        raise InstallError(message)
    requires = [value for key, value in fields if key == "Requires-Dist"]
    for requirement in requires:
        match = _REQUIREMENT.match(requirement)
        package = None if match is None else _distribution(match["name"])
        is_optional = match is None or "extra" in (match["marker"] or "")
        if match is None or (package is None and is_optional):
            continue
        if package is None or not all(_fits(package.version, *bound) for bound in _BOUND.findall(match["bounds"])):
            has = "lacks it" if package is None else f"has {package.version}"
            message = (
                f"streamdet {version} needs {requirement.partition(';')[0].strip()}, and this environment {has}: "
                "install the wheel into an environment of its own, and run install-service there"
            )
            raise InstallError(message)
    return version, requires


def _fits(version: str, operator: str, bound: str) -> bool:
    """Whether a version is within a bound, as far as their numbers say."""

    def numbers(text: str) -> list[int]:
        found = [int(number) for number in re.match(r"[0-9.]*", text)[0].strip(".").split(".")]  # type: ignore[index]
        return found + [0] * (8 - len(found))

    has, wanted = numbers(version), numbers(bound)
    if operator == "~=":
        count = len(bound.split(".")) - 1
        return has >= wanted and has[:count] == wanted[:count]
    return {
        "<": has < wanted, "<=": has <= wanted, ">": has > wanted, ">=": has >= wanted, "==": has == wanted,
        "!=": has != wanted,
    }[operator]  # fmt: skip


# ---- copying ----


def _files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of a folder, in order, or the file itself; without compiled ones, whose times differ."""
    if not path.is_dir():
        yield path, path.stat()
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            if (file := Path(folder, name)).exists():
                yield file, file.stat()


def _copy(source: Path, target: Path, same: Path | None) -> None:
    """Copies a file or a folder; files that `same` has already become links to those.

    Links in it are followed, so nothing in the copy refers to where it came from.
    """
    if source.is_dir():
        target.mkdir(mode=0o755)
        for entry in source.iterdir():
            _copy(entry, target / entry.name, None if same is None else same / entry.name)
        target.chmod(0o755)
        return
    if not source.is_file():
        return
    status = source.stat()
    if same is not None and same.is_file():
        there = same.lstat()
        if (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            target.hardlink_to(same)
            return
    _copy_data(source, target, status.st_size)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
    target.chmod(0o755 if status.st_mode & stat.S_IXUSR else 0o644)


def _copy_data(source: Path, target: Path, size: int) -> None:
    """Copies a file's content and keeps its holes, which torch without CUDA has."""
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        writer.truncate(size)
        at = 0
        while at < size:
            try:
                begin = os.lseek(reader.fileno(), at, os.SEEK_DATA)
                at = os.lseek(reader.fileno(), begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            writer.seek(begin)
            while begin < at:
                begin += os.sendfile(writer.fileno(), reader.fileno(), begin, at - begin)


def _compile(python: Path, packages: Path) -> None:
    """Compiles what was not compiled since it was written; `compileall` alone would read all 16,000 files again."""
    waiting = []
    for folder, _, names in os.walk(packages):
        for name in names:
            file = Path(folder, name)
            if file.suffix == ".py":
                compiled = Path(cache_from_source(file))
                if not compiled.exists() or compiled.stat().st_mtime_ns < file.stat().st_mtime_ns:
                    waiting.append(f"{file}\n")
    # Some packages have files for other Pythons, which cannot be compiled.
    subprocess.run(  # noqa: S603 - our own program
        [str(python), "-m", "compileall", "-q", "-j", "0", "-i", "-"], input="".join(waiting), text=True, check=False,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _add_streamdet(wheel: Path | None, packages: Path) -> None:
    """Adds streamdet itself, with its metadata."""
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        for path in [*packages.glob("streamdet*"), *packages.glob("streamdet*/**/*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return
    _copy(Path(streamdet.__file__).parent, packages / "streamdet", None)
    own = distribution("streamdet")
    names = {entry.parts[0] for entry in own.files or () if entry.parts[0].endswith(".dist-info")}
    for name in names:
        (packages / name).mkdir(mode=0o755)
        for file in ("METADATA", "WHEEL", "entry_points.txt"):
            text = own.read_text(file)
            if text is not None:
                (packages / name / file).write_text(text, "utf-8")

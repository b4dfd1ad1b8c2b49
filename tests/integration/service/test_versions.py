"""The environments of the service: what is copied and what is shared, the links, and what a wheel may need."""

from __future__ import annotations

import os
import py_compile
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamdet.errors import InstallError
from streamdet.service.install import versions as module
from streamdet.service.install.versions import Release, RemoveVersions, Versions, make_environment, this_release
from support.wheels import make_wheel


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "root")


def add(versions: Versions, *names: str) -> None:
    for number, name in enumerate(names):
        path = versions.path_of(name)
        path.mkdir(parents=True)
        mark = path / "streamdet-version.json"
        mark.write_text(f'{{"version": "{name}", "digest": "{name}"}}')
        os.utime(mark, (number, number))


def test_the_link_is_switched_and_leads_back(versions: Versions) -> None:
    add(versions, "0.1.0", "0.2.0")
    assert versions.current() is None
    versions.switch("0.1.0")
    assert (versions.current(), versions.previous()) == ("0.1.0", None)
    versions.switch("0.2.0")
    assert (versions.current(), versions.previous()) == ("0.2.0", "0.1.0")
    versions.switch("0.2.0")
    assert versions.previous() == "0.1.0"
    versions.switch("0.1.0")
    assert (versions.current(), versions.previous()) == ("0.1.0", "0.2.0")


def test_a_version_that_was_left_at_once_is_no_way_back(versions: Versions) -> None:
    add(versions, "1", "2", "3")
    versions.switch("1")
    versions.switch("2")
    before = versions.previous()
    versions.switch("3")
    versions.switch("2")
    assert versions.previous() == "3"
    versions.lead_back_to(before)
    assert (versions.current(), versions.previous()) == ("2", "1")
    versions.lead_back_to(None)
    assert versions.previous() is None


def test_the_oldest_are_deleted_and_never_those_that_are_needed(versions: Versions) -> None:
    add(versions, "1", "2", "3", "4", "5")
    versions.switch("1")
    versions.switch("5")
    assert versions.prune(3) == ["2", "3"]
    assert sorted(versions.names()) == ["1", "4", "5"]
    assert versions.prune(3) == []


def test_an_incomplete_version_is_none(versions: Versions) -> None:
    add(versions, "1")
    versions.path_of("2").mkdir()
    (versions.folder / "current").symlink_to("2")
    assert versions.names() == ["1"]
    assert versions.current() is None


def test_removing_leaves_what_is_not_ours(versions: Versions) -> None:
    add(versions, "1", "2")
    versions.switch("1")
    (versions.folder / "README.md").write_text("a checkout")
    step = RemoveVersions(versions)
    assert step.verb() == "remove"
    step.do()
    assert [path.name for path in versions.folder.iterdir()] == ["README.md"]
    assert step.verb() == "absent"


@dataclass
class Sources:
    """Stands for site-packages: a package with a large file that has a hole, and a link to elsewhere."""

    folder: Path

    def tops(self) -> dict[str, Path]:
        package = self.folder / "package"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("answer = 42\n")
        (self.folder / "elsewhere.txt").write_text("linked")
        (package / "link.txt").symlink_to("../elsewhere.txt")
        with (package / "lib.so").open("wb") as file:
            file.write(b"begin")
            file.seek(64 << 20)
            file.write(b"end")
        (package / "lib.so").chmod(0o700)
        (self.folder / "single.py").write_text("x = 1\n")
        return {"package": package, "single.py": self.folder / "single.py"}


@pytest.fixture
def tops(tmp_path: Path) -> dict[str, Path]:
    return Sources(tmp_path / "site").tops()


def packages_of(path: Path) -> Path:
    (found,) = path.glob("lib/python*/site-packages")
    return found


def test_an_environment_is_a_copy_that_others_can_read(versions: Versions, tops: dict[str, Path]) -> None:
    make_environment(Release("9.9", "d", tops, None), versions, "9.9")
    assert versions.names() == ["9.9"]
    packages = packages_of(versions.path_of("9.9"))
    assert (packages / "package/link.txt").read_text() == "linked"
    assert not (packages / "package/link.txt").is_symlink()
    library = packages / "package/lib.so"
    assert library.read_bytes() == tops["package"].joinpath("lib.so").read_bytes()
    assert library.stat().st_blocks * 512 < 1 << 20  # the hole is not written
    assert library.stat().st_mode & 0o777 == 0o755
    assert (packages / "single.py").stat().st_mode & 0o777 == 0o644
    assert list((packages / "package/__pycache__").glob("__init__*.pyc"))
    assert (packages / "streamdet/service/install/systemd/streamdet.service").is_file()
    assert not (packages / "streamdet/service/install/systemd").is_symlink()
    assert (packages / "streamdet/monitoring/grafana/dashboards/streamdet.json").is_file()
    program = versions.path_of("9.9") / "bin/streamdet"
    assert program.read_text().startswith("#!/opt/streamdet/9.9/bin/python\n")
    assert os.access(program, os.X_OK)


def test_what_did_not_change_is_the_same_file_on_disk(versions: Versions, tops: dict[str, Path]) -> None:
    make_environment(Release("1", "a", tops, None), versions, "1")
    versions.switch("1")
    tops["single.py"].write_text("x = 2  # longer\n")
    make_environment(Release("2", "b", tops, None), versions, "2")
    old, new = (packages_of(versions.path_of(name)) for name in ("1", "2"))
    assert (old / "package/lib.so").samefile(new / "package/lib.so")
    assert not (old / "single.py").samefile(new / "single.py")
    assert (old / "single.py").read_text() == "x = 1\n"


def test_only_what_is_not_compiled_yet_is_compiled(
    versions: Versions, tops: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, given = tops["package"], list[str]()
    (package / "old.py").write_text("x = 1\n")
    for name in ("__init__", "old"):
        py_compile.compile(str(package / f"{name}.py"), doraise=True)
    later = int((package / "old.py").stat().st_mtime) + 10
    os.utime(package / "old.py", (later, later))
    (package / "new.py").write_text("x = 2\n")
    run = subprocess.run

    def noting(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        given.extend(Path(line).name for line in options["input"].splitlines() if "/package/" in line)
        return run(command, **options)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", noting)
        make_environment(Release("1", "a", tops, None), versions, "1")
    assert sorted(given) == ["new.py", "old.py"]
    made = packages_of(versions.path_of("1")) / "package/__pycache__"
    assert {path.name.partition(".")[0] for path in made.glob("*.pyc")} == {"__init__", "old", "new"}
    (old,) = made.glob("old.*.pyc")
    assert int.from_bytes(old.read_bytes()[8:12], "little") == later


def test_a_copy_that_fails_leaves_nothing(
    versions: Versions, tops: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_copy_data", full)
    with pytest.raises(InstallError, match=r"9\.9 cannot be made: .*No space left"):
        make_environment(Release("9.9", "d", tops, None), versions, "9.9")
    assert list(versions.folder.iterdir()) == []


def test_a_deletion_that_is_interrupted_leaves_no_part_of_a_version_under_its_name(
    versions: Versions, tops: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(versions, "1", "2", "3")
    (versions.path_of("1") / "bin").mkdir()

    def interrupted(path: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "streamdet-version.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            versions.prune(2)
    assert versions.names() == ["2", "3"]
    make_environment(Release("1", "d", tops, None), versions, "1")
    assert versions.names() == ["2", "3", "1"]


def test_other_builds_of_a_version_get_a_number(versions: Versions) -> None:
    add(versions, "0.1.0")
    assert Release("0.1.0", "0.1.0", {}, None).name_in(versions) == ("0.1.0", True)
    assert Release("0.1.0", "other", {}, None).name_in(versions) == ("0.1.0-2", False)


def test_this_environment_is_copied_with_what_it_needs_and_no_test_tools() -> None:
    here = this_release(None)
    assert this_release(None).digest == here.digest
    assert {"torch", "torchvision", "av", "numpy", "zmq", "pydantic", "cv2"} <= here.tops.keys()
    assert not {"pytest", "_pytest", "mypy", "hypothesis", "ruff", "streamdet", "bin"} & here.tops.keys()
    assert all(path.exists() for path in here.tops.values())


def test_a_wheel_brings_its_own_version(versions: Versions, tmp_path: Path, tops: dict[str, Path]) -> None:
    wheel = make_wheel(tmp_path, "7.0.0")
    release = this_release(wheel)
    assert release.version == "7.0.0"
    make_environment(Release("7.0.0", "w", tops, wheel), versions, "7.0.0")
    packages = packages_of(versions.path_of("7.0.0"))
    assert '"7.0.0"' in (packages / "streamdet/__init__.py").read_text()
    assert (packages / "streamdet/service/install/systemd/streamdet.service").is_file()


def test_a_wheel_that_is_damaged_is_one_line_and_leaves_nothing(
    versions: Versions, tmp_path: Path, tops: dict[str, Path]
) -> None:
    wheel = make_wheel(tmp_path, "7.0.0")
    wheel.write_bytes(wheel.read_bytes().replace(b'"7.0.0"', b'"7.1.0"', 1))
    with pytest.raises(InstallError, match=r"7\.0\.0-py3-none-any\.whl is damaged \(.*\): fetch it again"):
        make_environment(Release("7.0.0", "w", tops, wheel), versions, "7.0.0")
    assert list(versions.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        ("av<2,>=1", "streamdet 7.0.0 needs av<2,>=1, and this environment has "),
        ("a-package-that-is-not-there>=1", "needs a-package-that-is-not-there>=1, and this environment lacks it"),
    ],
)
def test_a_wheel_that_needs_another_environment_is_refused(tmp_path: Path, requires: str, message: str) -> None:
    with pytest.raises(InstallError, match=re.escape(message)):
        this_release(make_wheel(tmp_path, "7.0.0", requires=requires))


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_what_is_no_wheel_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.whl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InstallError, match=r"x\.whl is no wheel of streamdet"):
        this_release(path)


@pytest.mark.parametrize(
    ("version", "operator", "bound", "fits"),
    [
        ("2.15.0+cu132", ">=", "2.15", True), ("2.15.0", "<", "2.15", False), ("2.9", "<", "2.15", True),
        ("3.0", "==", "3", True), ("3.0.1", "!=", "3", True), ("3.9.4", "~=", "3.9.0", True),
        ("3.10", "~=", "3.9.0", False), ("19.0rc1", "<", "19", False), ("18.1", "<=", "18.1.0", True),
        ("18.1", ">", "18.1", False),
    ],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(version: str, operator: str, bound: str, fits: bool) -> None:
    assert module._fits(version, operator, bound) is fits


def test_the_environment_of_a_process_is_known_by_where_it_is(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(versions, "1")
    assert versions.this() is None
    monkeypatch.setattr(sys, "prefix", str(versions.path_of("1")))
    assert versions.this() == "1"

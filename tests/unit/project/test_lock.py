"""The locked requirements: the same for every Python, complete, and no one's registry in them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.paths import ROOT

PYTHONS = ("3.11", "3.12", "3.13")
LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-build.txt", "requirements-deploy.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> Iterator[tuple[Requirement, str]]:
    """Each requirement of a file, and the lines that belong to it."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        yield Requirement(line.split("--hash")[0]), line


def versions(name: str, python: str) -> dict[str, str]:
    """What a file installs, by name of the package, for one Python on Linux."""
    environment = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_machine": "x86_64", "platform_python_implementation": "CPython", "implementation_name": "cpython",
    }  # fmt: skip
    found: dict[str, str] = {}
    for requirement, _line in locked(name):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in found
            found[requirement.name] = str(requirement.specifier)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_python_gets_the_same_versions(name: str) -> None:
    oldest, *others = (versions(name, python) for python in PYTHONS)
    assert oldest
    assert all(other == oldest for other in others)


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_one_version_with_hashes_and_of_no_registry(name: str) -> None:
    for requirement, line in locked(name):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", line), line
        assert requirement.url is None, line
    assert not re.search(r"://|--(extra-)?index-url|--find-links", (ROOT / name).read_text())


def test_tests_run_with_what_the_service_runs_with() -> None:
    running, testing = (versions(name, "3.11") for name in LOCKS[:2])
    assert {name: testing[name] for name in running.keys() & testing.keys()} == {
        name: running[name] for name in running.keys() & testing.keys()
    }
    assert not {"pytest", "ruff", "mypy", "hypothesis", "playwright", "hatchling", "uv"} & running.keys()


def direct() -> Iterator[tuple[str, Requirement]]:
    """What the project itself asks for, and the file that holds it."""
    project = PROJECT["project"]
    for text in project["dependencies"] + [t for extra in project["optional-dependencies"].values() for t in extra]:
        yield "requirements.txt", Requirement(text)
    for group, texts in PROJECT["dependency-groups"].items():
        for text in texts:
            yield f"requirements-{group}.txt", Requirement(text)
    for text in PROJECT["build-system"]["requires"]:
        yield "requirements-build.txt", Requirement(text)


def test_the_locked_versions_are_what_the_project_asks_for() -> None:
    for name, requirement in direct():
        version = versions(name, "3.11")[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), (name, str(requirement), version)


def test_what_runs_and_what_builds_has_an_upper_bound() -> None:
    """A wheel is installed without the lock: a library that changed its ways must not come along."""
    tests = {"requirements-dev.txt", "requirements-deploy.txt"}
    unbound = [str(wanted) for name, wanted in direct() if name not in tests and "<" not in str(wanted)]
    assert not unbound

"""Upgrades that fail before anything is restarted; tests/e2e/test_upgrade.py has the others, in a real systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdet.errors import InstallError
from streamdet.service.install.environment import Environment
from streamdet.service.install.service import Service
from streamdet.service.install.upgrade import Upgrade
from streamdet.service.install.versions import Versions


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_version_that_cannot_install_its_units_is_left_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = Versions(tmp_path)
    for name in ("0", "1", "2"):
        program(
            versions.path_of(name) / "bin/streamdet", f"ln -sfn {name} {versions.folder}/current\necho full >&2; exit 1"
        )
        (versions.path_of(name) / "streamdet-version.json").write_text("{}")
    versions.switch("0")
    versions.switch("1")
    program(tmp_path / "bin/systemctl", "exit 0")  # no daemon runs
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    environment = Environment(versions.folder / "current/bin", ())
    upgrade = Upgrade(Service(tmp_path), environment, lambda _line: None, gpu=False, enable=False, dry_run=False)
    with pytest.raises(InstallError, match="2 cannot install its units: full"):
        upgrade.run("2", seconds=None, by_itself=True)
    assert (versions.current(), versions.previous()) == ("1", "0")


# A daemon that restarts at once, with what `current` leads to: version 2 ends, all others are ready.
_SYSTEMCTL = """
case "$1 $4" in
  list-units*) case "$*" in *streamdet.service*) echo "streamdet.service loaded active running";; esac;;
  restart*) date +%N >"{folder}/invocation";;
  "show InvocationID") cat "{folder}/invocation";;
  "show ActiveState") [ "$(readlink "{current}")" = 2 ] && echo failed || echo active;;
  "show ExecMainStatus") echo 7;;
esac
"""


def test_a_version_that_cannot_put_its_units_back_runs_again_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = Versions(tmp_path)
    current = versions.folder / "current"
    for name, text in (("0", "exit 0"), ("1", "echo it knows no bridge >&2; exit 2"), ("2", f"ln -sfn 2 {current}")):
        program(versions.path_of(name) / "bin/streamdet", text)
        (versions.path_of(name) / "streamdet-version.json").write_text("{}")
    versions.switch("0")
    versions.switch("1")
    (tmp_path / "invocation").write_text("0")
    program(tmp_path / "bin/systemctl", _SYSTEMCTL.format(folder=tmp_path, current=current))
    program(tmp_path / "bin/systemd-run", "exit 0")
    program(tmp_path / "bin/journalctl", "echo broken")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    lines: list[str] = []
    environment = Environment(versions.folder / "current/bin", ())
    upgrade = Upgrade(Service(tmp_path), environment, lines.append, gpu=False, enable=False, dry_run=False)
    with pytest.raises(InstallError, match=r"2 is not in use: streamdet.service ended with 7: broken; 1 runs again"):
        upgrade.run("2", seconds=5, by_itself=True)
    assert (versions.current(), versions.previous()) == ("1", "0")
    assert any("1 cannot install its units: it knows no bridge" in text for text in lines)

"""Upgrades in front of a systemctl that answers as asked; tests/e2e/test_upgrade.py has them in a real systemd."""

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


# A daemon that restarts at once, with what `current` leads to: version 2 ends, all others are ready. The trial of a
# version starts if there is no file `broken`; of what a unit was when it was started, there is a copy in `trials`.
_SYSTEMCTL = """
case "$1 $4" in
  list-units*) case "$*" in *streamdet.service*) echo "streamdet.service loaded active running";; esac;;
  restart*) date +%N >"{folder}/invocation"; echo restart >>"{folder}/trials";;
  start*) cat "{folder}"/run/systemd/system/* >>"{folder}/trials"; ! [ -e "{folder}/broken" ];;
  "show InvocationID") cat "{folder}/invocation";;
  "show Result") cat "{folder}/broken" 2>/dev/null || echo success;;
  "show DropInPaths") echo "{folder}/override.conf";;
  "show ActiveState") [ "$(readlink "{current}")" = 2 ] && echo failed || echo active;;
  "show ExecMainStatus") echo 7;;
esac
"""


class Machine:
    """A system in a folder, on which versions 0, 1 and 2 are installed and 1 runs."""

    def __init__(self, folder: Path, engine: str = "auto") -> None:
        self.folder, self.versions = folder, Versions(folder)
        current = self.versions.folder / "current"
        for name, text in (("0", "exit 0"), ("1", "exit 0"), ("2", f"ln -sfn 2 {current}")):
            program(self.versions.path_of(name) / "bin/streamdet", text)
            (self.versions.path_of(name) / "streamdet-version.json").write_text("{}")
        self.versions.switch("0")
        self.versions.switch("1")
        units = folder / "etc/systemd/system"
        units.mkdir(parents=True)
        (units / "streamdet.service").write_text("[Service]\nUser=streamdet\n")
        (folder / "override.conf").write_text("[Service]\nEnvironment=ONEDNN_MAX_CPU_ISA=AVX2\n")
        config = folder / "etc/streamdet/streamdet.toml"
        config.parent.mkdir()
        rest = 'precision = "fp32"\nmax_batch_size = 1\n' * (engine != "auto")
        config.write_text(f'[detector]\nengine = "{engine}"\n{rest}')
        (folder / "invocation").write_text("0")
        program(folder / "bin/systemctl", _SYSTEMCTL.format(folder=folder, current=current))
        program(folder / "bin/journalctl", "echo broken")
        self.lines: list[str] = []
        environment = Environment(current / "bin", ())
        self.upgrade = Upgrade(Service(folder), environment, self.lines.append, gpu=False, enable=False, dry_run=False)

    @property
    def trials(self) -> str:
        return (self.folder / "trials").read_text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return Machine(tmp_path)


def test_a_version_that_cannot_put_its_units_back_runs_again_all_the_same(machine: Machine) -> None:
    program(machine.versions.path_of("1") / "bin/streamdet", "echo it knows no bridge >&2; exit 2")
    with pytest.raises(InstallError, match=r"2 is not in use: streamdet.service ended with 7: broken; 1 runs again"):
        machine.upgrade.run("2", seconds=5, by_itself=True)
    assert (machine.versions.current(), machine.versions.previous()) == ("1", "0")
    assert any("1 cannot install its units: it knows no bridge" in text for text in machine.lines)


def test_the_engines_are_tried_then_a_start_and_only_then_is_anything_restarted(machine: Machine) -> None:
    with pytest.raises(InstallError):
        machine.upgrade.run("2", seconds=33, by_itself=True)
    program = machine.versions.path_of("2") / "bin/streamdet"
    config = machine.folder / "etc/streamdet/streamdet.toml"
    engines, start = (
        f"ExecStart={program} engines --config {config}",
        f"ExecStart={program} run --trial --config {config}",
    )
    assert machine.trials.index(engines) < machine.trials.index(start) < machine.trials.index("restart")
    # As the service runs, with what its owner added; what the trial does otherwise comes last.
    for text in ("User=streamdet\n", "ONEDNN_MAX_CPU_ISA=AVX2"):
        assert machine.trials.count(text) == 2
        assert machine.trials.index(text) < machine.trials.index("Restart=no")
    assert machine.trials.count("TimeoutStartSec=33\n") == 1
    assert list((machine.folder / "run/systemd/system").iterdir()) == []


def test_an_engine_that_is_named_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    machine = Machine(tmp_path, engine="torch")
    with pytest.raises(InstallError):
        machine.upgrade.run("2", seconds=None, by_itself=True)
    assert " engines " not in machine.trials
    assert "run --trial" in machine.trials


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ("timeout", "it was not ready within 300 s"),
        ("exit-code", "it ended with 7 (exit-code): broken"),
        ("signal", "it ended with 7 (signal): broken"),
        ("oom-kill", "there is not enough memory for a trial beside streamdet.service: stop that first, and try again"),
    ],
)
def test_a_version_that_fails_in_its_trial_is_not_switched_to(machine: Machine, result: str, problem: str) -> None:
    (machine.folder / "broken").write_text(result)
    with pytest.raises(InstallError) as raised:
        machine.upgrade.run("2", seconds=None, by_itself=True)
    assert str(raised.value) == f"2 is not in use, and streamdet.service goes on: {problem}"
    assert (machine.versions.current(), machine.versions.previous()) == ("1", "0")
    assert "restart" not in machine.trials
    assert list((machine.folder / "run/systemd/system").iterdir()) == []


def test_other_units_for_the_same_version_ask_for_a_restart(machine: Machine) -> None:
    assert machine.upgrade.run("1", seconds=None, by_itself=False)
    assert not machine.upgrade.run("1", seconds=None, by_itself=False)
    program(
        machine.versions.path_of("1") / "bin/streamdet", "echo 'replace         /etc/systemd/system/streamdet.service'"
    )
    assert machine.upgrade.run("1", seconds=None, by_itself=True)

"""Installing into a folder; `test_systemd_units` installs into a running system."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streamdet.cli.install_service import command
from streamdet.config import load_config
from streamdet.errors import InstallError
from streamdet.extras import how_to_install
from streamdet.service.install import completion, environment, service
from streamdet.service.install.environment import Environment, this_environment
from streamdet.service.install.service import Service
from support.paths import ROOT

UNIT = "etc/systemd/system/streamdet.service"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty system; its user database is not this machine's to change, so that no one is root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


def install(root: Path, *options: str) -> Result:
    return CliRunner().invoke(command, ["--root", str(root), "--here", *options], catch_exceptions=False)


def _tree(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}


def test_it_puts_everything_in_place_and_says_so(root: Path) -> None:
    reported = install(root, "--no-gpu").output
    assert (root / UNIT).read_text() == (ROOT / "systemd/streamdet.service").read_text()
    assert load_config(root / "etc/streamdet/streamdet.toml").streams[0].name == "front-door"
    assert stat.S_IMODE((root / "etc/streamdet/streamdet.toml").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "etc/streamdet/secrets").stat().st_mode) == 0o700
    drop_in = (root / f"{UNIT}.d/10-environment.conf").read_text()
    assert f"\nEnvironment=PATH={Path(sys.prefix, 'bin')}:" in drop_in
    assert (root / "usr/local/bin/streamdet").readlink() == Path(sys.prefix, "bin/streamdet")
    for path in (*_tree(root), "etc/streamdet/", "etc/streamdet/secrets/", "usr/local/bin/streamdet"):
        assert f"create          {root}/{path}" in reported
    assert not (root / f"{UNIT}.d/gpu.conf").exists()


def test_twice_is_as_once_and_a_configuration_is_never_overwritten(root: Path) -> None:
    install(root)
    config = root / "etc/streamdet/streamdet.toml"
    config.write_text("# mine\n")
    (root / UNIT).write_text("# of an older version\n")
    before = _tree(root)
    reported = install(root).output
    assert config.read_text() == "# mine\n"
    assert f"kept            {config} (yours: never overwritten)\n" in reported
    assert f"replace         {root / UNIT}\n" in reported
    assert "create" not in reported
    assert {path for path, text in _tree(root).items() if before[path] != text} == {UNIT}


def test_a_dry_run_changes_nothing(root: Path) -> None:
    reported = install(root, "--dry-run").output
    assert f"would create    {root / UNIT}\n" in reported
    assert list(root.iterdir()) == []


def test_uninstall_leaves_what_is_the_users(root: Path) -> None:
    install(root, "--gpu")
    install(root, "--instance", "yard")
    assert (root / f"{UNIT}.d/gpu.conf").exists()
    install(root, "--uninstall")
    assert not (root / UNIT).exists()
    assert not (root / f"{UNIT}.d").exists()
    # The other service still needs it.
    assert (root / "usr/local/bin/streamdet").is_symlink()
    assert "streamdet" in (root / "usr/local/share/bash-completion/completions/streamdet").read_text()
    assert (root / "usr/local/share/zsh/site-functions/_streamdet").read_text().startswith("#compdef streamdet")
    assert all((root / path).exists() for path in completion.PATHS.values())
    install(root, "--uninstall", "--instance", "yard")
    assert sorted(_tree(root)) == [
        "etc/streamdet/streamdet.toml",
        "etc/streamdet/yard.toml",
        "etc/sysusers.d/streamdet-yard.conf",
        "etc/sysusers.d/streamdet.conf",
    ]
    assert not (root / "usr/local/bin/streamdet").is_symlink()
    assert not any((root / path).exists() for path in completion.PATHS.values())
    assert "absent" in install(root, "--uninstall").output


def test_the_page_is_a_service_of_its_own_which_stays_up_to_date_and_goes_with_the_daemons(root: Path) -> None:
    page = root / "etc/systemd/system/streamdet-web.service"
    assert "streamdet-web" not in install(root).output
    reported = install(root, "--page").output
    assert f"create          {page}\n" in reported
    assert page.read_text() == (ROOT / "systemd/streamdet-web.service").read_text()
    assert "PATH=" in (root / f"{page}.d/10-environment.conf").read_text()
    page.write_text("# of an older version\n")
    assert f"replace         {page}\n" in install(root).output
    install(root, "--uninstall")
    assert not page.exists()
    assert not Path(f"{page}.d").exists()


BRIDGE = "etc/systemd/system/streamdet-bridge@.service"


def test_bridges_are_services_of_their_own_which_stay_up_to_date_and_go_with_the_daemons(root: Path) -> None:
    assert "streamdet-bridge@" not in install(root).output
    reported = install(root, "--bridge", "webhook", "--bridge", "mqtt").output
    assert f"create          {root / BRIDGE}\n" in reported
    assert "systemctl enable --now streamdet streamdet-bridge@webhook streamdet-bridge@mqtt\n" in reported
    assert (root / BRIDGE).read_text() == (ROOT / "systemd/streamdet-bridge@.service").read_text()
    assert "PATH=" in (root / f"{BRIDGE}.d/10-environment.conf").read_text()
    assert stat.S_IMODE((root / "etc/streamdet/bridges.secrets").stat().st_mode) == 0o700
    (root / BRIDGE).write_text("# of an older version\n")
    assert f"replace         {root / BRIDGE}\n" in install(root).output
    install(root, "--uninstall")
    assert not (root / BRIDGE).exists()
    assert not (root / f"{BRIDGE}.d").exists()
    assert (root / "etc/streamdet/bridges.secrets").is_dir()


def test_a_bridge_is_removed_alone_and_the_template_with_the_last_one(root: Path) -> None:
    install(root, "--bridge", "webhook")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "streamdet-bridge@mqtt.service").symlink_to(root / BRIDGE)
    assert f"would create    {wants}" not in install(root, "--bridge", "webhook", "--dry-run").output
    assert "streamdet-bridge@mqtt" in install(root).output
    install(root, "--uninstall", "--bridge", "webhook")
    assert (root / BRIDGE).exists()
    install(root, "--uninstall", "--bridge", "mqtt")
    assert not (root / BRIDGE).exists()
    assert (root / UNIT).exists()


def test_a_bridge_that_lacks_its_package_is_not_installed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InstallError, match=f"the bridge mqtt needs .*: {re.escape(how_to_install('mqtt'))}$"):
        install(root, "--bridge", "mqtt")
    assert list(root.iterdir()) == []


NODE = "etc/systemd/system/streamdet-cluster-node.service"


def test_the_parts_of_a_cluster_are_services_of_their_own_which_stay_up_to_date_and_go_with_the_daemons(
    root: Path,
) -> None:
    assert "streamdet-cluster" not in install(root).output
    reported = install(root, "--cluster", "head", "--cluster", "node").output
    assert f"create          {root / NODE}\n" in reported
    assert "systemctl enable --now streamdet streamdet-cluster-head streamdet-cluster-node\n" in reported
    assert "STREAMDET_JOIN_OPTIONS=HEAD --fps N" in reported
    assert (root / NODE).read_text() == (ROOT / "systemd/streamdet-cluster-node.service").read_text()
    assert "PATH=" in (root / f"{NODE}.d/10-environment.conf").read_text()
    assert stat.S_IMODE((root / "etc/streamdet/cluster").stat().st_mode) == 0o700
    (root / NODE).write_text("# of an older version\n")
    assert f"replace         {root / NODE}\n" in install(root).output
    own = root / f"{NODE}.d/override.conf"
    own.write_text("mine")
    install(root, "--uninstall", "--cluster", "node")
    assert not (root / NODE).exists()
    assert (own.read_text(), (root / UNIT).exists()) == ("mine", True)
    head = root / "etc/systemd/system/streamdet-cluster-head.service"
    assert head.exists()
    install(root, "--uninstall")
    assert not head.exists()
    assert (root / "etc/streamdet/cluster").is_dir()


def test_a_part_of_a_cluster_that_could_not_start_is_not_enabled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = root / "etc/streamdet/cluster/cluster.key"
    with pytest.raises(InstallError, match=f"needs {token}: streamdet cluster init makes it on the head$"):
        install(root, "--cluster", "head", "--enable")
    with pytest.raises(InstallError, match=f"needs {token}: copy it from the head$"):
        install(root, "--cluster", "node", "--enable")
    token.parent.mkdir(parents=True)
    token.write_text("a token")
    with pytest.raises(
        InstallError, match=r"needs the head: .*STREAMDET_JOIN_OPTIONS=.*systemctl edit streamdet-cluster-node"
    ):
        install(root, "--cluster", "node", "--enable")
    assert not (root / UNIT).exists()
    override = root / f"{NODE}.d/override.conf"
    override.parent.mkdir(parents=True)
    override.write_text('[Service]\nEnvironment="STREAMDET_JOIN_OPTIONS=192.0.2.1 --fps 40"\n')
    assert f"create          {root / NODE}\n" in install(root, "--cluster", "node", "--enable").output
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InstallError, match=f"{re.escape(how_to_install('cluster'))}$"):
        install(root, "--cluster", "head")


def test_what_comes_next_can_be_typed(root: Path) -> None:
    own = root / "usr/local/bin/streamdet"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    config = root / "etc/streamdet/streamdet.toml"
    assert f"then: {sys.prefix}/bin/streamdet check {config}\n" in install(root).output
    own.unlink()
    assert f"then: streamdet check {config}\n" in install(root).output


def test_an_administrators_own_program_and_drop_ins_stay(root: Path) -> None:
    own, drop_in = root / "usr/local/bin/streamdet", root / f"{UNIT}.d/override.conf"
    for path in (own, drop_in):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    assert f"kept            {own}" in install(root).output
    install(root, "--uninstall")
    assert (own.read_text(), drop_in.read_text()) == ("mine", "mine")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamdet", "install-service", *options], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["../x", "-x", "a b", "streamdet", "a" * 65])
def test_a_name_that_no_instance_can_have_is_one_line(name: str) -> None:
    result = run("--dry-run", f"--instance={name}")
    assert result.returncode == 1
    assert result.stderr.startswith("streamdet: ")
    assert result.stderr.count("\n") == 1


def test_a_page_that_may_change_things_gets_the_socket_and_its_users_and_nothing_else(root: Path) -> None:
    install(root, "--page")
    config, drop_in = (
        root / "etc/streamdet/streamdet.toml",
        root / "etc/systemd/system/streamdet-web.service.d/20-changes.conf",
    )
    assert not drop_in.exists()
    config.write_text("streams = []\n[web]\nallow_changes = true\n")
    with pytest.raises(InstallError, match=r"\[web\] allow_changes needs password_file, too: "):
        install(root)
    config.write_text('streams = []\n[web]\nallow_changes = true\npassword_file = "page.users"\n')
    with pytest.raises(InstallError, match=r'\[web\] allow_changes needs group = "streamdet" in \[control\]'):
        install(root)
    assert not drop_in.exists()
    config.write_text(config.read_text() + '[control]\ngroup = "streamdet"\n')
    assert f"create          {drop_in}\n" in install(root).output
    lines = drop_in.read_text().splitlines()
    assert "SupplementaryGroups=streamdet" in lines
    assert "InaccessiblePaths=-/etc/streamdet -/var/lib/streamdet -/var/cache/streamdet" in lines
    assert "LoadCredential=page.users:/etc/streamdet/page.users" in lines
    assert lines[-1].endswith("--socket /run/streamdet/streamdet/control.sock $STREAMDET_WEB_OPTIONS")
    (credential,) = (line.partition(":")[2] for line in lines if line.startswith("SetCredential=page.toml:"))
    assert tomllib.loads(credential.replace("\\n", "\n")) == {
        "web": {"allow_changes": True, "password_file": "page.users"}
    }
    config.write_text("streams = []\n")
    assert "20-changes.conf" in install(root).output
    assert not drop_in.exists()
    assert (drop_in.parent / "10-environment.conf").exists()


@pytest.mark.parametrize(("option", "hint"), [("--page", "STREAMDET_WEB_OPTIONS"), ("--bridge=mqtt", "bridges.md")])
def test_a_page_or_bridge_of_an_instance_is_refused_in_words(option: str, hint: str) -> None:
    result = run("--dry-run", "--instance=yard", option)
    assert result.returncode == 2
    assert hint in result.stderr


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InstallError, match="use sudo"):
        Service().check_system()


def test_without_systemd_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(service, "BOOTED", tmp_path / "absent")
    with pytest.raises(InstallError, match="systemd does not run here"):
        Service().check_system()


def test_a_folder_that_cannot_be_written_is_one_line(root: Path) -> None:
    (root / "etc").write_text("a file")
    with pytest.raises(InstallError, match=r"sysusers.d/streamdet.conf: Not a directory|File exists"):
        install(root)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Path]:
    """An environment that only its owner can enter."""
    scripts = tmp_path / "private/venv/bin"
    scripts.mkdir(parents=True)
    (scripts / "streamdet").write_text("#!/bin/sh\n")
    (tmp_path / "private").chmod(0o700)
    yield scripts
    (tmp_path / "private").chmod(0o755)


def test_an_environment_that_the_service_cannot_read_is_reported(private: Path) -> None:
    with pytest.raises(InstallError, match=r"the service's user cannot read .*: chmod o[+]rX /"):
        Environment(private, (private.parent,)).check()


def test_an_environment_in_a_home_is_mounted_for_the_service(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "HIDDEN", (*environment.HIDDEN, private.parent.parent))
    inside_a_home = Environment(private, (private.parent, *this_environment().folders))
    inside_a_home.check()
    assert f"\nBindReadOnlyPaths={private.parent}\n" in inside_a_home.drop_in()
    (private / "streamdet").chmod(0o600)
    with pytest.raises(InstallError, match="chmod"):
        inside_a_home.check()


def test_an_environment_without_the_program_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="there is no program"):
        Environment(tmp_path, ()).check()


def test_a_path_that_a_unit_file_cannot_hold_is_reported(tmp_path: Path) -> None:
    scripts = tmp_path / "50% of it"
    scripts.mkdir()
    (scripts / "streamdet").touch()
    with pytest.raises(InstallError, match="another folder"):
        Environment(scripts, ()).check()


def test_this_environment_is_complete() -> None:
    found = this_environment()
    found.check()
    for needed in (Path(sys.executable), Path(os.__file__), Path(environment.__file__)):
        inside = [*found.folders, Path("/usr")]
        assert any(needed.resolve().is_relative_to(folder) for folder in inside)


def test_instances_share_neither_user_nor_secrets(root: Path) -> None:
    install(root)
    assert stat.S_IMODE((root / "etc/streamdet").stat().st_mode) == 0o750
    reported = install(root, "--instance", "yard").output
    assert f"open            {root}/etc/streamdet/" in reported
    assert stat.S_IMODE((root / "etc/streamdet").stat().st_mode) == 0o751
    assert stat.S_IMODE((root / "etc/streamdet/yard.secrets").stat().st_mode) == 0o700
    users = (root / "etc/sysusers.d/streamdet-yard.conf").read_text()
    assert "\nu streamdet-yard - " in users
    assert "\nm streamdet-yard video\n" in users
    assert "streamdet/yard" not in (root / "etc/sysusers.d/streamdet.conf").read_text()
    assert "unchanged       " + str(root / "etc/streamdet/") in install(root, "--instance", "yard").output
    # A user's name has 31 characters at most.
    assert install(root, "--instance", 21 * "y").exit_code == 0
    with pytest.raises(InstallError, match="up to 21 letters"):
        install(root, "--instance", 22 * "y")


def test_a_program_that_root_runs_is_named_by_its_whole_path() -> None:
    """The PATH of a unit begins with the environment's folder, which need not be root's."""
    for path in (ROOT / "systemd").rglob("*"):
        for line in re.findall(r"^Exec\w+=(\S*\+.*)", path.read_text() if path.is_file() else "", re.MULTILINE):
            assert re.fullmatch(r"-?\+/usr/bin/[a-z-]+( -?[a-z0-9]+)*", line), f"{path}: {line}"
            assert "/env " not in line
            assert "/sh " not in line

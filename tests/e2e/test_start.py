"""How the program begins: no signal ends it while it loads, and nothing of the present folder is run."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamdet.assets import sample_clip
from streamdet.bench.daemon import DaemonUnderTest, Load
from streamdet.bench.frames import describe
from streamdet.cli.beside import WebChild, free_endpoint
from streamdet.errors import EXIT_INTERRUPTED, EXIT_USAGE
from support.paths import ROOT

PROGRAM = str(Path(sys.prefix, "bin/streamdet"))
# Modules of Python and of others, that this program or one of its libraries imports soon or late.
MODULES = ("uvicorn", "pickle", "multiprocessing", "signal", "click", "runpy", "torch", "numpy", "json")


def blocks_hangups(pid: int) -> bool:
    (mask,) = re.findall(r"^SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGHUP - 1) & 1)


@pytest.mark.parametrize("milliseconds", [0, 10, 50, 100, 200, 400, 1000])
def test_a_hangup_while_the_program_loads_does_not_end_it(milliseconds: int, tmp_path: Path) -> None:
    """As the unit starts it; the file that is read at last is wrong, so that it ends by itself."""
    unit = (ROOT / "systemd/streamdet.service").read_text()
    (command,) = re.findall(r"^ExecStart=(/usr/bin/env .*)streamdet run ", unit, re.MULTILINE)
    path = tmp_path / "streamdet.toml"
    path.write_text("wrong = 1\n")
    with subprocess.Popen([*command.split(), PROGRAM, "run", "--config", str(path)], stderr=subprocess.PIPE) as process:
        while not blocks_hangups(process.pid):
            time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == EXIT_USAGE


def test_without_the_unit_hangups_wait_from_the_first_line_on(tmp_path: Path) -> None:
    """Long before what `run` needs has been imported, let alone a file been read."""
    code = (
        "import sys; sys.argv = ['streamdet', 'run']\n"
        "from streamdet.__main__ import main\n"
        "loaded = {name for name in sys.modules if name.split('.')[0] in {'click', 'pydantic', 'torch', 'streamdet'}}\n"
        "assert loaded == {'streamdet', 'streamdet._moved', 'streamdet.__main__'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_other_commands_end_with_their_terminal() -> None:
    # These tests may have been started by something that ignores hangups, as nohup does.
    command = ["env", "--default-signal=HUP", PROGRAM, "watch", "tcp://127.0.0.1:1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        process.send_signal(signal.SIGHUP)
        try:
            assert process.wait(30) == -signal.SIGHUP
        finally:
            process.kill()


def catches_interrupts(pid: int) -> bool:
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)


@pytest.mark.parametrize("milliseconds", [0, 10, 50, 100, 200, 400])
def test_an_interrupt_while_a_command_loads_is_no_traceback(milliseconds: int) -> None:
    # These tests may have been started by something that ignores interrupts, as a script does with `&`.
    command = ["env", "--default-signal=INT", PROGRAM, "watch", "tcp://127.0.0.1:1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for is_caught in (True, False):  # by Python when it starts, until the program begins
            while catches_interrupts(process.pid) != is_caught:
                time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode in (-signal.SIGINT, 1, EXIT_INTERRUPTED)
    assert "Traceback" not in errors


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A present folder with files that are named like modules; each leaves a trace when it is run."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(
            f'open({str(tmp_path / "ran")!r}, "a").write("{name} ")\nraise ImportError\n'
        )
    monkeypatch.chdir(folder)
    return tmp_path / "ran"


def test_the_page_of_the_demo_runs_nothing_of_the_present_folder(trap: Path) -> None:
    with WebChild("tcp://127.0.0.1:1", "127.0.0.1:1", free_endpoint("127.0.0.1:0")) as page:
        assert page._process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            page._process.wait(4)
    assert not trap.exists(), trap.read_text()


def test_the_daemon_of_the_bench_runs_nothing_of_the_present_folder(trap: Path, tmp_path: Path) -> None:
    load = Load(describe(sample_clip()), 1, {})
    with DaemonUnderTest(load, tmp_path, free_endpoint("127.0.0.1:0"), stand_in=True) as daemon:
        daemon.measure(0.1)
    assert not trap.exists(), trap.read_text()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_no_process_that_the_program_starts_looks_into_the_present_folder(method: str, trap: Path) -> None:
    """Training starts processes through multiprocessing, and torch's compiler through subprocess."""
    code = (
        "import multiprocessing, os, subprocess, sys\n"
        "import streamdet.__main__, streamdet.cli\n"
        "def start():\n"
        f"    process = multiprocessing.get_context({method!r}).Process(target=os.getpid)\n"
        "    process.start(); process.join(); assert process.exitcode == 0\n"
        "    subprocess.run([sys.executable, '-c', 'import json, uvicorn'], check=True)\n"
        "streamdet.cli.main = start\n"
        "streamdet.__main__.main()\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=100)
    assert not trap.exists(), trap.read_text()


def test_the_program_as_a_module_looks_nowhere_else_either(trap: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "streamdet", "--version"], capture_output=True, text=True, check=True
    )
    assert "streamdet" in result.stdout
    assert not trap.exists(), trap.read_text()


def test_every_python_that_the_program_starts_gets_it() -> None:
    for path in (ROOT / "streamdet").rglob("*.py"):
        for call in re.findall(r"sys\.executable, .*", path.read_text()):
            assert call.startswith('sys.executable, "-P"'), f"{path}: {call}"

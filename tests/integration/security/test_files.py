"""Files are written whole or not at all, and no one else reads what is private."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from streamdet.security.files import (
    open_at_once,
    others_can_read,
    read_start,
    remove_leftovers,
    stage,
    write_atomically,
)

# Writes half of the new content, says so, and waits to be killed.
_WRITER = """
import sys, time
from pathlib import Path
from streamdet.security.files import write_atomically

def write(file):
    file.write(b"n" * 500_000)
    file.flush()
    print("there", flush=True)
    time.sleep(600)

write_atomically(Path(sys.argv[1]), write)
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_kill_in_the_middle_of_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"o" * 1_000_000)
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "there\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert path.read_bytes() == b"o" * 1_000_000
    assert len(list(tmp_path.iterdir())) == 2  # the half is there, under another name
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def write(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o644, 0o644), (None, 0o640)])
def test_permissions_are_those_that_were_given_or_those_of_open(
    tmp_path: Path, mode: int | None, expected: int
) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"new", mode=mode)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == expected


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    modes = []
    before = os.umask(0)
    try:
        write_atomically(
            tmp_path / "key", lambda file: modes.append(os.fstat(file.fileno()).st_mode & 0o777), mode=0o644
        )
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("as it was")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "target").read_text() == "as it was"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_link_at_the_place_of_the_new_content_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".file.guessed.part").symlink_to(tmp_path / "planted")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"secret")
    assert not (tmp_path / "planted").exists()


def test_what_may_not_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "alice.key"
    write_atomically(path, b"first", replace=False)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_staged_content_is_in_place_only_after_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "changes.json"
    path.write_text("old")
    stage(path, b"dropped").discard()
    staged = stage(path, b"new")
    assert path.read_text() == "old"
    staged.commit()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.root
def test_a_folder_that_may_be_written_but_not_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o733)
        os.seteuid(65534)
        try:
            write_atomically(folder / "file", b"new")
        finally:
            os.seteuid(0)
        assert (folder / "file").read_bytes() == b"new"


def test_a_pipe_is_no_file_and_blocks_no_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    data, mode = read_start(tmp_path / "pipe", 10)
    assert (data, stat.S_ISFIFO(mode)) == (b"", True)
    (tmp_path / "file").write_bytes(b"0123456789ab")
    assert read_start(tmp_path / "file", 10)[0] == b"0123456789"


def test_a_folder_in_place_of_a_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for follow in (True, False):
        with pytest.raises(IsADirectoryError):
            open_at_once(tmp_path, follow=follow)
    with pytest.raises(IsADirectoryError):
        read_start(tmp_path, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_that_looks_like_a_leftover_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".photos.part").mkdir()
    (tmp_path / ".state.json.0123abcd.part").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".photos.part"]


@pytest.mark.parametrize(("mode", "open_to_others"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_who_else_can_read_a_file(tmp_path: Path, mode: int, *, open_to_others: bool) -> None:
    assert others_can_read(tmp_path / "file", stat.S_IFREG | mode) is open_to_others

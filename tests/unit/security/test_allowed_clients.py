from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamdet.security.curve import REFRESH_SECONDS, AllowedClients
from support.knocking import Keys


class Clock:
    """Moves on only when it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Allowed:
    """The clients of a directory, read again at every look."""

    def __init__(self, directory: Path) -> None:
        self._clock = Clock()
        self._clients = AllowedClients(directory, self._clock)

    def names(self) -> list[str]:
        self._clock.now += REFRESH_SECONDS
        return sorted(self._clients.names().values())


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path)
    keys.make("alice")
    keys.make("bob")
    return keys


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Not one more file can be opened in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open("/", os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_want_of_descriptors_cuts_no_one_and_is_said_once(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    allowed = Allowed(keys.clients)
    assert allowed.names() == ["alice", "bob"]
    with no_descriptors():
        assert [allowed.names() for _ in range(5)] == [["alice", "bob"]] * 5
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 1
    assert "Too many open files; clients let in before stay connected" in said[0].getMessage()
    (keys.clients / "bob.key").unlink()
    assert allowed.names() == ["alice"]


def test_a_want_of_descriptors_at_the_start_lets_no_one_in_until_it_is_over(keys: Keys) -> None:
    allowed = Allowed(keys.clients)
    with no_descriptors():
        assert allowed.names() == []
    assert allowed.names() == ["alice", "bob"]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM])
@pytest.mark.parametrize("operation", ["scandir", "stat", "open"])
def test_a_file_that_cannot_be_read_for_now_is_read_later(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, error: int, operation: str
) -> None:
    allowed = Allowed(keys.clients)
    assert allowed.names() == ["alice", "bob"]
    keys.make("carol")

    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(Path if operation == "stat" else os, operation, fail)
        assert [allowed.names() for _ in range(3)] == [["alice", "bob"]] * 3
    assert allowed.names() == ["alice", "bob", "carol"]


def test_one_file_that_cannot_be_read_keeps_no_other_client_in(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = Allowed(keys.clients)
    assert allowed.names() == ["alice", "bob"]
    keys.make("carol")
    (keys.clients / "bob.key").unlink()
    stat = Path.stat

    def fail(path: Path, **options: bool) -> os.stat_result:
        if path.name == "alice.key":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    assert allowed.names() == ["alice", "carol"]


@pytest.mark.parametrize("how", ["removed", "replaced by a file"])
def test_a_directory_that_is_gone_lets_no_one_in(keys: Keys, how: str, caplog: pytest.LogCaptureFixture) -> None:
    allowed = Allowed(keys.clients)
    assert allowed.names() == ["alice", "bob"]
    away = keys.clients.rename(keys.clients.with_name("away"))
    if how != "removed":
        keys.clients.write_text("")
    assert [allowed.names() for _ in range(3)] == [[]] * 3
    assert caplog.text.count("no client is accepted") == 1
    keys.clients.unlink(missing_ok=True)
    away.rename(keys.clients)
    assert allowed.names() == ["alice", "bob"]


def test_a_key_that_takes_the_place_of_another_counts_whatever_the_times_of_its_file_say(keys: Keys) -> None:
    allowed = AllowedClients(keys.clients, clock := Clock())

    def now() -> dict[bytes, str]:
        clock.now += REFRESH_SECONDS
        return allowed.names()

    file = keys.clients / "alice.key"
    before, status = now(), file.stat()
    other = keys.make("other", allowed=False).with_suffix(".key").read_bytes()
    file.write_bytes(other)  # the same file, of the same size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = now()
    assert sorted(after.values()) == ["alice", "bob"]
    assert after.keys() != before.keys()
    assert allowed.removals == 1


def test_a_directory_that_is_exchanged_for_another_counts_at_once(keys: Keys, tmp_path: Path) -> None:
    keys.clients.rename(tmp_path / "first")
    (tmp_path / "second").mkdir()
    carol = keys.make("carol", allowed=False).with_suffix(".key")
    carol.rename(tmp_path / "second" / "carol.key")
    keys.clients.symlink_to("first")
    allowed = Allowed(keys.clients)
    assert allowed.names() == ["alice", "bob"]
    (tmp_path / "next").symlink_to("second")
    (tmp_path / "next").replace(keys.clients)
    assert allowed.names() == ["carol"]


def test_a_named_pipe_among_the_keys_holds_up_no_one(keys: Keys) -> None:
    os.mkfifo(keys.clients / "pipe.key")
    assert Allowed(keys.clients).names() == ["alice", "bob"]

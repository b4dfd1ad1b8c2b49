from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from streamdet.capture.sources import dns as module
from streamdet.capture.sources.dns import resolve
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.errors import SourceError
from streamdet.types import Reason


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A resolver that answers no one before the end of the test; the names that it has been asked for."""
    over, asked = threading.Event(), list[str]()

    def wait(host: str, *_: object, **options: int) -> list[object]:
        if "flags" not in options:
            asked.append(host)
            over.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(module.socket, "getaddrinfo", wait)
    yield asked
    over.set()


def test_addresses_need_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LookUp", None)
    assert [address[4][:2] for address in resolve("127.0.0.1", 80, 5)] == [("127.0.0.1", 80)]
    assert [address[4][:2] for address in resolve("::1", 80, 5)] == [("::1", 80)]


def test_names_are_looked_up() -> None:
    assert ("127.0.0.1", 80) in [address[4] for address in resolve("localhost", 80, 30)]


def test_a_name_that_is_not_known_is_reported() -> None:
    with pytest.raises(SourceError, match=r"the name nowhere\.invalid is not known") as caught:
        resolve("nowhere.invalid", 80, 30)
    assert caught.value.reason is Reason.DNS


def test_silence_is_reported_as_what_it_is(silence: list[str]) -> None:
    for _ in range(3):
        with pytest.raises(SourceError, match=r"no name server answers within 0\.1 s for camera") as caught:
            resolve("camera", 80, 0.1)
        assert caught.value.reason is Reason.DNS
    # One question, and one thread, for all who want to know the same.
    assert silence == ["camera"]


def test_an_interrupt_ends_the_wait(silence: list[str]) -> None:
    interrupt = Interrupt()
    interrupt.set()
    with interrupt.bound(), pytest.raises(SourceError) as caught:
        resolve("camera", 80, 60)
    assert caught.value.reason is Reason.TIMEOUT


def test_there_are_only_so_many_questions(silence: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LOOK_UPS", 3)
    for number in range(5):
        with pytest.raises(SourceError) as caught:
            resolve(f"camera{number}", 80, 0.05)
        assert caught.value.reason is Reason.DNS
    assert silence == ["camera0", "camera1", "camera2"]

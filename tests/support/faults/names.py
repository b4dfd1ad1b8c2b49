"""A name server that knows what it is given: nothing, an address, or not even how to answer."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Literal, Self

from support.waiting import join

ADDRESS = "127.77.0.53"

_A = b"\0\1"
_Answer = Literal["unknown", "silent", "known"]


class NameServer:
    """Answers at `ADDRESS` for names that `answers` holds; of all others it says that they do not exist."""

    def __init__(self) -> None:
        self.answers: dict[str, _Answer] = {}
        self._done = threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 53))
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        join(self._thread)
        self._socket.close()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                query, client = self._socket.recvfrom(512)
            except TimeoutError:
                continue
            answer = self._answer(query)
            if answer:
                self._socket.sendto(answer, client)

    def _answer(self, query: bytes) -> bytes:
        """RFC 1035, 4.1: the question again, and behind it one address of 127.0.0.1, or none."""
        end = query.index(b"\0", 12) + 5
        question, labels, at = query[12:end], [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        answer = self.answers.get(".".join(labels).lower(), "unknown")
        if answer == "silent":
            return b""
        known, is_a = answer == "known", question[-4:-2] == _A
        flags = b"\x81\x80" if known else b"\x81\x83"
        record = b"\xc0\x0c" + _A + b"\0\1\0\0\0\0\0\4\x7f\0\0\1" if known and is_a else b""
        return query[:2] + flags + b"\0\1" + (b"\0\1" if record else b"\0\0") + b"\0\0\0\0" + question + record

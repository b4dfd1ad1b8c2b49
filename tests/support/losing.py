"""A real ZeroMQ proxy between a publisher and its subscribers that loses some of the events on their way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Self

import zmq

from support.waiting import join

Loses = Callable[[bytes], bool]


class Proxy:
    """Forwards subscriptions one way and events the other, but for those that `loses` says are lost."""

    def __init__(self, upstream: str, loses: Loses) -> None:
        self.loses = loses
        self.lost = 0
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.XSUB)
        self._back = self._context.socket(zmq.XPUB)
        self._back.xpub_verbose = 1
        self._front.connect(upstream)
        self._front.rcvhwm = self._back.sndhwm = 0
        self.endpoint = f"tcp://127.0.0.1:{self._back.bind_to_random_port('tcp://127.0.0.1')}"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._back, zmq.POLLIN)
        while not self._ending.is_set():
            readable = dict(poller.poll(20))
            if self._back in readable:
                self._front.send(self._back.recv())
            if self._front in readable:
                parts = self._front.recv_multipart()
                if self.loses(parts[0]):
                    self.lost += 1
                else:
                    self._back.send_multipart(parts)
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        join(self._thread)


@contextlib.contextmanager
def losing(upstream: str, loses: Loses) -> Iterator[Proxy]:
    with Proxy(upstream, loses) as proxy:
        yield proxy


@contextlib.contextmanager
def losing_requests(upstream: str) -> Iterator[tuple[str, threading.Event]]:
    """A proxy for requests and answers; once the event is set, it loses all of them."""
    cut, ending = threading.Event(), threading.Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as front, context.socket(zmq.DEALER) as back:
        front.linger = back.linger = 0
        back.sndtimeo = 10_000
        back.connect(upstream)
        endpoint = f"tcp://127.0.0.1:{front.bind_to_random_port('tcp://127.0.0.1')}"

        def run() -> None:
            while not ending.is_set():
                if front.poll(10):
                    parts = front.recv_multipart()
                    if not cut.is_set():
                        back.send_multipart(parts)
                while back.poll(0):
                    front.send_multipart(back.recv_multipart())

        thread = threading.Thread(target=run, name="request-proxy", daemon=True)
        thread.start()
        try:
            yield endpoint, cut
        finally:
            ending.set()
            join(thread)

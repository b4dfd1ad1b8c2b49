"""A cluster for tests of its page: real daemons as nodes, and a head that calls their agents in a thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from streamdet.cluster.cameras import Camera, read_cameras
from support.cluster_head import Head, HeadServer
from support.processes import DaemonProcess, stream
from support.waiting import join, wait_until

_TURN_SECONDS = 0.25


def cameras_of(folder: Path, *names: str, **values: object) -> dict[str, Camera]:
    """Streams of the sample clip, as a file for `apply` has them."""
    path = folder / "cameras.toml"
    path.write_text("".join(stream(name, **{"max_fps": 5, **values}) for name in names))
    return read_cameras(path)


class PageCluster:
    """A head and its nodes, each with a real daemon, which also watches a stream "own" of its own file.

    Args:
        folder: for the files of the nodes.
        nodes: their names.
        streams: of the cluster.
        comes_and_goes: whether people come and go in what is seen, so that objects end.
        more: of the configuration of each daemon, where NODE stands for its name.
        values: of each stream; a node takes 45 frames per second.
    """

    def __init__(
        self,
        folder: Path,
        nodes: tuple[str, ...],
        streams: tuple[str, ...],
        *,
        comes_and_goes: bool = False,
        more: str = "",
        **values: object,
    ) -> None:
        self._folder = folder
        self.daemons: dict[str, DaemonProcess] = {}
        for name in nodes:
            self.daemons[name] = daemon = DaemonProcess(folder / name, comes_and_goes=comes_and_goes)
            daemon.write_config(stream("own", max_fps=2), more=f'[node]\nname = "{name}"\n{more.replace("NODE", name)}')
        sockets = {name: daemon.control_path for name, daemon in self.daemons.items()}
        self.head = Head(sockets, cameras_of(folder, *streams, **values))
        self.server = HeadServer(self.head.status)
        self._ending = threading.Event()
        self._turning = threading.Lock()
        self._is_held = False
        self._thread = threading.Thread(target=self._turn, daemon=True)
        self._stack = ExitStack()

    def _turn(self) -> None:
        while not self._ending.wait(_TURN_SECONDS):
            with self._turning:
                self.head.turn()

    def hold(self) -> None:
        """The head calls no node until `go_on`."""
        self._turning.acquire()
        self._is_held = True

    def go_on(self) -> None:
        """The head calls the nodes again."""
        self._is_held = False
        self._turning.release()

    def __enter__(self) -> Self:
        for daemon in self.daemons.values():
            self._stack.enter_context(daemon.ready())
        self._stack.enter_context(self.server)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._is_held:
            self.go_on()
        join(self._thread)
        self._stack.close()

    def owners(self) -> dict[str, str]:
        """The nodes by the streams that are up there."""
        return self.head.owners()

    def until(self, condition: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """Waits until a condition is met by the owners, and returns these."""
        found: list[dict[str, str]] = []

        def is_met() -> object:
            found.append(self.owners())
            return condition(found[-1])

        wait_until(is_met, "owners")
        return found[-1]

    def kill(self, node: str) -> None:
        """The daemon of a node dies."""
        self.daemons[node].end(signal.SIGKILL)

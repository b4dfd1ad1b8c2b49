"""Machines in network namespaces of their own, all at one switch; for root."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")


class Machine:
    """A network namespace.

    Attributes:
        pid: of a process in it.
        address: of the machine.
    """

    def __init__(self, stack: ExitStack, address: str) -> None:
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo here; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        stack.enter_context(holder)
        stack.callback(holder.communicate, "")
        assert holder.stdout is not None
        assert holder.stdout.readline() == "here\n"
        self.pid, self.address = holder.pid, address
        self.sh("ip link set lo up")

    def command(self, *words: str) -> list[str]:
        """A command that runs in it, as the process that is started."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def sh(self, *commands: str) -> None:
        """Runs short commands, and checks that they succeed."""
        for command in commands:
            done = subprocess.run(self.command(*command.split()), capture_output=True, text=True, check=False)
            assert done.returncode == 0, (command, done.stderr)

    def enter(self) -> None:
        """Moves the calling thread, and all that it starts from now on, into it."""
        namespace = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(namespace, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        finally:
            os.close(namespace)

    def run(self, function: Callable[[], _T]) -> _T:
        """What a function returns, or raises, that is called in it."""
        result: Future[_T] = Future()

        def call() -> None:
            try:
                self.enter()
                result.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                result.set_exception(error)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join()
        return result.result()


class Switch(Machine):
    """What connects machines with each other; itself one of them, 192.0.2.1."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack, "192.0.2.1")
        self._stack = stack
        self.sh(
            "ip link add switch type bridge", "ip link set switch up", f"ip address add {self.address}/24 dev switch"
        )

    def machine(self, number: int) -> Machine:
        """A new machine, 192.0.2.NUMBER."""
        machine = Machine(self._stack, f"192.0.2.{number}")
        self.sh(
            f"ip link add port{number} type veth peer name eth0 netns {machine.pid}",
            f"ip link set port{number} master switch up",
        )
        machine.sh(f"ip address add {machine.address}/24 dev eth0", "ip link set eth0 up")
        return machine

    def unplug(self, machine: Machine) -> None:
        """Pulls the cable of a machine: connections stay as they are, and nothing comes through."""
        self.sh(f"ip link set port{machine.address.rpartition('.')[2]} down")

    def plug(self, machine: Machine) -> None:
        """Puts the cable of a machine back."""
        self.sh(f"ip link set port{machine.address.rpartition('.')[2]} up")

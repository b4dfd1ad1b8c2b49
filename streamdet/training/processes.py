"""Several one-thread processes that train one model.

On a CPU the small operations of a detector gain little from a second thread, while a second process takes
half of the batch: 1.5 times the images per second on two cores. Gradients are averaged after each step.

No process outlives the others: rank 0 ends the processes that it started, and they end themselves when rank 0
has ended for any reason.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing

from streamdet.errors import EXIT_FAILURE, StreamdetError

# The others wait in a collective operation while rank 0 evaluates. A dead process is noticed at once, by its
# closed connection, so this only has to be longer than any evaluation.
_TIMEOUT = timedelta(days=7)
_JOIN_SECONDS = 5.0
_READY_POLL_SECONDS = 0.2


class LostProcessError(StreamdetError):
    """Another process of the group ended."""


@dataclass(frozen=True)
class Group:
    """The place of this process in a group that trains together.

    Attributes:
        rank: 0 for the process that reports and saves.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces each gradient by its mean over the processes.

        Raises:
            LostProcessError: another process ended.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _lost_process_reported():
            distributed.all_reduce(flat)
        flat /= self.size
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the tensors of rank 0.

        Raises:
            LostProcessError: another process ended.
        """
        if self.size > 1:
            with _lost_process_reported():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)


@contextmanager
def group_of(size: int, work: Callable[[Group], object]) -> Iterator[Group]:
    """Starts the other processes of a group, and ends them when the block ends.

    Args:
        size: number of processes, this one included.
        work: what ranks 1 and up do with their group; must be picklable. This process does the same
            inside the block, as rank 0.

    Raises:
        LostProcessError: one of the others ended before its work was done.
    """
    if size == 1:
        yield Group()
        return
    context = multiprocessing.get_context("spawn")
    errors: SimpleQueue[str] = context.SimpleQueue()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ready = context.Semaphore(0)
        others = [
            context.Process(target=_follow, args=(rank, size, store, work, ready, errors)) for rank in range(1, size)
        ]
        try:
            for process in others:
                process.start()
            try:
                _wait_until_ready(others, ready)
                yield _join(0, size, store)
                for process in others:
                    process.join()
            except LostProcessError:
                raise LostProcessError(_why_lost(others, errors)) from None
        finally:
            _end(others)
            if distributed.is_initialized():
                distributed.destroy_process_group()
            errors.close()
            torch.set_num_threads(threads)


@contextmanager
def _lost_process_reported() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo raises when a connection closes
        msg = f"the connection to another training process broke: {error}"
        raise LostProcessError(msg) from error


def _wait_until_ready(others: list[SpawnProcess], ready: Semaphore) -> None:
    """Waits for the others before connecting to them, because connecting to a dead process would never end."""
    for _ in others:
        while not ready.acquire(timeout=_READY_POLL_SECONDS):
            if not all(process.is_alive() for process in others):
                raise LostProcessError


def _why_lost(others: list[SpawnProcess], errors: SimpleQueue[str]) -> str:
    for process in others:
        process.join(_JOIN_SECONDS)
    if not errors.empty():
        return errors.get()
    ended = [f"{p.pid} (exit code {p.exitcode})" for p in others if p.exitcode not in (None, 0)]
    return f"a training process ended: {', '.join(ended) or 'unknown'}; --resume goes on from the last checkpoint"


def _end(others: list[SpawnProcess]) -> None:
    for process in others:
        if process.pid is not None:
            process.terminate()
    for process in others:
        if process.pid is not None:
            process.join(_JOIN_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _join(rank: int, size: int, store: str) -> Group:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # Else gloo would listen where the name of this machine leads, which others may reach.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        with _lost_process_reported():
            distributed.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=_TIMEOUT
            )
    except LostProcessError:
        # A start that fails is counted, and the count is part of the name under which processes look for each other:
        # the next group of this process would wait in vain.
        distributed.distributed_c10d._world.group_count = 0  # noqa: SLF001 - torch has no other way
        raise
    return Group(rank, size)


def _follow(
    rank: int,
    size: int,
    store: str,
    work: Callable[[Group], object],
    ready: Semaphore,
    errors: SimpleQueue[str],
) -> None:
    """The entry point of the processes that `group_of` starts."""
    # Ctrl-C on a terminal reaches all of them; rank 0 decides when the run ends, and this process ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    ready.release()
    try:
        work(_join(rank, size, store))
    except LostProcessError:
        os._exit(EXIT_FAILURE)  # rank 0 notices by its own broken connection, or is the one that is gone
    except StreamdetError as error:
        errors.put(str(error))
        os._exit(error.exit_code)
    distributed.destroy_process_group()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(EXIT_FAILURE)

"""What goes wrong in a process that trains beside the first one; imports little, for each process imports it again."""

from __future__ import annotations

import os
from collections.abc import Callable

from streamdet.errors import DataError
from streamdet.training.processes import Group


def dies(group: Group) -> None:
    os._exit(3)


def finds_bad_data(group: Group) -> None:
    msg = "picture 7 is gone"
    raise DataError(msg)


class DiesAtTheStart:
    """Ends the process that unpickles it, before it has joined the group."""

    def __call__(self, group: Group) -> None:
        raise AssertionError

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (4,)

"""Ray's own command line, as it is run by `RayProcesses`, with more patience.

    python -m streamdet.cluster.ray_start start ...

A machine that is busy takes longer than half a minute to start Ray's processes. Ray would give up then, and what has
begun to run would have to start once more, again and again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ray._private import services
from ray.scripts import scripts

START_SECONDS = 300.0
_POLL_SECONDS = 0.2


def patient(
    get_node: Callable[..., Any],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    has_ended: Callable[[], bool] = lambda: False,
) -> Callable[..., Any]:
    """Ray's look for a node that has been started, which waits for it; Ray itself asks again and again for 30 s."""
    deadline = clock() + START_SECONDS

    def wait_for_node(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - Ray's own
        while True:
            try:
                return get_node(*arguments, **named)
            except RuntimeError:
                if clock() >= deadline or has_ended():
                    raise
            sleep(_POLL_SECONDS)

    return wait_for_node


def one_has_ended() -> bool:
    """Whether one of the processes that this one has started has ended: then the node does not come."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def main() -> None:
    """Runs the command."""
    services.get_node = patient(services.get_node, has_ended=one_has_ended)
    scripts.main()


if __name__ == "__main__":
    main()

"""Whether Ray's own command sees that one of its processes has ended."""

from __future__ import annotations

import subprocess

from streamdet.cluster.ray_start import one_has_ended
from support.waiting import wait_until


def test_a_process_that_has_ended_is_seen_and_left_to_its_parent() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert not one_has_ended()
        process.kill()
        wait_until(one_has_ended)
    assert process.returncode == -9

"""How long Ray's own command waits for a node that it has started."""

from __future__ import annotations

import pytest

from streamdet.cluster.ray_start import START_SECONDS, patient


class Gcs:
    """Knows a node from a moment on; time goes by as it is waited for."""

    def __init__(self, known_at: float) -> None:
        self.now, self._known_at = 0.0, known_at

    def get_node(self, address: str, node_id: str) -> tuple[str, str]:
        if self.now < self._known_at:
            raise RuntimeError
        return address, node_id

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_node_on_a_busy_machine_is_waited_for() -> None:
    gcs = Gcs(known_at=200.0)
    assert patient(gcs.get_node, lambda: gcs.now, gcs.sleep)("192.0.2.1:6379", "abc") == ("192.0.2.1:6379", "abc")


def test_a_node_that_does_not_start_is_not_waited_for_any_longer() -> None:
    gcs = Gcs(known_at=1e9)
    with pytest.raises(RuntimeError):
        patient(gcs.get_node, lambda: gcs.now, gcs.sleep)("192.0.2.1:6379", "abc")
    assert START_SECONDS <= gcs.now < START_SECONDS + 1


def test_a_node_whose_processes_have_ended_is_not_waited_for() -> None:
    gcs = Gcs(known_at=1e9)
    with pytest.raises(RuntimeError):
        patient(gcs.get_node, lambda: gcs.now, gcs.sleep, lambda: gcs.now > 10)("192.0.2.1:6379", "abc")
    assert 10 < gcs.now < 11

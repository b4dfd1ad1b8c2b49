"""What an agent reports; how it renews and releases is tested with the reconciler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from streamdet.cluster.agent import Agent

ADDRESSES = {
    "events": "tcp://0.0.0.0:5555", "replay": "tcp://[::]:5556", "metrics": "http://0.0.0.0:9095/metrics",
    "control": ["/run/streamdet/control.sock"], "page": None,
}  # fmt: skip


def daemon(method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"version": "1", "addresses": ADDRESSES, "node": "n0", "newest_generation": 0, "claims": [], "streams": []}


@pytest.mark.parametrize(("host", "written"), [("192.0.2.7", "192.0.2.7"), ("2001:db8::7", "[2001:db8::7]")])
def test_addresses_are_those_by_which_others_reach_the_node(host: str, written: str) -> None:
    assert Agent(daemon, host).turn().addresses == {
        "events": f"tcp://{written}:5555", "replay": f"tcp://{written}:5556",
        "metrics": f"http://{written}:9095/metrics", "control": ["/run/streamdet/control.sock"], "page": None,
    }  # fmt: skip
    assert Agent(daemon).turn().addresses == ADDRESSES


def test_an_address_that_the_daemon_was_given_stays() -> None:
    def elsewhere(method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        return daemon(method, path, body) | {"addresses": {"events": "tcp://192.0.2.9:5555"}}

    assert Agent(elsewhere, "192.0.2.7").turn().addresses == {"events": "tcp://192.0.2.9:5555"}

"""Which grants a daemon follows, and which come from someone who has lost the streams since."""

from __future__ import annotations

import pytest

from streamdet.errors import ControlError, Refusal
from streamdet.service.claims import LOOK_SECONDS, Claims, Grant, owners_of
from streamdet.types import Owner


class Node:
    """Claims at a time that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.claims = Claims(lambda: self.now)

    def grant(self, claim_id: str, generation: int, streams: str, lease_seconds: float = 6.0, fps: int = 5) -> None:
        self.claims.hold(self.claims.after_grant(grant_of(claim_id, generation, streams, lease_seconds, fps)))

    def release(self, claim_id: str, generation: int | None = None) -> None:
        self.claims.hold(self.claims.after_release(claim_id, generation))

    def streams(self) -> dict[str, str]:
        return {claim_id: "".join(claim.grant.streams) for claim_id, claim in self.claims.held.items()}


def grant_of(claim_id: str, generation: int, streams: str, lease_seconds: float = 6.0, fps: int = 5) -> Grant:
    return Grant(claim_id, generation, {name: {"max_fps": fps} for name in streams}, lease_seconds)


@pytest.fixture
def node() -> Node:
    return Node()


def refused(node: Node, claim_id: str, generation: int, streams: str, fps: int = 5) -> str:
    before = node.streams()
    with pytest.raises(ControlError) as caught:
        node.grant(claim_id, generation, streams, fps=fps)
    assert caught.value.code == Refusal.STALE
    assert node.streams() == before
    return str(caught.value)


def test_a_renewal_makes_the_lease_longer(node: Node) -> None:
    node.grant("c", 7, "ab")
    assert node.claims.is_renewal(grant_of("c", 7, "ab", 9.0))
    node.now += 5
    assert node.claims.lease_seconds_left(node.claims.held["c"]) == 1
    node.claims.renew(grant_of("c", 7, "ab"))
    assert node.claims.lease_seconds_left(node.claims.held["c"]) == 6
    assert node.streams() == {"c": "ab"}


def test_many_claims_are_renewed_by_their_generations(node: Node) -> None:
    node.grant("c", 7, "ab")
    node.grant("d", 8, "e")
    node.now += 5
    assert node.claims.renew_known([grant_of("c", 7, "", 9.0), grant_of("d", 8, "")]) == ["c", "d"]
    assert left(node) == {"c": 9, "d": 6}
    assert node.streams() == {"c": "ab", "d": "e"}


def test_what_is_not_in_force_as_it_was_granted_is_not_renewed(node: Node) -> None:
    node.grant("c", 7, "ab")
    node.grant("whole", 7, "z")
    node.grant("new", 8, "b")  # takes it from c
    node.now += 5
    renewals = [grant_of(claim_id, generation, "") for claim_id, generation in
                [("c", 7), ("whole", 6), ("new", 9), ("unknown", 7)]]  # fmt: skip
    assert node.claims.renew_known(renewals) == []
    assert left(node) == {"c": 1, "whole": 1, "new": 1}
    assert node.streams() == {"c": "a", "whole": "z", "new": "b"}
    # Its sender sends all of it, and learns that it is stale; a grant of what is left is as good as any.
    assert "b was granted with generation 8 since" in refused(node, "c", 7, "ab")
    node.grant("c", 9, "a")
    assert node.claims.renew_known([grant_of("c", 9, "")]) == ["c"]


def test_a_lower_generation_is_refused(node: Node) -> None:
    node.grant("c", 7, "ab")
    assert refused(node, "c", 6, "ab") == "claim c: generation 6 is stale: a was granted with generation 7 since"
    assert refused(node, "c", 6, "x") == "claim c: generation 6 is stale: the newest is 7"
    assert not node.claims.is_renewal(grant_of("c", 6, "ab"))


def test_a_generation_is_for_the_streams_that_it_was_given_for(node: Node) -> None:
    node.grant("c", 7, "ab")
    assert "other streams" in refused(node, "c", 7, "abc")
    assert "other streams" in refused(node, "c", 7, "ab", fps=6)
    node.grant("c", 8, "abc")
    assert node.streams() == {"c": "abc"}


def test_a_newer_grant_takes_streams_over(node: Node) -> None:
    node.grant("old", 7, "ab")
    node.grant("new", 8, "bc")
    assert node.streams() == {"old": "a", "new": "bc"}
    assert owners_of(node.claims.held.values(), "n") == {"a": Owner("n", 7), "b": Owner("n", 8), "c": Owner("n", 8)}
    assert "b was granted with generation 8 since" in refused(node, "old", 7, "ab")
    assert "c was granted with generation 8 since" in refused(node, "other", 8, "c")
    node.grant("new", 9, "abc")
    assert node.streams() == {"new": "abc"}


def test_a_generation_outlasts_its_claim(node: Node) -> None:
    node.grant("c", 7, "a")
    node.release("c")
    assert "a was granted with generation 7 since" in refused(node, "c", 6, "a")
    node.grant("d", 7, "a")
    assert node.streams() == {"d": "a"}


def test_the_newest_generation_outlasts_claims(node: Node) -> None:
    assert node.claims.newest_generation == 0
    node.grant("c", 7, "a")
    node.grant("d", 9, "b")
    node.release("d")
    assert node.claims.newest_generation == 9


def test_only_who_knows_the_newest_generation_releases(node: Node) -> None:
    node.grant("c", 7, "a")
    with pytest.raises(ControlError, match="generation 6 is stale: the newest is 7"):
        node.release("c", 6)
    with pytest.raises(ControlError, match="there is no claim d"):
        node.release("d")
    assert node.streams() == {"c": "a"}
    node.release("c", 7)
    assert node.streams() == {}


def test_the_end_of_a_lease_is_reported_once(node: Node) -> None:
    node.grant("c", 7, "a")
    node.grant("d", 7, "b", lease_seconds=60.0)
    node.now += 5.9
    assert node.claims.newly_over() == []
    node.now += 0.1
    assert [claim.grant.claim_id for claim in node.claims.newly_over()] == ["c"]
    assert node.claims.newly_over() == []
    assert node.claims.after_leases().keys() == {"d"}
    node.claims.renew(grant_of("c", 7, "a"))
    assert node.claims.after_leases().keys() == {"c", "d"}
    node.now += 6
    assert [claim.grant.claim_id for claim in node.claims.newly_over()] == ["c"]


def test_a_daemon_that_stood_still_does_not_count_that_time(node: Node) -> None:
    node.grant("over", 7, "a", lease_seconds=1.0)
    node.now += 2
    node.claims.leave_out_standstill()
    for name, generation in (("c", 8), ("d", 9)):
        node.grant(name, generation, name)
    for _ in range(3):
        node.now += LOOK_SECONDS
        node.claims.leave_out_standstill()
    assert left(node) == {"over": 0, "c": 3, "d": 3}
    node.now += 60
    node.claims.renew(grant_of("d", 9, "d"))  # it has waited until now
    node.claims.leave_out_standstill()
    assert left(node) == {"over": 0, "c": 3 - LOOK_SECONDS, "d": 6}
    for _ in range(3):
        node.now += LOOK_SECONDS
        node.claims.leave_out_standstill()
    assert left(node) == {"over": 0, "c": 0, "d": 3}  # no one has renewed it though the daemon works


def left(node: Node) -> dict[str, float]:
    return {claim_id: node.claims.lease_seconds_left(claim) for claim_id, claim in node.claims.held.items()}


def test_the_number_of_claims_is_limited(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.service.claims.MAX_CLAIMS", 20)
    for number in range(20):
        grant = Grant(f"c{number}", 1, {f"s{number}": {}}, 6.0)
        node.claims.hold(node.claims.after_grant(grant))
    with pytest.raises(ControlError, match="holds 20 claims already") as caught:
        node.grant("one-more", 1, "z")
    assert caught.value.code == Refusal.TOO_MANY
    node.grant("c0", 2, "z")

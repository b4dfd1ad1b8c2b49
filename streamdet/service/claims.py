"""The claims of a cluster on this daemon: which streams it watches by which grant, and until when.

A claim is a group of streams that a cluster has granted to this node. What acts for the cluster renews it; each
grant has a generation, and a lower one than was seen before comes from someone who has lost the streams since. The
daemon knows nothing else of the cluster: a lease is a time on its own clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streamdet.errors import ControlError, Refusal
from streamdet.types import Owner

MAX_CLAIMS = 1000
LOOK_SECONDS = 1.0
"""The daemon looks after its leases as often as this; where it comes later, it has stood still."""

# The newest generation of a stream is remembered, also of one that is gone, unless this many others came after it.
_MAX_REMEMBERED_STREAMS = 20_000


@dataclass(frozen=True, slots=True)
class Grant:
    """What a cluster grants to a node.

    Attributes:
        claim_id: names the claim.
        generation: grows with each grant of any of its streams, to whichever node; from 1.
        streams: the keys of `[[streams]]`, by name, with values as in the file.
        lease_seconds: how long it holds unless it is renewed.
    """

    claim_id: str
    generation: int
    streams: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lease_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A grant that this daemon follows.

    Attributes:
        grant: as it was sent; of its streams, those that no newer grant has taken over.
        ends_monotonic_seconds: when its lease ends.
        is_whole: whether it has all streams that it was granted.
    """

    grant: Grant
    ends_monotonic_seconds: float
    is_whole: bool = True


Held = Mapping[str, Claim]
"""Claims by their id."""


class Claims:
    """The claims that are held, and the newest generation of each stream; only the main thread uses it.

    Args:
        clock: monotonic seconds.

    Attributes:
        held: what is in force.
        newest_generation: the highest that was ever followed; 0 before the first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.held: dict[str, Claim] = {}
        self.newest_generation = 0
        self._clock = clock
        self._generations: dict[str, int] = {}
        self._reported: set[str] = set()
        self._claim_ids: dict[str, str] = {}
        self._looked_at = clock()

    def after_grant(self, grant: Grant) -> dict[str, Claim]:
        """All claims as a grant makes them; the streams that it takes over leave their earlier claims.

        Raises:
            ControlError: the grant is older than one that this daemon has seen, or there are too many claims.
        """
        self._check_is_newest(grant)
        claims = {}
        for claim_id, claim in self.held.items():
            if claim_id == grant.claim_id:
                continue
            left = {name: keys for name, keys in claim.grant.streams.items() if name not in grant.streams}
            if len(left) < len(claim.grant.streams):
                left_of_it = replace(claim.grant, streams=left)
                claim = replace(claim, grant=left_of_it, is_whole=False)  # noqa: PLW2901 - its next form
            if left:
                claims[claim_id] = claim
        return {**claims, grant.claim_id: Claim(grant, self._clock() + grant.lease_seconds)}

    def is_renewal(self, grant: Grant) -> bool:
        """Whether a grant is in force already, so that only its lease is new."""
        claim = self.held.get(grant.claim_id)
        return claim is not None and (claim.grant.generation, claim.grant.streams) == (grant.generation, grant.streams)

    def renew(self, grant: Grant) -> None:
        """Lets the lease of a claim begin again, for a grant in force; costs the same for any number of claims."""
        self.held[grant.claim_id] = Claim(grant, self._clock() + grant.lease_seconds)
        self._reported.discard(grant.claim_id)

    def renew_known(self, grants: Iterable[Grant]) -> list[str]:
        """Lets the leases of claims begin again whose grants are known by id and generation; streams need not be given.

        Returns:
            The ids of those that were renewed. A grant that is not in force, or from which a newer one has taken
            streams, is not among them: its sender has to send all of it, and learns whether it is stale.
        """
        renewed = []
        for grant in grants:
            claim = self.held.get(grant.claim_id)
            if claim is not None and claim.is_whole and claim.grant.generation == grant.generation:
                self.renew(replace(claim.grant, lease_seconds=grant.lease_seconds))
                renewed.append(grant.claim_id)
        return renewed

    def leave_out_standstill(self) -> None:
        """Makes leases longer by the time in which the daemon stood still, or was busy: renewals waited meanwhile.

        To be called every `LOOK_SECONDS`. No lease becomes longer than a new one.
        """
        before, self._looked_at = self._looked_at, self._clock()
        stood_still = self._looked_at - before - LOOK_SECONDS
        if stood_still <= 0:
            return
        for claim_id, claim in self.held.items():
            if claim.ends_monotonic_seconds > before:
                longest = self._looked_at + claim.grant.lease_seconds
                ends = min(claim.ends_monotonic_seconds + stood_still, longest)
                self.held[claim_id] = replace(claim, ends_monotonic_seconds=ends)

    def _check_is_newest(self, grant: Grant) -> None:
        stale = f"claim {grant.claim_id}: generation {grant.generation} is stale"
        for name in grant.streams:
            newest, owner = self._generations.get(name, 0), self.claim_of(name)
            is_taken = owner is not None and owner.grant.claim_id != grant.claim_id
            if grant.generation < newest or (is_taken and grant.generation == newest):
                raise ControlError(Refusal.STALE, f"{stale}: {name} was granted with generation {newest} since")
        before = self.held.get(grant.claim_id)
        if before is None:
            if len(self.held) >= MAX_CLAIMS:
                raise ControlError(Refusal.TOO_MANY, f"this daemon holds {MAX_CLAIMS} claims already")
        elif grant.generation < before.grant.generation:
            raise ControlError(Refusal.STALE, f"{stale}: the newest is {before.grant.generation}")
        elif grant.generation == before.grant.generation and grant.streams != before.grant.streams:
            raise ControlError(
                Refusal.STALE, f"{stale}: it was given for other streams; a new grant needs a higher one"
            )

    def after_release(self, claim_id: str, generation: int | None) -> dict[str, Claim]:
        """All claims without one.

        Args:
            claim_id: of the claim.
            generation: the newest that its sender knows; None for any.

        Raises:
            ControlError: there is no such claim, or it was granted again since.
        """
        claim = self.held.get(claim_id)
        if claim is None:
            raise ControlError(Refusal.NOT_FOUND, f"there is no claim {claim_id}")
        newest = claim.grant.generation
        if generation is not None and generation < newest:
            problem = f"claim {claim_id}: generation {generation} is stale: the newest is {newest}"
            raise ControlError(Refusal.STALE, problem)
        return {other: held for other, held in self.held.items() if other != claim_id}

    def after_leases(self) -> dict[str, Claim]:
        """The claims whose leases have not ended."""
        return {claim_id: claim for claim_id, claim in self.held.items() if not self.is_over(claim)}

    def hold(self, claims: Held) -> None:
        """Puts claims in force."""
        self.held = dict(claims)
        self._claim_ids = {name: claim_id for claim_id, claim in claims.items() for name in claim.grant.streams}
        self._reported &= self.held.keys()
        for claim in claims.values():
            if not self.is_over(claim):
                self._reported.discard(claim.grant.claim_id)
            for name in claim.grant.streams:
                generation = max(claim.grant.generation, self._generations.pop(name, 0))
                self._generations[name] = generation
                self.newest_generation = max(self.newest_generation, generation)
        while len(self._generations) > _MAX_REMEMBERED_STREAMS:
            del self._generations[next(iter(self._generations))]

    def newly_over(self) -> list[Claim]:
        """The claims whose leases have ended since the last call."""
        over = [claim for claim in self.held.values() if self.is_over(claim)]
        new = [claim for claim in over if claim.grant.claim_id not in self._reported]
        self._reported.update(claim.grant.claim_id for claim in new)
        return new

    def is_over(self, claim: Claim) -> bool:
        """Whether its lease has ended."""
        return self.lease_seconds_left(claim) <= 0

    def lease_seconds_left(self, claim: Claim) -> float:
        """How long its lease still holds; 0 when it has ended."""
        return max(claim.ends_monotonic_seconds - self._clock(), 0.0)

    def claim_of(self, stream: str) -> Claim | None:
        """The claim that a stream belongs to."""
        return self.held.get(self._claim_ids.get(stream, ""))


def owners_of(claims: Iterable[Claim], node: str) -> dict[str, Owner]:
    """What stands in the events of claimed streams, by name."""
    return {name: Owner(node, claim.grant.generation) for claim in claims for name in claim.grant.streams}

"""What acts for the cluster on a node: grants streams to the daemon, renews them, and reports what runs there."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from streamdet.errors import ConfigError, ControlError, Refusal, StreamdetError
from streamdet.monitoring.log import FailureLog

LEASE_SECONDS = 6.0
RENEW_SECONDS = 2.0
ANSWER_SECONDS = 1.0
"""The head does not wait longer for a turn of an agent, nor for the daemon to say how it is."""

SLOW_SECONDS = 60.0
"""A daemon that has finished no turn for so long is lost, even if it says that it detects."""

# Codes of requests that no daemon has answered; all others are about one grant.
_NO_DAEMON = {Refusal.UNAVAILABLE, Refusal.BAD_ANSWER, Refusal.AMBIGUOUS, Refusal.NOT_ALLOWED}

_ANY_HOST = re.compile(r"^(?P<scheme>[a-z]+://)(?:0\.0\.0\.0|\[::\]|\*)(?P<rest>[:/].*)$")

Json = dict[str, Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Granted:
    """A group of streams as it is granted to one node.

    Attributes:
        claim_id: names the claim.
        generation: of the grant.
        streams: as the control API takes them.
    """

    claim_id: str
    generation: int
    streams: tuple[Json, ...]

    def to_body(self) -> Json:
        """The body of the request."""
        return {"streams": list(self.streams), "generation": self.generation, "lease_seconds": LEASE_SECONDS}

    def to_renewal(self) -> Json:
        """What renews it, where the daemon has followed all of it."""
        return {"id": self.claim_id, "generation": self.generation, "lease_seconds": LEASE_SECONDS}


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of itself.

    Attributes:
        node: its name, as in the daemon's `[node]`; empty where the daemon does not answer.
        version: of its streamdet.
        claims: id, generation and names of the streams of each claim, as the control API describes them.
        newest_generation: that the daemon has followed since its start.
        states: of the claimed streams, such as "up", by name.
        refused: why a grant is not followed, by the id of its claim.
        stale: ids of the claims of which the daemon has seen a newer grant.
        addresses: of events, replay and metrics.
        problem: why the daemon does not answer; empty where it does.
        slow_seconds: how old all of this is, because the daemon is still busy with a request; 0 where it is new.
    """

    node: str = ""
    version: str = ""
    claims: tuple[Json, ...] = ()
    newest_generation: int = 0
    states: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()
    addresses: Json = field(default_factory=dict)
    problem: str = ""
    slow_seconds: float = 0.0


class Agent:
    """Holds the grants of one node; for one thread.

    Args:
        ask: sends a request to the daemon: method, path and body; raises as `streamdet.client.control.ask`.
        host: by which others reach the node; stands in its addresses where the daemon listens at all of them.
    """

    def __init__(self, ask: Callable[[str, str, Mapping[str, Any] | None], Json], host: str = "") -> None:
        self._send = ask
        self._host = f"[{host}]" if ":" in host else host
        self._grants: tuple[Granted, ...] | None = None
        self._followed: dict[str, Granted] = {}
        self._failures = FailureLog(_log, "{} turns failed")
        self._refusals: dict[str, FailureLog] = {}
        self._stale: set[str] = set()

    def hold(self, grants: Sequence[Granted]) -> None:
        """Makes these all grants of the node, from the next turn on."""
        self._grants = tuple(grants)

    def turn(self) -> Report:
        """Renews every grant, releases all other claims, and reports.

        Until the first call of `hold` nothing is released: what the node watches may be right.
        """
        self._stale = set()
        try:
            about = self._ask("GET", "/v1/about")
            held = self._renew()
            renewed = {claim_id: self._followed[claim_id] for claim_id in held.get("renewed", ())}
            missing = [grant for grant in self._grants or () if renewed.get(grant.claim_id) != grant]
            problems = {grant.claim_id: self._grant(grant, is_renewed=grant.claim_id in renewed) for grant in missing}
            for grant in self._grants or ():
                self._log_refusal(grant, problems.get(grant.claim_id))
            if missing:
                held = self._ask("GET", "/v1/claims")
            if self._grants is not None:
                held = self._release_others(held)
        except StreamdetError as error:
            self._failures.failed(f"grants cannot be renewed: {error}")
            return Report(problem=str(error))
        self._failures.works("the daemon answers again")
        states = {name: state for claim in held["claims"] for name, state in claim["states"].items()}
        refused = {claim_id: problem for claim_id, problem in problems.items() if problem is not None}
        return Report(
            held["node"], about["version"], tuple(held["claims"]), held["newest_generation"], states, refused,
            frozenset(self._stale), self._from_outside(about["addresses"] or {}),
        )  # fmt: skip

    def _from_outside(self, addresses: Json) -> Json:
        """The addresses with the node's own host in place of "any"."""
        if not self._host:
            return addresses
        return {
            name: _ANY_HOST.sub(rf"\g<scheme>{self._host}\g<rest>", text) if isinstance(text, str) else text
            for name, text in addresses.items()
        }

    def _renew(self) -> Json:
        """Renews what was followed of the claims that are granted still; all claims, and which of them were renewed."""
        granted = {grant.claim_id for grant in self._grants or ()}
        self._followed = {claim_id: grant for claim_id, grant in self._followed.items() if claim_id in granted}
        if not self._followed:
            return self._ask("GET", "/v1/claims")
        return self._ask("PATCH", "/v1/claims", {"claims": [grant.to_renewal() for grant in self._followed.values()]})

    def _grant(self, grant: Granted, *, is_renewed: bool) -> str | None:
        """Grants all of a claim; the reason if that is refused.

        Args:
            grant: of the claim.
            is_renewed: whether what was followed before of the claim holds.
        """
        path = f"/v1/claims/{quote(grant.claim_id, safe='')}"
        try:
            self._ask("PUT", path, grant.to_body())
        except ConfigError as error:
            before = self._followed.get(grant.claim_id)
            if before is not None and before != grant and not is_renewed:
                # Its streams must not be lost because one that was added is wrong.
                self._grant(before, is_renewed=False)
            return "; ".join(error.problems)
        except ControlError as error:
            if error.code in _NO_DAEMON:
                raise
            if error.code == Refusal.STALE:
                self._stale.add(grant.claim_id)
                self._followed.pop(grant.claim_id, None)
            return str(error)
        self._followed[grant.claim_id] = grant
        return None

    def _log_refusal(self, grant: Granted, problem: str | None) -> None:
        which = f"claim {grant.claim_id} generation {grant.generation}"
        if problem is not None:
            names = ", ".join(str(stream["name"]) for stream in grant.streams)
            refusals = self._refusals.setdefault(grant.claim_id, FailureLog(_log, "{} grants refused"))
            refusals.failed(f"{which} for {names} is refused by the daemon: {problem}")
        elif grant.claim_id in self._refusals:
            self._refusals.pop(grant.claim_id).works(f"{which} is followed")

    def _release_others(self, held: Json) -> Json:
        """Releases the claims that are not granted; what is held then."""
        wanted = {grant.claim_id for grant in self._grants or ()}
        self._refusals = {claim_id: refusals for claim_id, refusals in self._refusals.items() if claim_id in wanted}
        others = [claim for claim in held["claims"] if claim["id"] not in wanted]
        for claim in others:
            self._ask("DELETE", f"/v1/claims/{quote(claim['id'], safe='')}?generation={claim['generation']}")
        return self._ask("GET", "/v1/claims") if others else held

    def _ask(self, method: str, path: str, body: Json | None = None) -> Json:
        return self._send(method, path, body)


class Reporter:
    """Has an agent take its turns in a thread of its own, so that a daemon that is slow holds up no report.

    A request may take a daemon longer than a node may be silent: a camera that hangs is slow to stop. While a turn goes
    on, the report before it holds, if the daemon says that it detects.

    Args:
        agent: takes the turns.
        health: asks the daemon how it is, as `GET /v1/health`, which it answers beside everything else.
        clock: monotonic seconds.
    """

    def __init__(
        self, agent: Agent, health: Callable[[], Json], clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._agent, self._health, self._clock = agent, health, clock
        self._thread = ThreadPoolExecutor(1, "agent")
        self._turn: Future[Report] | None = None
        self._newest: Report | None = None
        self._newest_at = clock()

    def report(self, grants: Sequence[Granted] | None) -> Report:
        """What the newest turn has found; begins the next one where none goes on.

        Args:
            grants: all grants of the node; None leaves them as they are. Those that come during a turn are for no turn:
                the head repeats them.
        """
        found = self._finished()
        if self._turn is None:
            if grants is not None:
                self._agent.hold(grants)
            self._turn = self._thread.submit(self._agent.turn)
        wait([self._turn], ANSWER_SECONDS)
        return self._finished() or found or self._meanwhile()

    def close(self) -> None:
        """Waits for the turn that goes on, and ends the thread."""
        self._thread.shutdown()

    def _finished(self) -> Report | None:
        """The report of a turn that has ended since the last call."""
        if self._turn is None or not self._turn.done():
            return None
        turn, self._turn = self._turn, None
        report = turn.result()
        if not report.problem:
            self._newest, self._newest_at = report, self._clock()
        return report

    def _meanwhile(self) -> Report:
        """What can be said while a turn goes on."""
        slow_seconds = self._clock() - self._newest_at
        slow = f"the daemon has not finished a request for {slow_seconds:.0f} s"
        if self._newest is None or slow_seconds > SLOW_SECONDS:
            return Report(problem=slow)
        try:
            health = self._health()
        except StreamdetError as error:
            return Report(problem=str(error))
        if not (health["healthy"] and health["ready"]):
            return Report(problem=f"{slow}, and does not detect: {health['problem'] or 'it starts, or ends'}")
        return replace(self._newest, slow_seconds=round(slow_seconds, 3))

"""Two replies to one request: which turns are drawn for that, and the second reply until it is offered.

The first reply is served as ever. The second is made beside it and waited for only when the first is whole;
one that fails, is late or says the same is dropped and counted, and its client never learns of it.
"""

import asyncio
import secrets
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal, NamedTuple

from prometheus_client import Counter

from feedback.events import Draw, Exposure
from feedback.text import plain
from ops.traffic import Assignment, TrafficTable, bucket, other_arm
from serving.asked import Asked, once_more
from serving.config import Gateway
from serving.errors import ServingError
from serving.routing import Router
from serving.turns import Turn
from serving.upstream import Upstream

COMPARISONS = Counter(
    "ratchet_serving_comparisons_total",
    "Turns drawn for a comparison, by what became of it: offered, busy (too much in flight), failed, late, "
    "alike (both replies say the same, or one nothing), abandoned (the first reply did not come to its end)",
    ["outcome"],
)

MAX_AT_ONCE = 16
"""Second replies under way in one gateway."""
BUSY_SHARE = 0.5
"""With more than this share of `max_in_flight` in flight there are no second replies."""


class Plan(NamedTuple):
    """Where the second reply is to come from."""

    asked: Asked
    assignment: Assignment
    draw: Draw


def drawn(asked: Asked, given: Assignment, response_id: str, rate: float) -> bool:
    """Whether this turn is to be compared: a share `rate` of those that can be, by hash of the response id.

    Those are text in answer to text, to somebody who can be shown two replies, consented and did not ask for
    an adapter by name.
    """
    possible = asked.compare and asked.learn and given.arm != "pinned" and "tools" not in asked.engine_fields
    return possible and bucket("comparison", response_id) < rate


def plan(asked: Asked, given: Assignment, table: TrafficTable, response_id: str) -> Plan | None:
    """The other arm's reply while there is a canary, else the same adapter's with another seed.

    None when there is no other: at temperature 0 a seed changes nothing.
    """
    if (other := other_arm(table, given)) is not None:
        return Plan(once_more(asked, None), other, Draw.OTHER_ARM)
    if asked.sampling.temperature == 0.0:
        return None
    return Plan(once_more(asked, _seed(response_id)), given, Draw.RESAMPLED)


def side_of(response_id: str) -> Literal["left", "right"]:
    """The side of the reply that was asked for: a fair coin, by hash of its id."""
    return "left" if bucket("side", response_id) < 0.5 else "right"


class Comparisons:
    """Begins second replies, not too many at once."""

    def __init__(self, config: Gateway, router: Router, upstream: Upstream) -> None:
        self._config = config
        self._router = router
        self._upstream = upstream
        self._under_way = 0

    def begin(self, turn: Turn, in_flight: int) -> "Second | None":
        """The second reply to this request, under way; None for most turns."""
        asked, given, rate = turn.asked, turn.assignment, self._config.comparison_rate
        if not drawn(asked, given, turn.response_id, rate):
            return None
        planned = plan(asked, given, self._router.current().table, turn.response_id)
        if planned is None:
            return None
        if in_flight > BUSY_SHARE * self._config.max_in_flight or self._under_way >= MAX_AT_ONCE:
            COMPARISONS.labels("busy").inc()
            return None
        self._under_way += 1
        second = Second(turn, planned, rate, self._upstream)
        second.task.add_done_callback(self._over)
        return second

    def _over(self, _: "asyncio.Task[bool]") -> None:
        self._under_way -= 1


class Second:
    """One second reply."""

    def __init__(self, first: Turn, planned: Plan, rate: float, upstream: Upstream) -> None:
        self._first = first
        self._turn = first.beside(planned.asked, planned.assignment, f"chatcmpl-{secrets.token_hex(16)}")
        self._draw = planned.draw
        self._rate = rate
        self._upstream = upstream
        self._settled = False
        self.task = asyncio.create_task(self._make())

    async def in_time(self, wait_s: float) -> Turn | None:
        """The second reply's turn, exposed beside the first's; None when it came to nothing or is late."""
        with self._first.waiting():
            await asyncio.wait({self.task}, timeout=wait_s)
        outcome = self._outcome()
        self._settle(outcome)
        if outcome != "offered":
            return None
        self._expose()
        return self._turn

    def abandon(self) -> None:
        """The first reply is over, however it ended; unless the second was settled, nobody will see it."""
        if not self._settled:
            self._settle("abandoned")

    async def _make(self) -> bool:
        """Whether the engine gave a whole reply."""
        turn = self._turn
        try:
            with turn.engine_working():
                data = await self._upstream.complete(turn.assignment.adapter, *turn.for_engine())
            turn.transcript.add(data)
        except ServingError:
            return False
        return bool(turn.transcript.finish_reason)

    def _outcome(self) -> str:
        if not self.task.done():
            return "late"
        if not self.task.result():
            return "failed"
        one, other = plain(self._first.transcript.text), plain(self._turn.transcript.text)
        return "offered" if one and other and one != other else "alike"

    def _settle(self, outcome: str) -> None:
        self._settled = True
        self.task.cancel()
        COMPARISONS.labels(outcome).inc()

    def _expose(self) -> None:
        now = datetime.now(UTC)
        first, second = self._first, self._turn
        side = side_of(first.response_id)
        first.exposure = Exposure(
            partner=second.response_id,
            side=side,
            draw=Draw.ASSIGNED,
            propensity=self._rate,
            shown_at=now,
        )
        second.exposure = Exposure(
            partner=first.response_id,
            side="right" if side == "left" else "left",
            draw=self._draw,
            propensity=self._rate,
            shown_at=now,
        )


def _seed(response_id: str) -> int:
    """Below 2^31, as every engine takes it."""
    return int.from_bytes(blake2b(response_id.encode(), digest_size=4, person=b"seed").digest(), "big") >> 1

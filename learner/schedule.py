"""When the next turn starts: enough new weight, or the clock. Pure."""

from datetime import datetime, timedelta

import msgspec

from learner.config import Learner


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """What the next turn waits for."""

    gathered: float
    """Weight of grades and pairs since the last snapshot."""
    needed: float
    clock_at: datetime | None
    """When the clock starts a turn if anything at all is new; None without one."""

    def by(self, now: datetime) -> bool:
        """Whether it may start."""
        struck = self.clock_at is not None and self.gathered > 0.0 and now >= self.clock_at
        return self.gathered >= self.needed or struck


def due(learner: Learner, gathered: float, last: datetime | None) -> Due:
    """Args: last, when the last turn began, or whoever waits for the first one; None if nobody waits yet."""
    clock = last + timedelta(seconds=learner.every_s) if learner.every_s and last else None
    return Due(gathered=gathered, needed=learner.min_new_weight, clock_at=clock)

"""The simulated help desk's truth as a gold scorer for `[eval] gold`: its users' stated utility."""

from collections.abc import Sequence

from feedback.events import Message
from feedback.text import content_text
from ops.errors import UnknownQuestion
from ops.simulation.helpdesk import traits, utility


def helpdesk(prompt: Sequence[Message], reply: str) -> float | None:
    """Utility in [0, 1] of a reply to the last question; None for what is no question of this world."""
    try:
        return utility(traits(content_text(prompt[-1]), reply))
    except UnknownQuestion:
        return None

"""One request while it is answered, and the turn that it leaves in the log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter, Histogram

from feedback.events import Exposure, IdentitySource, TurnRecorded, TurnStatus
from ops.traffic import Assignment
from serving.asked import Asked, conversation_key, for_engine
from serving.auth import Principal
from serving.transcript import Transcript

FIRST_TOKEN_SECONDS = Histogram(
    "ratchet_serving_first_token_seconds",
    "Time to the first token of a stream, seconds",
    ["adapter"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
TURNS = Counter(
    "ratchet_serving_turns_total",
    "Turns served, by adapter, arm, how the reply finished and how the turn ended",
    ["adapter", "arm", "finish_reason", "status"],
)

_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


class Turn:
    """One request while it is answered."""

    def __init__(
        self,
        asked: Asked,
        principal: Principal,
        conversation: str,
        identity: IdentitySource,
        user: str,
        assignment: Assignment,
        response_id: str,
        started: float,
    ) -> None:
        self.asked = asked
        self.assignment = assignment
        self.response_id = response_id
        self.transcript = Transcript()
        self.first_token_s: float | None = None
        self.exposure: Exposure | None = None
        self._principal = principal
        self._conversation = conversation
        self._identity = identity
        self._user = user
        self._started = started
        self._started_at = datetime.now(UTC)
        self._waited_s = 0.0
        self._duration_s = 0.0

    @property
    def owner(self) -> str:
        """Whose key asked."""
        return self._principal.owner

    @property
    def extras(self) -> dict[str, Any]:
        """What the client learns beyond OpenAI's protocol."""
        return {
            "response_id": self.response_id,
            "adapter": self.assignment.adapter,
            "arm": self.assignment.arm,
            "conversation_id": self._conversation,
        }

    def as_alternative(self) -> dict[str, Any]:
        """The same of a reply that is shown beside the one asked for."""
        side = self.exposure.side if self.exposure else ""
        return {"response_id": self.response_id, "content": self.transcript.text, "side": side}

    def for_engine(self) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the request to an engine, which makes its response id of the request id."""
        body = for_engine(self.asked, self.assignment.adapter, self._principal.cache_salt)
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": self.response_id.removeprefix("chatcmpl-"),
        }
        return body, headers

    def beside(self, asked: Asked, assignment: Assignment, response_id: str) -> "Turn":
        """Another turn of the same request: `asked` and `assignment` are what is different about it."""
        turn = Turn(
            asked,
            self._principal,
            self._conversation,
            self._identity,
            self._user,
            assignment,
            response_id,
            self._started,
        )
        turn._started_at = self._started_at
        return turn

    @contextmanager
    def engine_working(self) -> Iterator[None]:
        """What happens inside is the engine's time, and ends with the reply."""
        try:
            with self.waiting():
                yield
        finally:
            self._duration_s = time.perf_counter() - self._started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is not the gateway's own time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited_s += time.perf_counter() - began

    def added_s(self) -> float:
        return time.perf_counter() - self._started - self._waited_s

    def mark_first_token(self) -> None:
        self.first_token_s = time.perf_counter() - self._started
        FIRST_TOKEN_SECONDS.labels(self.assignment.adapter).observe(self.first_token_s)

    def recorded(self, status: TurnStatus) -> TurnRecorded:
        """The turn as it goes into the log; without a word of it when the client withheld consent."""
        said, keeps = self.transcript, self.asked.learn
        reason = said.finish_reason
        label = reason if reason in _FINISH_REASONS else "other" if reason else "none"
        TURNS.labels(self.assignment.adapter, self.assignment.arm, label, status.value).inc()
        return TurnRecorded(
            response_id=self.response_id,
            conversation_id=conversation_key(self._principal.owner, self._conversation),
            identity=self._identity,
            principal=self._principal.owner,
            user=self._user,
            adapter=self.assignment.adapter,
            arm=self.assignment.arm,
            propensity=self.assignment.propensity,
            messages=self.asked.messages if keeps else (),
            reply=said.message() if keeps else {"role": "assistant", "content": ""},
            prompt_token_ids=said.prompt_token_ids if keeps else (),
            token_ids=tuple(said.token_ids) if keeps else (),
            logprobs=tuple(said.logprobs) if keeps else (),
            sampling=self.asked.sampling,
            finish_reason=reason,
            status=status,
            started_at=self._started_at,
            first_token_s=self.first_token_s,
            duration_s=self._duration_s,
            learn=keeps,
            exposure=self.exposure,
        )

"""From a reply to the log: the tee of a stream, and the durable write.

The tee hands on to the client what it may see and holds back the last of it until the turn is durable. This
is one of the three places where every exception is caught: a chat survives its log.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import msgspec
from prometheus_client import Counter, Histogram

from feedback import codec
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic, topic_of
from feedback.events import Event, SignalReceived, TurnRecorded, signal_event, turn_event
from feedback.keyring import KeyRing
from feedback.sealing import DataKey
from ops.telemetry import logger
from serving.errors import EngineBroke, NotRecorded
from serving.sse import Splitter
from serving.transcript import Transcript, visible

UNRECORDED = Counter(
    "ratchet_serving_turns_unrecorded_total", "Turns served although the log did not take them"
)
DURABLE_SECONDS = Histogram(
    "ratchet_serving_durable_seconds",
    "Time until a turn or signal was durable, seconds",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)

RETRY_S = 1.0
"""How often a gateway that refuses for want of a log lets one reply try it again."""

_UNRECORDABLE = "the event log does not take entries now; try again later"
_KEEP_ALIVE = b":\n\n"
_DONE = b"[DONE]"
_encoder = msgspec.json.Encoder()


class Tee:
    """One engine stream, to the client and into a transcript at the same time."""

    def __init__(self, transcript: Transcript, response_id: str, wants_logprobs: bool) -> None:
        self.transcript = transcript
        self._failure: EngineBroke | None = None
        self._response_id = response_id
        self._wants_logprobs = wants_logprobs
        self._splitter = Splitter()
        self._held: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """The engine said how its reply ended; what it said since is held back."""
        return bool(self.transcript.finish_reason)

    def feed(self, chunk: bytes) -> bytes:
        """What the client may have now."""
        if self._failure is not None:
            return b""
        shown: list[bytes] = []
        try:
            for data in self._splitter.feed(chunk):
                shown.append(self._on_event(data))
        except EngineBroke as e:
            self.broke(e)
        return b"".join(shown)

    def broke(self, failure: EngineBroke) -> None:
        """Nothing that comes after this can be believed."""
        self._failure = failure

    def check(self) -> None:
        """At the end of the stream. Raises: EngineBroke when the reply is not whole."""
        if not self.finished:
            raise self._failure or EngineBroke("the engine's stream ended before its reply did")

    def tail(self, extras: dict[str, Any]) -> bytes:
        """What was held back, `extras` on its last chunk, and the end mark."""
        self._held[-1]["ratchet"] = extras
        return b"".join([*map(_event, self._held), b"data: [DONE]\n\n"])

    def _on_event(self, data: bytes) -> bytes:
        if not data:
            return _KEEP_ALIVE
        if data == _DONE:
            return b""
        self.transcript.add(data)
        shown = visible(data, self._response_id, self._wants_logprobs)
        if self.finished:
            self._held.append(shown)
            return b""
        return _event(shown)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encoder.encode(chunk)


class Recorder:
    """Makes events durable, and knows whether that works."""

    def __init__(
        self, log: EmbeddedLog, ring: KeyRing, on_failure: Literal["serve", "refuse"], timeout_s: float
    ) -> None:
        self.failure = ""
        """What kind of failure ended the last write; empty while recording works."""
        self._failed_at = 0.0
        self._log = log
        self._ring = ring
        self._key_thread = ThreadPoolExecutor(1, "user-keys")
        self._on_failure = on_failure
        self._timeout_s = timeout_s

    def admit(self) -> None:
        """Refuse at once what would be refused in the end, except every RETRY_S. Raises: NotRecorded."""
        if self.failure and self._on_failure == "refuse" and time.monotonic() < self._failed_at + RETRY_S:
            raise NotRecorded(_UNRECORDABLE)

    async def turn(self, turn: TurnRecorded) -> None:
        """Durable when this returns, or unrecorded where the policy allows that. Raises: NotRecorded."""
        try:
            await self._append(turn_event(turn), turn.user)
        except NotRecorded:
            if self._on_failure == "refuse":
                raise
            UNRECORDED.inc()

    async def signal(self, signal: SignalReceived) -> None:
        """Durable when this returns. Raises: NotRecorded."""
        await self._append(signal_event(signal), signal.user)

    async def find(self, topic: Topic, event_id: str) -> Event | None:
        """None when there is none or its user was erased. Raises: NotRecorded when the log cannot be read."""
        return await self._read(self._log.find, topic, event_id)

    async def first_turn(self, conversation_id: str) -> Event | None:
        """Of a conversation. Raises: NotRecorded when the log cannot be read."""
        return await self._read(self._log.first_turn, conversation_id)

    async def _read(self, look_up: Callable[..., bytes | None], *args: str) -> Event | None:
        def opened() -> Event | None:
            raw = look_up(*args)
            return None if raw is None else self._ring.find(raw)

        try:
            return await asyncio.to_thread(opened)
        except Exception as e:  # a log that fails in whatever way is a 503, never a 500
            logger().error("log_unreadable", error=str(e), kind=type(e).__name__)
            raise NotRecorded("the event log cannot be read now; try again later") from e

    async def _append(self, event: Event, user: str) -> None:
        """What is personal in the event is sealed under `user`'s key."""
        patience_s = self._timeout_s if not self.failure else self._timeout_s / 10
        try:
            with DURABLE_SECONDS.time():
                async with asyncio.timeout(patience_s):
                    key = self._ring.of(user) or await self._made_key(user)
                    raw = codec.encode(event, key)
                    await asyncio.wrap_future(self._log.append(topic_of(event), event.key, event.id, raw))
        except Exception as e:  # a chat survives its log, whatever ails it
            raise self._failed(e) from e
        if self.failure:
            logger().info("recording_on")
            self.failure = ""

    async def _made_key(self, user: str) -> DataKey:
        """From the state database, in a thread of its own: while that is locked, nothing else must wait."""
        return await asyncio.get_running_loop().run_in_executor(self._key_thread, self._ring.obtain, user)

    def _failed(self, e: Exception) -> NotRecorded:
        if not self.failure:
            logger().error("recording_off", error=str(e), kind=type(e).__name__, policy=self._on_failure)
        self.failure = type(e).__name__
        self._failed_at = time.monotonic()
        return NotRecorded(_UNRECORDABLE)

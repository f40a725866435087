"""Writes `recorded/`: the bytes of every type of event, as the release that brought it wrote them.

`python -m tests.feedback.recorded` adds what is missing and never changes a file that is there.
"""

from datetime import UTC, datetime
from pathlib import Path

from feedback import codec
from feedback.events import (
    AdapterTransitioned,
    Event,
    IdentitySource,
    Sampling,
    SignalKind,
    SignalReceived,
    TurnRecorded,
    TurnStatus,
    adapter_event,
    signal_event,
    turn_event,
)

FOLDER = Path(__file__).parent / "recorded"

TURN_V1 = turn_event(
    TurnRecorded(
        response_id="chatcmpl-6f0d2c8e5b7a4913",
        conversation_id="order-4711",
        identity=IdentitySource.EXPLICIT,
        principal="harbour-shop",
        user="u-5d41402abc4b2a76b9719d911017c592",
        adapter="lora-3f2a9c10",
        arm="canary",
        propensity=0.05,
        messages=(
            {"role": "system", "content": "You answer for the harbour shop."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Où est mon colis? 📦"}],
                "name": "Ada",
            },
        ),
        reply={"role": "assistant", "content": "It left on Monday;\nhere is the link."},
        prompt_token_ids=(1, 17, 4096, 31999),
        token_ids=(12, 13, 2),
        logprobs=(-0.125, -2.5, 0.0),
        sampling=Sampling(
            temperature=0.7,
            top_p=0.9,
            top_k=40,
            max_tokens=64,
            seed=7,
            stop=("\n\n",),
            frequency_penalty=0.1,
            presence_penalty=0.2,
            repetition_penalty=1.1,
        ),
        finish_reason="length",
        status=TurnStatus.ABORTED,
        started_at=datetime(2026, 11, 21, 9, 30, 0, 125_000, tzinfo=UTC),
        first_token_s=0.042,
        duration_s=1.75,
        learn=False,
    )
)
SIGNAL_V1 = signal_event(
    SignalReceived(
        signal_id="rating-1",
        response_id="chatcmpl-6f0d2c8e5b7a4913",
        conversation_id="order-4711",
        principal="harbour-shop",
        user="u-5d41402abc4b2a76b9719d911017c592",
        kind=SignalKind.RATING,
        value=0.75,
        text="Right, but brusque.",
        reasons=("tone", "brief"),
        other_response_id="chatcmpl-0000000000000001",
        dimensions={"helpful": 1.0, "honest": 0.5},
        received_at=datetime(2026, 11, 21, 9, 31, tzinfo=UTC),
    )
)
ADAPTER_V1 = adapter_event(
    AdapterTransitioned(
        adapter="lora-3f2a9c10",
        from_state="canary",
        to_state="stable",
        by="controller",
        reason="every gate passed",
        at=datetime(2026, 11, 21, 10, 0, tzinfo=UTC),
    )
)

EVENTS: dict[str, Event] = {
    "ratchet.turn.recorded.v1": TURN_V1,
    "ratchet.signal.received.v1": SIGNAL_V1,
    "ratchet.adapter.transitioned.v1": ADAPTER_V1,
}
"""What each recorded file means, whatever release reads it. Every field differs from its default."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, event in EVENTS.items():
        file = FOLDER / f"{name}.json"
        if not file.exists():
            file.write_bytes(codec.encode(event))


if __name__ == "__main__":
    main()

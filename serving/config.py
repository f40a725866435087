"""`[gateway]`: where the gateway listens, how long it waits, and what it does when it cannot record."""

from typing import Literal

import msgspec

from feedback.redaction import Personal


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway]`: the API that clients talk to."""

    host: str = "127.0.0.1"
    """Address to listen on; put TLS in front before anything else than the loopback interface."""
    port: int = 8000
    """TCP port; 0: any free one, printed at the start."""
    on_log_failure: Literal["serve", "refuse"] = "serve"
    """When a turn cannot be made durable: `serve` it unrecorded and say so in /healthz and the metrics, or
    `refuse` with 503. Feedback is always refused then."""
    unlearned_owners: list[str] = []
    """Owners of API keys whose turns are never learned from: no word of them gets into the log."""
    redact: list[Personal] = msgspec.field(default_factory=lambda: [Personal.CARD, Personal.IBAN])
    """What is taken out of words before they are recorded: `card`, `iban`, `email`, `phone`, `ip` numbers and
    addresses. Engines and clients see the words as they are."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest request body; a longer one gets 413."""
    max_text_chars: int = 20_000
    """Longest comment or edited reply, in characters."""
    max_in_flight: int = 1024
    """Chat requests served at the same time; one more gets 503 with Retry-After."""
    feedback_token_s: float = 7 * 86400.0
    """How long the feedback token of a reply is good."""
    allowed_origins: list[str] = []
    """Web origins, such as `https://app.example.com`, whose pages may give feedback from the browser."""
    connect_timeout_s: float = 1.0
    """How long a replica may take to accept a connection."""
    stall_timeout_s: float = 60.0
    """Longest silence of an engine in the middle of a stream."""
    reply_timeout_s: float = 600.0
    """Longest time for a whole reply."""
    log_timeout_s: float = 5.0
    """How long a turn or a signal may take to become durable before it counts as not recorded."""
    comparison_rate: float = 0.02
    """Share of turns that get two replies to compare, of those whose client can show them
    (`"ratchet": {"compare": true}`)."""
    comparison_wait_s: float = 2.0
    """How long the end of a reply waits for the second one, before it goes out alone."""
    poll_s: float = 0.3
    """How often traffic table, replica readiness and API keys are read anew."""
    drain_s: float = 20.0
    """On SIGTERM: how long running replies may go on before they are cut off."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.comparison_rate <= 1.0:
            raise ValueError(f"comparison_rate {self.comparison_rate} must be a share, 0 to 1")

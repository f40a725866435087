"""Everything the gateway can refuse, as one tree, and the one table that says how each is answered.

ServingError
├── BadRequest               400  a body or field that cannot be used; `param` names the field
│   └── EngineRefused        400  the engine would not take it (for example, too long a prompt)
├── Unauthenticated          401  no key, or one that is unknown or revoked
├── Forbidden                403  the key's role does not allow this
├── UnknownModel             404  a model name that is not served
├── UnknownReply             404  no such reply, or another key's: the same answer for both
├── UnknownConversation      404  no turn in it, or another key's: the same answer for both
├── Conflict                 409  an idempotency key used again for something else
├── TooLarge                 413  a body above the configured limit
├── WrongContentType         415  a body that does not say it is JSON
├── EngineBroke              502  the engine failed in the middle of its reply
│   └── EngineTooSlow        504  it was silent for too long; nobody is asked again
├── NoEngine                 503  no replica can answer now
├── Overloaded               503  as many requests in flight as the configuration allows
├── NotRecorded              503  the event log did not take what must be durable
├── KeysUnavailable          503  the database that holds the keys is out of reach
├── QueueUnavailable         503  the database that holds the review queue is out of reach
├── ShuttingDown             503  the gateway is going away and this reply took too long
└── StartError                    the gateway cannot start: said in one line, exit code 2
"""

from typing import NamedTuple

import msgspec


class ServingError(Exception):
    """`param` is the request field at fault; `code` is machine-readable and defaults to the table's."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class BadRequest(ServingError):
    pass


class EngineRefused(BadRequest):
    pass


class Unauthenticated(ServingError):
    pass


class Forbidden(ServingError):
    pass


class UnknownModel(ServingError):
    pass


class UnknownReply(ServingError):
    pass


class UnknownConversation(ServingError):
    pass


class Conflict(ServingError):
    pass


class TooLarge(ServingError):
    pass


class WrongContentType(ServingError):
    pass


class EngineBroke(ServingError):
    pass


class EngineTooSlow(EngineBroke):
    pass


class NoEngine(ServingError):
    pass


class Overloaded(ServingError):
    pass


class NotRecorded(ServingError):
    pass


class KeysUnavailable(ServingError):
    pass


class QueueUnavailable(ServingError):
    pass


class ShuttingDown(ServingError):
    pass


class StartError(ServingError):
    pass


class Answer(NamedTuple):
    """How one kind of error is told over HTTP, in OpenAI's words."""

    status: int
    type: str
    code: str | None
    retry_after_s: int | None = None


ANSWERS: dict[type[ServingError], Answer] = {
    BadRequest: Answer(400, "invalid_request_error", "invalid_value"),
    EngineRefused: Answer(400, "invalid_request_error", "engine_refused"),
    Unauthenticated: Answer(401, "authentication_error", "invalid_api_key"),
    Forbidden: Answer(403, "permission_error", "insufficient_role"),
    UnknownModel: Answer(404, "invalid_request_error", "model_not_found"),
    UnknownReply: Answer(404, "invalid_request_error", "reply_not_found"),
    UnknownConversation: Answer(404, "invalid_request_error", "conversation_not_found"),
    Conflict: Answer(409, "invalid_request_error", "idempotency_conflict"),
    TooLarge: Answer(413, "invalid_request_error", "body_too_large"),
    WrongContentType: Answer(415, "invalid_request_error", "wrong_content_type"),
    EngineBroke: Answer(502, "server_error", "engine_broke"),
    EngineTooSlow: Answer(504, "server_error", "engine_too_slow"),
    NoEngine: Answer(503, "server_error", "engine_unavailable", retry_after_s=2),
    Overloaded: Answer(503, "server_error", "overloaded", retry_after_s=1),
    NotRecorded: Answer(503, "server_error", "not_recorded", retry_after_s=5),
    KeysUnavailable: Answer(503, "server_error", "keys_unavailable", retry_after_s=5),
    QueueUnavailable: Answer(503, "server_error", "queue_unavailable", retry_after_s=5),
    ShuttingDown: Answer(503, "server_error", "shutting_down", retry_after_s=1),
}


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error body; in a stream it is the data of the last event."""

    error: ErrorDetail


def detail_of(error: ServingError) -> ErrorDetail:
    """`error` in OpenAI's words."""
    answer = ANSWERS[type(error)]
    return ErrorDetail(error.message, answer.type, error.param, error.code or answer.code)


def body_of(error: ServingError) -> bytes:
    """`error` as OpenAI's clients expect it."""
    return msgspec.json.encode(ErrorBody(detail_of(error)))

"""The few ASGI moves that every endpoint shares: read a bounded JSON body, answer with JSON or an error."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.errors import ANSWERS, BadRequest, ServingError, TooLarge, WrongContentType, body_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class ClientGone(Exception):
    """The client closed its connection before its request was whole: there is nobody to answer."""


async def read_json(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The request body, not yet parsed.

    Raises: WrongContentType; TooLarge as soon as `limit` bytes are passed; BadRequest for an empty body;
    ClientGone.
    """
    content_type = headers.get(b"content-type", b"")
    if not content_type.startswith(b"application/json"):
        given = content_type.decode("latin-1") or "none"
        raise WrongContentType(f"the body must be sent as application/json, not {given}")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        raise TooLarge(f"the body has {int(length)} bytes, the limit is {limit}")
    body = await _read(receive, limit)
    if not body:
        raise BadRequest("the body is empty", code="invalid_json")
    return body


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_json(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    length = str(len(body)).encode()
    head: Headers = [(b"content-type", b"application/json"), (b"content-length", length), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ServingError, headers: Headers | None = None) -> int:
    """Answer with `error` by the table; returns the status that was sent."""
    answer = ANSWERS[type(error)]
    await send_json(send, answer.status, body_of(error), [*error_headers(error), *(headers or [])])
    return answer.status


def error_headers(error: ServingError) -> Headers:
    answer = ANSWERS[type(error)]
    headers: Headers = []
    if answer.retry_after_s is not None:
        headers.append((b"retry-after", str(answer.retry_after_s).encode()))
    if answer.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if answer.status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    return headers


class Outlet:
    """One response: whole or as a stream, or an error in whichever form is still possible."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send = send
        self._headers = headers
        self._streaming = False

    async def whole(self, body: bytes) -> None:
        await send_json(self._send, 200, body, self._headers)

    async def push(self, body: bytes, *, last: bool = False) -> None:
        """Bytes of an event stream; waits while the client reads more slowly than we write."""
        if not self._streaming:
            self._streaming = True
            head = [*_STREAM_HEADERS, *self._headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, error: ServingError) -> int:
        """Returns the status that tells it, which a client whose stream had begun sees as an error event."""
        if not self._streaming:
            return await send_error(self._send, error, self._headers)
        await self.push(b"data: %b\n\n" % body_of(error), last=True)
        return ANSWERS[type(error)].status

"""A peer that speaks vLLM's chat protocol by script: slow, failing, broken in the middle."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Script:
    """How the next requests are answered."""

    pieces: tuple[str, ...] = ("Reset it", " in the", " settings.")
    piece_delay_s: float = 0.0
    first_delay_s: float = 0.0
    status: int = 200
    refusal: str = "no"
    break_after: int | None = None
    """Close the connection after so many pieces."""
    error_after: int | None = None
    """Send vLLM's error event after so many pieces."""
    finish_reason: str = "stop"
    tool_calls: tuple[dict[str, Any], ...] = ()
    raw: bytes | None = None
    """Answer with exactly these bytes."""


@dataclass
class ScriptedEngine:
    script: Script = field(default_factory=Script)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    other: Callable[[dict[str, Any]], Script | None] = lambda _: None
    """Another script for some requests."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when a client left before its reply was whole."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append(json.loads(body))
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        answer = asyncio.create_task(self._answer(self.requests[-1], send))
        left = asyncio.create_task(receive())
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            self.gone.set()
        left.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)
        if not answer.cancelled() and answer.exception() is not None:
            raise answer.exception()

    async def _answer(self, asked: dict[str, Any], send: Any) -> None:
        script = self.other(asked) or self.script
        await asyncio.sleep(script.first_delay_s)
        if script.status != 200:
            error = {
                "error": {
                    "message": script.refusal,
                    "type": "BadRequestError",
                    "param": None,
                    "code": script.status,
                }
            }
            await _send(send, script.status, json.dumps(error).encode())
        elif script.raw is not None:
            await _send(send, 200, script.raw)
        elif asked.get("stream"):
            await self._stream(asked, script, send)
        else:
            await self._whole(asked, script, send)

    async def _whole(self, asked: dict[str, Any], script: Script, send: Any) -> None:
        await asyncio.sleep(script.piece_delay_s * len(script.pieces))
        if script.break_after is not None:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]}
            )
            await send({"type": "http.response.body", "body": b'{"id"', "more_body": True})
            raise BrokenOff
        await _send(send, 200, json.dumps(whole(asked["model"], script)).encode())

    async def _stream(self, asked: dict[str, Any], script: Script, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        for i, piece in enumerate(script.pieces):
            if i == script.break_after:
                raise BrokenOff
            if i == script.error_after:
                await _push(
                    send, {"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}}
                )
                await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
                return
            await _push(send, chunk(asked["model"], i, piece, first=i == 0))
            await asyncio.sleep(script.piece_delay_s)
        if script.break_after == len(script.pieces):
            raise BrokenOff
        await _push(send, last_chunk(asked["model"], script))
        if (asked.get("stream_options") or {}).get("include_usage"):
            await _push(send, {**_head(asked["model"], True), "choices": [], "usage": _usage(script)})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class BrokenOff(Exception):
    """Makes the server close the connection in the middle of a reply."""


def whole(model: str, script: Script) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(script.pieces)}
    if script.tool_calls:
        message["tool_calls"] = list(script.tool_calls)
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": [_logprob(p) for p in script.pieces]},
        "finish_reason": script.finish_reason,
        "stop_reason": None,
        "token_ids": list(range(100, 100 + len(script.pieces))),
    }
    return {
        **_head(model, False),
        "choices": [choice],
        "usage": _usage(script),
        "prompt_token_ids": [1, 2, 3],
    }


def chunk(model: str, i: int, piece: str, *, first: bool) -> dict[str, Any]:
    delta = {"role": "assistant", "content": piece} if first else {"content": piece}
    choice = {"index": 0, "delta": delta, "logprobs": {"content": [_logprob(piece)]}, "token_ids": [100 + i]}
    made: dict[str, Any] = {**_head(model, True), "choices": [{**choice, "finish_reason": None}]}
    if first:
        made["prompt_token_ids"] = [1, 2, 3]
    return made


def last_chunk(model: str, script: Script) -> dict[str, Any]:
    delta = (
        {"tool_calls": [{"index": i, **c} for i, c in enumerate(script.tool_calls)]}
        if script.tool_calls
        else {}
    )
    choice = {"index": 0, "delta": delta, "finish_reason": script.finish_reason, "stop_reason": None}
    return {**_head(model, True), "choices": [choice]}


def _head(model: str, stream: bool) -> dict[str, Any]:
    kind = "chat.completion.chunk" if stream else "chat.completion"
    return {"id": "chatcmpl-engine", "object": kind, "created": 1_700_000_000, "model": model}


def _usage(script: Script) -> dict[str, int]:
    n = len(script.pieces)
    return {"prompt_tokens": 3, "completion_tokens": n, "total_tokens": 3 + n}


def _logprob(piece: str) -> dict[str, Any]:
    return {"token": piece, "logprob": -0.5, "bytes": list(piece.encode()), "top_logprobs": []}


async def _push(send: Any, event: dict[str, Any]) -> None:
    body = b"data: " + json.dumps(event).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""An engine whose every reply is its own: the scripted engine, with what it says made from the question."""

import json
from typing import Any

from tests.serving.scripted_engine import Script, ScriptedEngine


async def echo_engine(scope: Any, receive: Any, send: Any) -> None:
    """Speaks vLLM's chat protocol; the reply names the question and the request, so no two are alike."""
    if scope["type"] != "http":
        return
    body = await _read(receive)
    question = json.loads(body)["messages"][-1]["content"]
    request_id = dict(scope["headers"])[b"x-request-id"].decode()
    words = f"You asked: {question} Open the panel marked {request_id[:8]} and press {request_id[8:16]}."
    script = Script(pieces=tuple(f"{word} " for word in words.split()), piece_delay_s=0.002)
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Any:
        return unread.pop() if unread else await receive()

    await ScriptedEngine(script)(scope, receive_again, send)


async def _read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body

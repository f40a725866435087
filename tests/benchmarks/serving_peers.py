"""What the gateway is measured against: an instant engine, and a bare pass-through before it.

`python -m tests.benchmarks.serving_peers engine PORT` and `… pass-through PORT ENGINE_URL`.
"""

import json
import sys
from typing import Any

import aiohttp
import uvicorn

from tests.serving.scripted_engine import Script, whole

REPLY = json.dumps(
    whole("run-1-aaaaaaaa", Script(pieces=("Reset", " it", " in the", " settings.") * 16))
).encode()
_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(REPLY)).encode())],
}


async def _body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def engine(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, with 64 tokens' ids and logprobs."""
    await _body(receive)
    await send(_HEAD)
    await send({"type": "http.response.body", "body": REPLY})


class PassThrough:
    """Raw ASGI and pooled aiohttp, and nothing else: no key, no routing, no log, no metrics."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = await _body(receive)
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as response:
            answer = await response.read()
        length = str(len(answer)).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    app = engine if sys.argv[1] == "engine" else PassThrough(sys.argv[3])
    uvicorn.run(
        app,
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="error",
    )

"""An OpenAI-compatible judge by script, over real HTTP: it sees what a model would see."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any

import msgspec

from learner.judge import Said


@dataclass(frozen=True)
class Seen:
    """One request, taken apart at its boundaries as a model is told to."""

    body: dict[str, Any]
    parts: dict[str, str]
    """Text by title: CONVERSATION, and REPLY, or REPLY A and REPLY B."""
    question: str
    """What stands outside the boundaries."""

    @property
    def compares(self) -> bool:
        return "REPLY A" in self.parts


Answer = Said | int | bytes | tuple[int, bytes]
"""What the model says; a status that the endpoint answers with; exactly these bytes; or both."""
Says = Callable[[Seen], Answer]


def seen(body: dict[str, Any]) -> Seen:
    system, question = (m["content"] for m in body["messages"])
    boundary = system.partition('begin with "')[2].partition('"')[0]
    parts: dict[str, list[str]] = {}
    outside: list[str] = []
    at = outside
    for line in question.split("\n"):
        if line.startswith(boundary):
            title = line.removeprefix(boundary).strip()
            at = outside if title == "END" else parts.setdefault(title, [])
        else:
            at.append(line)
    return Seen(body, {title: "\n".join(lines) for title, lines in parts.items()}, "\n".join(outside))


def letter(p_of_a: float, *, logprobs: bool = True) -> Said:
    """The likelier letter, as a model with this probability of A would say it."""
    said = "A" if p_of_a >= 0.5 else "B"
    top = [{"token": t, "logprob": log(p)} for t, p in (("A", p_of_a), ("B", 1.0 - p_of_a))]
    tokens = [{"token": said, "logprob": log(max(p_of_a, 1.0 - p_of_a)), "top_logprobs": top}]
    return said_of(said, tokens if logprobs else [])


def said_of(text: str, tokens: list[dict[str, Any]] | None = None) -> Said:
    return msgspec.convert({"text": text, "tokens": tokens or []}, Said)


@dataclass
class ScriptedJudge:
    says: Says
    requests: list[Seen] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


@contextmanager
def judging_at(says: Says) -> Iterator[ScriptedJudge]:
    """A judge on a free port."""
    judge = ScriptedJudge(says)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = seen(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            with judge.lock:
                judge.requests.append(request)
                judge.keys.append(self.headers.get("Authorization", ""))
            answer = judge.says(request)
            status, payload = _response(answer)
            self.send_response(status if self.path == "/v1/chat/completions" else 404)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _response(answer: Answer) -> tuple[int, bytes]:
    if isinstance(answer, tuple):
        return answer
    if isinstance(answer, bytes):
        return 200, answer
    if isinstance(answer, int):
        return answer, json.dumps({"error": {"message": f"scripted {answer}"}}).encode()
    return 200, _completion(answer)


def _completion(answer: Said) -> bytes:
    tokens = [
        {
            "token": t.token,
            "logprob": t.logprob,
            "top_logprobs": [{"token": a.token, "logprob": a.logprob} for a in t.top_logprobs],
        }
        for t in answer.tokens
    ]
    choice = {
        "message": {"role": "assistant", "content": answer.text},
        "logprobs": {"content": tokens} if tokens else None,
        "finish_reason": "stop" if answer.whole else "length",
    }
    return json.dumps({"choices": [choice]}).encode()

"""Clients under load: they chat, judge, ask again and edit, and remember what they were promised."""

import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

PATIENCE_S = 15.0
"""How long a client tries to reach a gateway that is being started again."""


@dataclass
class Received:
    """What clients hold in their hands."""

    replies: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Every reply that came whole, by response id: the question, and what was answered."""
    signals: dict[str, str] = field(default_factory=dict)
    """Every signal that was acknowledged, by signal id: the kind."""
    streamed: int = 0
    """How many of the replies came as a stream."""
    interrupted: int = 0
    """Requests that were on their way when the connection broke."""

    def __add__(self, other: "Received") -> "Received":
        return Received(
            self.replies | other.replies,
            self.signals | other.signals,
            self.streamed + other.streamed,
            self.interrupted + other.interrupted,
        )


def converse(url: str, key: str, number: int, stop: threading.Event) -> Received:
    """Hold conversations until `stop`. An answer other than 200 raises; a broken connection is counted."""
    client = _Client(url, key, number)
    with client.http:
        for conversation in itertools.count():
            client.conversation(f"c{number}-{conversation}", stop)
            if stop.is_set():
                return client.received
    raise AssertionError("unreachable")


class _Client:
    def __init__(self, url: str, key: str, number: int) -> None:
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
        self.received = Received()
        self._number = number
        self._chance = Random(number)

    def conversation(self, name: str, stop: threading.Event) -> None:
        """Three questions; some replies are asked for again, some come back altered, some are judged."""
        history: list[dict[str, str]] = []
        for turn in range(3):
            question = f"Where is setting number {turn} of {name} and how do I reset it safely?"
            asked = [*history, {"role": "user", "content": question}]
            reply = self._ask(name, asked, stop)
            if reply is not None and self._chance.random() < 0.3:
                reply = self._ask(name, asked, stop) or reply
            if reply is None:
                return
            response_id, text = reply
            self._judge(response_id, text, stop)
            if self._chance.random() < 0.2:
                text += " Then start it once more."
            history = [*asked, {"role": "assistant", "content": text}]
            stop.wait(self._chance.uniform(0.0, 0.05))

    def _ask(
        self, name: str, messages: list[dict[str, str]], stop: threading.Event
    ) -> tuple[str, str] | None:
        """Id and text of a whole reply; asked again when the connection breaks. None once stopped."""
        body: dict[str, Any] = {"model": "ratchet", "messages": messages, "user": f"user-{self._number}"}
        headers = {"x-ratchet-conversation": name}
        while not stop.is_set():
            streams = self._chance.random() < 0.5
            try:
                reply = self._stream(body, headers) if streams else self._whole(body, headers)
            except httpx.TransportError as e:
                self._broken(e, stop)
                continue
            self.received.replies[reply[0]] = (messages[-1]["content"], reply[1])
            self.received.streamed += streams
            return reply
        return None

    def _broken(self, error: httpx.TransportError, stop: threading.Event) -> None:
        self.received.interrupted += not isinstance(error, httpx.ConnectError)
        stop.wait(0.05)

    def _whole(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[str, str]:
        response = self.http.post("/v1/chat/completions", json=body, headers=headers)
        response.raise_for_status()
        document = response.json()
        return document["id"], document["choices"][0]["message"]["content"]

    def _stream(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[str, str]:
        """Raises: httpx.RemoteProtocolError also for a stream that ends without [DONE]."""
        said, response_id = "", ""
        request = {**body, "stream": True}
        with self.http.stream("POST", "/v1/chat/completions", json=request, headers=headers) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return response_id, said
                if line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk, chunk
                    response_id = chunk["id"]
                    said += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
        raise httpx.RemoteProtocolError("the stream has no [DONE]")

    def _judge(self, response_id: str, text: str, stop: threading.Event) -> None:
        if self._chance.random() < 0.7:
            thumb = {"kind": "thumb", "value": float(self._chance.random() < 0.6)}
            self._signal({**thumb, "response_id": response_id}, stop)
        if self._chance.random() < 0.2:
            edited = f"{text} Save it at the end."
            self._signal({"kind": "edit", "text": edited, "response_id": response_id}, stop)

    def _signal(self, feedback: dict[str, Any], stop: threading.Event) -> None:
        """Until it is acknowledged: the same idempotency key each time, so it must be one signal."""
        key = f"{feedback['response_id']}-{feedback['kind']}"
        deadline = time.monotonic() + PATIENCE_S
        while not stop.is_set() and time.monotonic() < deadline:
            try:
                response = self.http.post("/v1/feedback", json={**feedback, "idempotency_key": key})
            except httpx.TransportError as e:
                self._broken(e, stop)
                continue
            response.raise_for_status()
            self.received.signals[response.json()["signal_id"]] = feedback["kind"]
            return

"""An OpenAI-compatible chat endpoint behind the judge, over HTTP; its failures are translated here."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import msgspec
from prometheus_client import Counter

from feedback.events import Message
from learner.errors import JudgeError, JudgeRefused
from learner.judge import Said, Token

CALLS = Counter("ratchet_learner_judge_calls_total", "Requests that the judge's endpoint answered.")
FAILURES = Counter(
    "ratchet_learner_judge_failures_total",
    "Requests to the judge that failed: unreachable, status, refused, malformed.",
    ["kind"],
)

ATTEMPTS = 3
TOP_LOGPROBS = 5
_MAX_PAUSE_S = 30.0
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({400, 413, 422})


class _Logprobs(msgspec.Struct):
    content: tuple[Token, ...] | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class Endpoint:
    """`learner.judge.Ask` over HTTP, at temperature 0; several threads may ask at once.

    Args: `url`, the base that OpenAI's clients take, with `/v1`; `timeout_s`, longest silence; `pause_s`,
    wait before the second attempt, doubled before each further one, unless the endpoint asks for another.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str = "", timeout_s: float = 60.0, pause_s: float = 1.0
    ) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._gives_logprobs = True

    def __call__(self, messages: Sequence[Message], *, max_tokens: int, logprobs: bool = False) -> Said:
        """Raises: JudgeRefused, JudgeError with the endpoint's own words."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        if logprobs and self._gives_logprobs:
            try:
                return self._ask(body | {"logprobs": True, "top_logprobs": TOP_LOGPROBS})
            except JudgeRefused as e:
                if "logprob" not in str(e):
                    raise
                self._gives_logprobs = False
        return self._ask(body)

    def _ask(self, body: dict[str, Any]) -> Said:
        pause_s = self._pause_s
        for left in reversed(range(ATTEMPTS)):
            try:
                return _said(self._url, self._post(body))
            except urllib.error.HTTPError as e:
                if e.code not in _AGAIN or not left:
                    raise _refusal(self._url, e) from e
                FAILURES.labels("status").inc()
                pause = _retry_after_s(e, pause_s)
                e.close()
            except (OSError, http.client.HTTPException) as e:
                FAILURES.labels("unreachable").inc()
                if not left:
                    raise JudgeError(f"the judge at {self._url} does not answer: {_reason(e)}") from e
                pause = pause_s
            time.sleep(pause)
            pause_s *= 2.0
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: dict[str, Any]) -> bytes:
        request = urllib.request.Request(self._url, json.dumps(body).encode(), self._headers, method="POST")
        with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
            answer: bytes = response.read()
        CALLS.inc()
        return answer


def _said(url: str, answer: bytes) -> Said:
    try:
        choice = msgspec.json.decode(answer, type=_Completion).choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as e:
        FAILURES.labels("malformed").inc()
        raise JudgeError(f"the judge at {url} answered no chat completion ({e}): {answer[:200]!r}") from e
    tokens = (choice.logprobs.content if choice.logprobs else None) or ()
    return Said(text=choice.message.content or "", tokens=tokens, whole=choice.finish_reason != "length")


def _refusal(url: str, error: urllib.error.HTTPError) -> JudgeError:
    with error:
        said = error.read(2000).decode(errors="replace")
    FAILURES.labels("refused" if error.code in _REFUSED else "status").inc()
    kind = JudgeRefused if error.code in _REFUSED else JudgeError
    hint = (
        "; is its key in the environment variable that [judge] api_key_env names?"
        if error.code in (401, 403)
        else ""
    )
    return kind(f"the judge at {url} answered {error.code}: {said[:300]}{hint}")


def _retry_after_s(error: urllib.error.HTTPError, otherwise_s: float) -> float:
    asked = error.headers.get("Retry-After", "")
    return min(float(asked), _MAX_PAUSE_S) if asked.isdecimal() else otherwise_s


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)

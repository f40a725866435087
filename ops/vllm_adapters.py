"""Adapters of one replica over its HTTP admin routes: list, load, probe, unload. Every call is timed out.

Foreign failures become EngineError here and nowhere else. Never loads in place and never reuses a name:
vLLM's prefix cache is keyed by (name, path), so another set of weights under a known name mixes replies.
"""

import http.client
import json
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ops.errors import EngineError, EngineUnavailable

TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 3.0
LOAD_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 120.0
"""The first sampled request after a start compiles for about 20 s."""

PROBE_PROMPT = "Hello! How can I get help with my order?"
PROBE_TOKENS = 24


def healthy(url: str) -> bool:
    """Whether the replica answers its health check."""
    try:
        _call(url, "GET", "/health", None, HEALTH_TIMEOUT_S)
    except EngineError:
        return False
    return True


def listed(url: str) -> frozenset[str]:
    """Names of the adapters that the replica serves, without the base model.

    Raises: EngineError, EngineUnavailable.
    """
    models = _json(_call(url, "GET", "/v1/models", None, TIMEOUT_S))["data"]
    return frozenset(str(m["id"]) for m in models if m.get("parent"))


def load(url: str, name: str, path: Path | str) -> None:
    """Load an adapter from an absolute path (vLLM would look a relative one up on a hub).

    Raises: EngineError when the replica refuses it (also when it has that name already), EngineUnavailable.
    """
    if not Path(path).is_absolute():
        raise EngineError(f"adapter path {str(path)!r} is not absolute")
    _call(url, "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, LOAD_TIMEOUT_S)


def unload(url: str, name: str) -> None:
    """Make the replica forget a name; requests that run on it finish.

    Raises: EngineError when it does not know the name, EngineUnavailable.
    """
    _call(url, "POST", "/v1/unload_lora_adapter", {"lora_name": name}, TIMEOUT_S)


def probe(url: str, name: str) -> str:
    """A fingerprint of what the adapter says: greedy token ids for a fixed prompt, hashed.

    Replicas that serve the same weights agree on it. Raises: EngineError, EngineUnavailable.
    """
    body = {
        "model": name,
        "prompt": PROBE_PROMPT,
        "max_tokens": PROBE_TOKENS,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    reply = _json(_call(url, "POST", "/v1/completions", body, PROBE_TIMEOUT_S))
    ids = reply["choices"][0]["token_ids"]
    return blake2b(json.dumps(ids).encode(), digest_size=8).hexdigest()


def sample_once(url: str, name: str) -> None:
    """One short sampled reply with log-probabilities, as the gateway asks for; the first one is slow.

    Raises: EngineError, EngineUnavailable.
    """
    body = {
        "model": name,
        "messages": [{"role": "user", "content": PROBE_PROMPT}],
        "max_tokens": 2,
        "seed": 0,
        "logprobs": True,
        "return_token_ids": True,
    }
    _call(url, "POST", "/v1/chat/completions", body, PROBE_TIMEOUT_S)


def _call(url: str, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> bytes:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.netloc, timeout=timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, parts.path.rstrip("/") + path, payload, _HEADERS)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as e:
        raise EngineUnavailable(f"{url} does not answer {path}: {e or type(e).__name__}") from e
    if response.status == 503:
        raise EngineUnavailable(f"{url} is not ready for {path}")
    if response.status >= 400:
        raise EngineError(f"{url} answered {path} with {response.status}: {_message(content)}")
    return content


_HEADERS = {"Content-Type": "application/json", "Connection": "close"}


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as e:
        raise EngineError(f"not JSON: {content[:80]!r}") from e


def _message(content: bytes) -> str:
    """The text of an error body, whichever of the two shapes vLLM uses."""
    try:
        body = json.loads(content)
        return str(body.get("error", body).get("message", body))[:500]
    except (ValueError, AttributeError):
        return content[:200].decode(errors="replace")

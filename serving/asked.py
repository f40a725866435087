"""What a client asked for: its JSON body and headers, checked and made into what the engine is sent. Pure.

The body stays a plain dict: what the gateway interprets or rewrites is validated, the rest of OpenAI's fields
pass as they are, and everything else is refused, because a vLLM engine takes many fields that would steer it
past the gateway (priorities, chat templates, cache transfer, embeddings by file).
"""

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from feedback.events import IdentitySource, Message, Sampling
from serving.errors import BadRequest

DEFAULT_MODEL = "ratchet"
"""The model name that means: whichever adapter the traffic split chooses."""

_PASSED = frozenset(
    "frequency_penalty logit_bias max_completion_tokens max_tokens parallel_tool_calls presence_penalty "
    "reasoning_effort repetition_penalty response_format seed stop temperature tool_choice tools top_k "
    "top_p".split()
)
_HANDLED = frozenset(
    "logprobs messages metadata model n ratchet store stream stream_options top_logprobs user".split()
)
_IGNORED = frozenset(
    "modalities prediction prompt_cache_key prompt_cache_retention safety_identifier service_tier "
    "verbosity".split()
)
_KNOWN = _PASSED | _HANDLED | _IGNORED

_MESSAGE_FIELDS = frozenset(
    "role content name tool_calls tool_call_id refusal reasoning reasoning_content function_call".split()
)
_ROLES = frozenset("system developer user assistant tool function".split())
_PART_TYPES = frozenset("text refusal image_url input_audio".split())
_RESPONSE_FORMATS = frozenset("text json_object json_schema".split())
_CONVERSATION = re.compile(r"[\x21-\x7e]{1,200}")
_MAX_USER_CHARS = 512
_FIELD_AT = re.compile(r"`\$\.([a-z_]+)")


class _Wishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`ratchet`: what no other server of this protocol knows."""

    compare: bool = False


class _Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that are interpreted here, with the types they must have."""

    messages: list[dict[str, Any]] = []
    model: str = DEFAULT_MODEL
    user: str = ""
    metadata: dict[str, Any] = {}
    store: bool = True
    stream: bool = False
    stream_options: dict[str, Any] = {}
    logprobs: bool = False
    top_logprobs: int = 0
    n: int = 1
    response_format: dict[str, Any] = {}
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] = []
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ratchet: _Wishes = _Wishes()


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One chat request, understood."""

    model: str
    messages: tuple[Message, ...]
    stream: bool
    wants_logprobs: bool
    learn: bool
    compare: bool
    """The client can show two replies side by side."""
    user: str
    """As the client names its end user; empty when it does not."""
    conversation: str
    """As the client names the conversation; empty when it does not."""
    sampling: Sampling
    engine_fields: dict[str, Any]
    """Everything for the engine but the model, the messages and the cache salt."""


_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def parse(body: bytes, headers: Mapping[bytes, bytes]) -> Asked:
    """Raises: BadRequest naming the field in `param` and what to send instead."""
    raw = without_nulls(decode_object(body))
    fields = _typed(raw)
    _refuse_unknown(raw)
    _check_messages(fields.messages)
    if fields.n != 1:
        raise BadRequest(
            "n: one reply per request; send several requests", param="n", code="unsupported_value"
        )
    if fields.response_format and fields.response_format.get("type") not in _RESPONSE_FORMATS:
        raise BadRequest(
            f"response_format.type must be one of {_or(_RESPONSE_FORMATS)}", param="response_format"
        )
    sampling = _sampling(fields)
    return Asked(
        model=fields.model or DEFAULT_MODEL,
        messages=tuple(_plain(m) for m in fields.messages),
        stream=fields.stream,
        wants_logprobs=fields.logprobs,
        learn=fields.store,
        compare=fields.ratchet.compare,
        user=_user(fields, headers),
        conversation=_conversation(fields, headers),
        sampling=sampling,
        engine_fields=_engine_fields(raw, fields, sampling),
    )


def decode_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises: BadRequest."""
    try:
        raw = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadRequest(f"the body is not valid JSON: {e}", code="invalid_json") from e
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return raw


def without_nulls(raw: dict[str, Any], *, keep: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A null means the same as an absent field, but in the fields `keep`."""
    return {k: v for k, v in raw.items() if v is not None or k in keep}


def for_engine(asked: Asked, adapter: str, cache_salt: str) -> bytes:
    """The body that asks one engine for this reply."""
    return _encoder.encode(
        {"model": adapter, "messages": asked.messages, "cache_salt": cache_salt, **asked.engine_fields}
    )


def once_more(asked: Asked, seed: int | None) -> Asked:
    """The same request, answered whole; with `seed` in the place of its own unless that is None."""
    changed: dict[str, Any] = {"stream": False} if seed is None else {"stream": False, "seed": seed}
    fields = {k: v for k, v in asked.engine_fields.items() if k != "stream_options"} | changed
    sampling = asked.sampling if seed is None else msgspec.structs.replace(asked.sampling, seed=seed)
    return msgspec.structs.replace(asked, stream=False, sampling=sampling, engine_fields=fields)


def identify(asked: Asked, owner: str, secret: bytes) -> tuple[str, IdentitySource]:
    """The conversation's name within `owner`'s, and how it is known.

    A name given by the client is kept; else it is a keyed hash of who asks and what was asked first, which
    the OpenAI protocol resends with every turn.
    """
    if asked.conversation:
        return asked.conversation, IdentitySource.EXPLICIT
    first = next((m.get("content") for m in asked.messages if m["role"] == "user"), None)
    what = first.encode("utf-8", "surrogatepass") if isinstance(first, str) else _encoder.encode(first)
    who = f"{owner}\x1f{asked.user}\x1f".encode("utf-8", "surrogatepass")
    name = blake2b(who + what, digest_size=16, key=secret[:64], person=b"conversation").hexdigest()
    return name, IdentitySource.USER if asked.user else IdentitySource.HISTORY


def conversation_key(owner: str, conversation: str) -> str:
    """Names the conversation in the log: what an owner calls it is nobody else's."""
    return f"{owner}/{conversation}"


def _typed(raw: dict[str, Any]) -> _Fields:
    try:
        return msgspec.convert(raw, _Fields)
    except msgspec.ValidationError as e:
        at = _FIELD_AT.search(str(e))
        raise BadRequest(str(e), param=at[1] if at else None, code="invalid_type") from e


def _refuse_unknown(raw: dict[str, Any]) -> None:
    if raw.keys() <= _KNOWN:
        return
    name = min(raw.keys() - _KNOWN)
    raise BadRequest(
        f"{name}: not a field of chat completions that this gateway takes",
        param=name,
        code="unknown_parameter",
    )


def _check_messages(messages: list[dict[str, Any]]) -> None:
    if not messages:
        raise BadRequest(
            "messages: send at least one message", param="messages", code="missing_required_parameter"
        )
    for i, message in enumerate(messages):
        if message.get("role") not in _ROLES:
            raise BadRequest(f"messages[{i}].role must be one of {_or(_ROLES)}", param=f"messages[{i}].role")
        _check_content(message.get("content"), f"messages[{i}].content")


def _check_content(content: Any, at: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(p, dict) for p in content):
        raise BadRequest(f"{at} must be a string or a list of content parts", param=at, code="invalid_type")
    for part in content:
        if part.get("type") not in _PART_TYPES:
            raise BadRequest(f"{at}: a part's type must be one of {_or(_PART_TYPES)}", param=at)
        if part["type"] == "image_url" and not _is_inline(part.get("image_url")):
            raise BadRequest(f"{at}: send images inline, as data: URLs; engines fetch nothing", param=at)


def _is_inline(image: Any) -> bool:
    url = image.get("url") if isinstance(image, dict) else image
    return isinstance(url, str) and url.startswith("data:")


def _plain(message: dict[str, Any]) -> Message:
    if message.keys() <= _MESSAGE_FIELDS:
        return message
    return {k: v for k, v in message.items() if k in _MESSAGE_FIELDS}


def _sampling(fields: _Fields) -> Sampling:
    return Sampling(
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        max_tokens=fields.max_tokens
        if fields.max_completion_tokens is None
        else fields.max_completion_tokens,
        seed=fields.seed,
        stop=(fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop),
        frequency_penalty=fields.frequency_penalty,
        presence_penalty=fields.presence_penalty,
        repetition_penalty=fields.repetition_penalty,
    )


def _engine_fields(raw: dict[str, Any], fields: _Fields, sampling: Sampling) -> dict[str, Any]:
    """Sampling is always spelt out: an engine's own defaults would make what is recorded untrue."""
    sent = {k: v for k, v in raw.items() if k in _PASSED}
    sent |= {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "stream": fields.stream,
        "logprobs": True,
        "top_logprobs": fields.top_logprobs if fields.logprobs else 0,
        "return_token_ids": True,
    }
    if fields.stream and fields.stream_options.get("include_usage") is True:
        sent["stream_options"] = {"include_usage": True}
    return sent


def _user(fields: _Fields, headers: Mapping[bytes, bytes]) -> str:
    user = fields.user or headers.get(b"x-ratchet-user", b"").decode("utf-8", "replace")
    if len(user) > _MAX_USER_CHARS:
        raise BadRequest(f"user: at most {_MAX_USER_CHARS} characters", param="user", code="string_too_long")
    return user


def _conversation(fields: _Fields, headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-ratchet-conversation", b"").decode("latin-1") or fields.metadata.get(
        "conversation_id", ""
    )
    if given and not (isinstance(given, str) and _CONVERSATION.fullmatch(given)):
        raise BadRequest(
            "a conversation id is 1 to 200 visible ASCII characters without spaces",
            param="metadata.conversation_id",
        )
    return str(given)


def _or(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))

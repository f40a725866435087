"""What an engine said, read from its completions and chunks; and the same as the client may see it. Pure."""

from typing import Any

import msgspec

from feedback.events import Message
from serving.errors import EngineBroke

_ENGINE_ONLY = frozenset(
    "prompt_token_ids prompt_logprobs prompt_text kv_transfer_params ec_transfer_params metrics".split()
)
_ENGINE_ONLY_IN_CHOICE = frozenset({"token_ids", "stop_reason", "routed_experts"})


class _ToolFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _ToolFunction = msgspec.field(default_factory=_ToolFunction)


class _Said(msgspec.Struct):
    """A stream's delta or a whole message."""

    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _TokenLogprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Failure(msgspec.Struct):
    message: str = "no reason given"


class _Chunk(msgspec.Struct):
    """What the gateway reads of a completion or of one chunk of it."""

    choices: list[_Choice] = []
    prompt_token_ids: list[int] | None = None
    error: _Failure | None = None


_chunks = msgspec.json.Decoder(_Chunk)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_NULL = msgspec.Raw(b"null")


class Transcript:
    """What an engine said and how, gathered from its chunks or from one whole reply."""

    def __init__(self) -> None:
        self.prompt_token_ids: tuple[int, ...] = ()
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason = ""
        self._texts: dict[str, list[str]] = {}
        self._tool_calls: dict[int, dict[str, Any]] = {}

    @property
    def begun(self) -> bool:
        return bool(self._texts or self._tool_calls)

    @property
    def text(self) -> str:
        return "".join(self._texts.get("content", ()))

    def add(self, data: bytes) -> None:
        """Raises: EngineBroke when the engine reports an error or sends what is no completion."""
        try:
            chunk = _chunks.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise EngineBroke(f"the engine sent what is no chat completion: {e}") from e
        if chunk.error is not None:
            raise EngineBroke(f"the engine failed: {chunk.error.message}")
        if chunk.prompt_token_ids is not None:
            self.prompt_token_ids = tuple(chunk.prompt_token_ids)
        for choice in chunk.choices[:1]:
            self._add_choice(choice)

    def message(self) -> Message:
        """The assistant's message so far, as a client would send it back."""
        message: Message = {"role": "assistant", "content": ""}
        message |= {name: "".join(parts) for name, parts in self._texts.items()}
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[i] for i in sorted(self._tool_calls)]
            message["content"] = message["content"] or None
        return message

    def _add_choice(self, choice: _Choice) -> None:
        said = choice.delta or choice.message
        if said is not None:
            self._add_said(said)
        if choice.token_ids:
            self.token_ids += choice.token_ids
        if choice.logprobs is not None and choice.logprobs.content:
            self.logprobs += [t.logprob for t in choice.logprobs.content]
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason

    def _add_said(self, said: _Said) -> None:
        if said.content:
            self._texts.setdefault("content", []).append(said.content)
        if said.refusal:
            self._texts.setdefault("refusal", []).append(said.refusal)
        if said.reasoning:
            self._texts.setdefault("reasoning", []).append(said.reasoning)
        if said.reasoning_content:
            self._texts.setdefault("reasoning_content", []).append(said.reasoning_content)
        for position, call in enumerate(said.tool_calls or ()):
            self._add_tool_call(position if call.index is None else call.index, call)

    def _add_tool_call(self, index: int, call: _ToolCall) -> None:
        known = self._tool_calls.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        known["id"] = call.id or known["id"]
        known["type"] = call.type or known["type"]
        known["function"]["name"] += call.function.name or ""
        known["function"]["arguments"] += call.function.arguments or ""


def visible(data: bytes, response_id: str, wants_logprobs: bool) -> dict[str, Any]:
    """A completion or chunk as the client may see it: our id, nothing that only engine and learner share.

    `data` must have passed `Transcript.add`. What is handed on stays the engine's own bytes.
    """
    shown: dict[str, Any] = {k: v for k, v in _objects.decode(data).items() if k not in _ENGINE_ONLY}
    shown["id"] = response_id
    if "choices" in shown:
        shown["choices"] = [_visible_choice(c, wants_logprobs) for c in _choices.decode(shown["choices"])]
    return shown


def _visible_choice(choice: dict[str, msgspec.Raw], wants_logprobs: bool) -> dict[str, msgspec.Raw]:
    shown = {k: v for k, v in choice.items() if k not in _ENGINE_ONLY_IN_CHOICE}
    if not wants_logprobs and "logprobs" in shown:
        shown["logprobs"] = _NULL
    return shown

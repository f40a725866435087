"""A small engine with vLLM's HTTP contract over transformers and peft, for tests and machines without vLLM.

`ops.transformers_model` owns the model in a thread; the event loop here owns HTTP and the tokenizer. It
keeps what ratchet relies on: names load once, unloading lets running requests finish, processed
log-probabilities, token ids. It is not fast.
"""

import argparse
import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
import uvicorn

from ops.transformers_model import ModelThread, Row, Sampled

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 4 * 2**20
REPLACEMENT = "\ufffd"


class Refused(Exception):
    """A request that gets an error body in vLLM's shape."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Asked(msgspec.Struct, kw_only=True):
    """The fields that chat and text completions share; unknown ones are ignored, as vLLM does."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = 0
    n: int | None = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    ignore_eos: bool = False
    logit_bias: dict[int, float] | None = None
    priority: int = 0
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0


class ChatAsked(Asked, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0


class TextAsked(Asked, kw_only=True):
    prompt: str | list[int | str | list[int]]
    logprobs: int | None = None


class LoadAsked(msgspec.Struct):
    lora_name: str = ""
    lora_path: str = ""


class Engine:
    """What the HTTP routes share: the model's thread, the tokenizer and the names that are served."""

    def __init__(self, model_dir: Path, *, served: str, max_model_len: int, thread: ModelThread) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model_dir)
        self.thread, self.served, self.max_model_len = thread, served, max_model_len
        self.root = str(model_dir)
        self.adapters: dict[str, tuple[str, str]] = {}
        """Name → (slot, path)."""
        ends = [self.tokenizer.eos_token_id, *_as_list(thread.config.eos_token_id)]
        self.ends = frozenset(int(e) for e in ends if e is not None)

    def slot(self, model: str) -> str | None:
        if model == self.served:
            return None
        if model not in self.adapters:
            raise Refused(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        return self.adapters[model][0]

    def chat_prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        flat = [{**m, "content": _text_of(m.get("content"))} for m in messages]
        try:
            return list(
                self.tokenizer.apply_chat_template(flat, add_generation_prompt=True, return_dict=False)
            )
        except (
            ValueError,
            TypeError,
            KeyError,
            transformers.utils.chat_template_utils.jinja2.TemplateError,
        ) as e:
            raise Refused(400, "BadRequestError", f"the chat template refuses these messages: {e}") from e

    def text_prompts(self, prompt: str | list[int | str | list[int]]) -> list[list[int]]:
        """Every prompt as token ids. Raises: Refused for ids outside the vocabulary."""
        if isinstance(prompt, list) and all(isinstance(part, int) for part in prompt):
            many: list[Any] = [prompt]
        else:
            many = [prompt] if isinstance(prompt, str) else prompt
        prompts = [list(self.tokenizer(p)["input_ids"]) if isinstance(p, str) else p for p in many]
        for token_ids in prompts:
            self.check_ids(token_ids if isinstance(token_ids, list) else [token_ids])
        return prompts

    def check_ids(self, token_ids: Iterable[Any]) -> None:
        size = int(self.thread.config.vocab_size)
        for token_id in token_ids:
            if not isinstance(token_id, int) or not 0 <= token_id < size:
                raise Refused(400, "BadRequestError", f"token id {token_id} is out of vocabulary")


class Reply:
    """One row as its reader sees it: tokens as they come, the text so far, the reason it ended."""

    def __init__(
        self, engine: Engine, asked: Asked, prompt: list[int], max_tokens: int | None, nth: int
    ) -> None:
        self.prompt = prompt
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.finish: str | None = None
        self.stop_reason: str | None = None
        self._tokenizer = engine.tokenizer
        self._stop_texts = _as_list(asked.stop)
        self._queue: asyncio.Queue[Sampled | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.row = _row(engine, asked, prompt, max_tokens, nth, self._emit_into(loop))

    def _emit_into(self, loop: asyncio.AbstractEventLoop) -> Callable[[Sampled | None], None]:
        return lambda sampled: _post(loop, self._queue, sampled)

    async def deltas(self) -> AsyncIterator[tuple[str, Sampled]]:
        """New text with each token. Raises: Refused (500) when generation broke off."""
        while self.finish is None:
            sampled = await self._queue.get()
            if sampled is None:
                raise Refused(500, "InternalServerError", "generation broke off")
            yield self._take(sampled), sampled

    def _take(self, sampled: Sampled) -> str:
        self.token_ids.append(sampled.token_id)
        self.logprobs.append(sampled.logprob)
        self.finish = sampled.finish
        text = str(self._tokenizer.decode(self.token_ids, skip_special_tokens=True))
        if text.endswith(REPLACEMENT):  # in the middle of a character
            return ""
        stop, end = _first_stop(text, self._stop_texts)
        if stop is not None:
            self.finish, self.stop_reason, self.row.cancelled = "stop", stop, True
            text = text[:end]
        delta, self.text = text[len(self.text) :], text
        return delta

    def close(self) -> None:
        self.row.cancelled = True


def _post(
    loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[Sampled | None]", item: Sampled | None
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, item)


def _row(
    engine: Engine,
    asked: Asked,
    prompt: list[int],
    max_tokens: int | None,
    nth: int,
    emit: Callable[[Sampled | None], None],
) -> Row:
    room = engine.max_model_len - len(prompt)
    if not prompt or room < 1 or (max_tokens is not None and not 1 <= max_tokens <= room):
        message = f"{len(prompt)} prompt tokens and max_tokens={max_tokens} do not fit max_model_len="
        raise Refused(400, "BadRequestError", f"{message}{engine.max_model_len}", "max_tokens")
    generator = None
    if asked.seed is not None:
        generator = torch.Generator().manual_seed((asked.seed + nth) % 2**63)
    return Row(
        prompt=prompt,
        slot=engine.slot(asked.model),
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        max_tokens=room if max_tokens is None else max_tokens,
        stops=frozenset() if asked.ignore_eos else engine.ends,
        bias=asked.logit_bias or {},
        priority=asked.priority,
        generator=generator,
        emit=emit,
    )


def _check(engine: Engine, asked: Asked) -> None:
    """Raises: Refused for values out of range and for penalties, which this engine does not have."""
    ranges = {
        "temperature": (asked.temperature, 0.0, 100.0),
        "top_p": (asked.top_p, 1e-6, 1.0),
        "n": (asked.n, 1, 64),
    }
    for name, (value, low, high) in ranges.items():
        if value is not None and not low <= value <= high:
            raise Refused(400, "BadRequestError", f"{name} is {value}, expected {low} to {high}", name)
    engine.check_ids(asked.logit_bias or ())
    if asked.frequency_penalty or asked.presence_penalty or asked.repetition_penalty not in (None, 1.0):
        raise Refused(400, "BadRequestError", "the transformers engine has no penalties: use vLLM for them")


def _replies(engine: Engine, asked: Asked, prompts: list[list[int]], max_tokens: int | None) -> list[Reply]:
    replies = [
        Reply(engine, asked, prompt, max_tokens, nth) for prompt in prompts for nth in range(asked.n or 1)
    ]
    engine.thread.submit([reply.row for reply in replies])
    return replies


async def _finish(replies: Sequence[Reply]) -> None:
    for reply in replies:
        async for _ in reply.deltas():
            pass


async def _chat(engine: Engine, request: "Request") -> None:
    asked = request.body_as(ChatAsked)
    _check(engine, asked)
    prompt = engine.chat_prompt(asked.messages)
    limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    replies = _replies(engine, asked, [prompt], limit)
    head = {
        "id": f"chatcmpl-{request.id}",
        "object": "chat.completion.chunk" if asked.stream else "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
    }
    if asked.stream:
        await _stream_chat(engine, request, asked, replies, head)
        return
    await request.unless_gone(_finish(replies), replies)
    choices = [_chat_choice(engine, asked, i, reply) for i, reply in enumerate(replies)]
    await request.json(
        {
            **head,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _usage(replies, asked.n or 1),
            "prompt_logprobs": None,
            "prompt_token_ids": prompt if asked.return_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
        }
    )


def _chat_choice(engine: Engine, asked: ChatAsked, index: int, reply: Reply) -> dict[str, Any]:
    logprobs = None
    if asked.logprobs:
        pairs = zip(reply.token_ids, reply.logprobs, strict=True)
        logprobs = {"content": [_chat_logprob(engine, t, p) for t, p in pairs]}
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": reply.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": logprobs,
        "finish_reason": reply.finish,
        "stop_reason": reply.stop_reason,
        "token_ids": reply.token_ids if asked.return_token_ids else None,
    }


async def _stream_chat(
    engine: Engine, request: "Request", asked: ChatAsked, replies: list[Reply], head: dict[str, Any]
) -> None:
    await request.start_stream()
    for index, reply in enumerate(replies):
        first = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        await request.event(
            {
                **head,
                "choices": [{**first, "finish_reason": None}],
                "prompt_token_ids": reply.prompt if asked.return_token_ids else None,
                "prompt_text": None,
            }
        )

    async def relay() -> None:
        for index, reply in enumerate(replies):
            async for delta, sampled in reply.deltas():
                choice: dict[str, Any] = {
                    "index": index,
                    "delta": {"content": delta},
                    "logprobs": None,
                    "finish_reason": reply.finish,
                    "token_ids": [sampled.token_id] if asked.return_token_ids else None,
                }
                if asked.logprobs:
                    choice["logprobs"] = {
                        "content": [_chat_logprob(engine, sampled.token_id, sampled.logprob)]
                    }
                if reply.finish is not None:
                    choice["stop_reason"] = reply.stop_reason
                await request.event({**head, "choices": [choice]})
        if asked.stream_options and asked.stream_options.include_usage:
            usage = _usage(replies, asked.n or 1)
            await request.event({**head, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT})
        await request.end_stream()

    await request.unless_gone(relay(), replies)


async def _text(engine: Engine, request: "Request") -> None:
    asked = request.body_as(TextAsked)
    _check(engine, asked)
    if asked.stream:
        raise Refused(
            400, "BadRequestError", "the transformers engine streams chat completions only", "stream"
        )
    prompts = engine.text_prompts(asked.prompt)
    replies = _replies(engine, asked, prompts, 16 if asked.max_tokens is None else asked.max_tokens)
    await request.unless_gone(_finish(replies), replies)
    await request.json(
        {
            "id": f"cmpl-{request.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
            "choices": [_text_choice(engine, asked, i, reply) for i, reply in enumerate(replies)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _usage(replies, asked.n or 1),
            "kv_transfer_params": None,
        }
    )


def _text_choice(engine: Engine, asked: TextAsked, index: int, reply: Reply) -> dict[str, Any]:
    logprobs = None
    if asked.logprobs is not None:
        tokens = [_token_text(engine, t) for t in reply.token_ids]
        logprobs = {
            "text_offset": list(itertools.accumulate((len(t) for t in tokens[:-1]), initial=0)),
            "token_logprobs": reply.logprobs,
            "tokens": tokens,
            "top_logprobs": [{t: p} for t, p in zip(tokens, reply.logprobs, strict=True)],
        }
    return {
        "index": index,
        "text": reply.text,
        "logprobs": logprobs,
        "finish_reason": reply.finish,
        "stop_reason": reply.stop_reason,
        "token_ids": reply.token_ids if asked.return_token_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": reply.prompt if asked.return_token_ids else None,
    }


async def _models(engine: Engine, request: "Request") -> None:
    def card(name: str, root: str, parent: str | None, length: int | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "ratchet",
            "root": root,
            "parent": parent,
            "max_model_len": length,
        }

    cards = [card(engine.served, engine.root, None, engine.max_model_len)]
    cards += [card(name, path, engine.served, None) for name, (_, path) in engine.adapters.items()]
    await request.json({"object": "list", "data": cards})


async def _load(engine: Engine, request: "Request") -> None:
    asked = request.body_as(LoadAsked)
    name, path = asked.lora_name, asked.lora_path
    if not name or not path:
        raise Refused(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
    if name in engine.adapters or name == engine.served:
        raise Refused(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
    if not Path(path).is_absolute() or not (Path(path) / "adapter_config.json").is_file():
        raise Refused(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
    slot, done = engine.thread.load(path)
    engine.adapters[name] = (slot, path)  # at once: a second load of this name is refused
    await asyncio.wait([waiting := asyncio.wrap_future(done)])
    failure = waiting.exception()
    if failure is not None:
        del engine.adapters[name]
        raise Refused(500, "InternalServerError", f"Loading lora {name} failed: {failure}")
    await request.plain(f"Success: LoRA adapter '{name}' added successfully.")


async def _unload(engine: Engine, request: "Request") -> None:
    name = request.body_as(LoadAsked).lora_name
    if name not in engine.adapters:
        raise Refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
    slot, _ = engine.adapters.pop(name)
    engine.thread.unload(slot)
    await request.plain(f"Success: LoRA adapter '{name}' removed successfully.")


async def _health(engine: Engine, request: "Request") -> None:
    if not engine.thread.alive:
        raise Refused(503, "ServiceUnavailable", "the model's thread has ended: start this replica again")
    await request.plain("")


ROUTES: dict[tuple[str, str], Callable[[Engine, "Request"], Awaitable[None]]] = {
    ("POST", "/v1/chat/completions"): _chat,
    ("POST", "/v1/completions"): _text,
    ("GET", "/v1/models"): _models,
    ("POST", "/v1/load_lora_adapter"): _load,
    ("POST", "/v1/unload_lora_adapter"): _unload,
    ("GET", "/health"): _health,
}
FINGERPRINT = f"transformers-{transformers.__version__}"


class Request:
    """One HTTP exchange over ASGI."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        headers = dict(scope["headers"])
        self.id = headers.get(b"x-request-id", uuid.uuid4().hex.encode()).decode("latin-1")
        self._receive, self._send, self._body = receive, send, body
        self.started = False

    def body_as(self, model: type[Any]) -> Any:
        """Raises: Refused (400) with the field that does not fit."""
        try:
            return msgspec.json.decode(self._body, type=model, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Refused(400, "Bad Request", str(e), "body") from e

    async def unless_gone(self, work: Awaitable[None], replies: Sequence[Reply]) -> None:
        """Do `work`; when the client hangs up first, stop generating."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._hung_up())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                raise ConnectionResetError("the client went away")
            working.result()
        finally:
            gone.cancel()
            for reply in replies:
                reply.close()

    async def _hung_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, document: Any, status: int = 200) -> None:
        await self._answer(msgspec.json.encode(document), "application/json", status)

    async def plain(self, text: str) -> None:
        await self._answer(text.encode(), "text/plain; charset=utf-8", 200)

    async def _answer(self, content: bytes, kind: str, status: int) -> None:
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(content)).encode())]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})

    async def start_stream(self) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, document: Any) -> None:
        data = b"data: " + msgspec.json.encode(document) + b"\n\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def create_app(engine: Engine) -> App:
    """The ASGI application. Every refusal is an error body; after a stream has begun, an `error` event."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = await _read_body(receive)
        request = Request(scope, receive, send, body)
        try:
            if len(body) > MAX_BODY_BYTES:
                raise Refused(413, "BadRequestError", f"the body is longer than {MAX_BODY_BYTES} bytes")
            route = ROUTES.get((scope["method"], scope["path"]))
            if route is None:
                raise Refused(404, "NotFoundError", f"no route {scope['method']} {scope['path']}")
            await route(engine, request)
        except ConnectionResetError:
            return
        except Refused as e:
            error = {"message": str(e), "type": e.kind, "param": e.param, "code": e.status}
            if request.started:
                await request.event({"error": error})
                await request.end_stream()
            else:
                await request.json({"error": error}, e.status)

    return app


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if size <= MAX_BODY_BYTES + 1:
            parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts) if size <= MAX_BODY_BYTES else b" " * (MAX_BODY_BYTES + 1)


def _usage(replies: Sequence[Reply], per_prompt: int) -> dict[str, int]:
    asked = sum(len(reply.prompt) for reply in replies[::per_prompt])
    made = sum(len(reply.token_ids) for reply in replies)
    return {"prompt_tokens": asked, "total_tokens": asked + made, "completion_tokens": made}


def _chat_logprob(engine: Engine, token_id: int, logprob: float) -> dict[str, Any]:
    token = _token_text(engine, token_id)
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}


def _token_text(engine: Engine, token_id: int) -> str:
    text = str(engine.tokenizer.decode([token_id]))
    return "" if REPLACEMENT in text else text


def _first_stop(text: str, stops: Sequence[str]) -> tuple[str | None, int]:
    found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
    return (min(found)[1], min(found)[0]) if found else (None, len(text))


def _text_of(content: Any) -> str:
    """A message's text; parts of type `text` are joined."""
    if isinstance(content, list):
        parts = [p.get("text", "") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        return "\n".join(parts)
    return "" if content is None else str(content)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.transformers_engine", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served-model-name", default="base")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--max-lora-rank", type=int, default=32)
    args = parser.parse_args(argv)
    thread = ModelThread(args.model, args.dtype, args.max_num_seqs, args.max_lora_rank)
    engine = Engine(
        args.model, served=args.served_model_name, max_model_len=args.max_model_len, thread=thread
    )
    try:
        uvicorn.run(create_app(engine), host=args.host, port=args.port, log_level="warning", access_log=False)
    finally:
        thread.close()


if __name__ == "__main__":
    main()

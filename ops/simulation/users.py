"""Simulated users: they chat through the OpenAI SDK and react like people, by tastes that nobody else sees.

They know the service's public API and nothing else. What they do is decided by seed; what they are told is
not, since the model samples. `run` makes feedback, `measure` takes the true utility on held-out questions.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache, partial
from random import Random
from typing import Any, TypeVar

import msgspec
import openai
from openai import AsyncOpenAI

from ops.simulation import helpdesk
from ops.simulation.helpdesk import Split, Tastes
from ops.simulation.stats import Interval, clustered

MODEL = "ratchet"
"""Asks for whatever adapter the traffic split gives this user."""
MAX_TOKENS = 160
CONVERSATION_HEADER = "x-ratchet-conversation"
T = TypeVar("T")


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """How often users do what. Probabilities; "per displeasure" is times (1 - how good the reply seems)."""

    noise: float = 0.12
    """Standard deviation of how good a reply seems around its utility."""
    thumbs_up: float = 0.35
    """Of replies that please: most people say nothing, and fewer complain than praise."""
    thumbs_down: float = 0.25
    """Of replies that do not."""
    indifferent: float = 0.45
    """How good a reply must seem for an even chance that it pleases: below the middle, people are kind."""
    slip: float = 0.03
    """Thumbs that hit the wrong button."""
    copy: float = 0.10
    """Copies per pleasure."""
    regenerate: float = 0.60
    """Asks for another reply, per displeasure."""
    compare: float = 0.25
    """After a regeneration: says unasked which of the two is better."""
    pick: float = 0.9
    """Says which of two replies side by side is better; the others go on with the first."""
    words_per_s: float = 9.0
    """How fast they read the second one: faster than people like to, and no faster than they can."""
    edit: float = 0.25
    """Puts the reply right, per displeasure."""
    explicit_edit: float = 0.5
    """Edits sent as feedback; the others only show in the history that the next request carries."""
    complain: float = 0.30
    """Says so in the chat, per displeasure."""
    thank: float = 0.35
    """Says so in the chat, per pleasure."""
    follow_up: float = 0.35
    """Goes on with another question."""
    turns: int = 4
    """Most exchanges of a conversation."""
    stream: float = 0.5
    """Conversations that stream."""
    named: float = 0.5
    """Conversations whose client names them; the gateway recognises the others by user and first message."""


HABITS = Habits()


class User(msgspec.Struct, frozen=True):
    name: str
    tastes: Tastes
    seed: str
    """Of everything this user decides."""


class Judged(msgspec.Struct, frozen=True):
    """A first reply and its true utility for the user who asked."""

    question: str
    reply: str
    utility: float
    response_id: str
    adapter: str
    """"" when the server does not say."""
    arm: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation did and saw."""

    users: int
    conversations: int
    requests: int
    did: dict[str, int]
    """How often users did each thing: `thumbs_up`, `regenerations`, `edits` …"""
    failures: dict[str, int]
    """Requests that failed, by status or kind of error."""
    seconds: float
    utility: Interval | None
    """True utility of first replies, interval clustered by question; None when there were none."""
    replies: list[Judged]
    received: list[str]
    """Ids of all replies that arrived whole: each of them must be in the log."""
    acknowledged: list[str]
    """Ids of all signals that were answered 2xx: likewise."""


async def run(
    base_url: str,
    api_key: str,
    *,
    users: int,
    conversations: int,
    seed: int,
    concurrency: int = 16,
    split: Split = "seen",
    habits: Habits = HABITS,
    model: str = MODEL,
    going: Callable[[], bool] = lambda: True,
) -> Report:
    """`users` users have `conversations` conversations in all, about questions of `split`.

    `base_url` ends in `/v1`; `concurrency` conversations run at a time; none begins once not `going()`.
    """
    started = time.monotonic()
    people = [person(seed, n) for n in range(users)]
    rng = Random(f"{seed}-questions")
    async with sdk(base_url, api_key) as client:
        desk = Desk(client, model, habits, split, Counter(), Counter(), [], [], [])
        asked = rng.choices(helpdesk.questions(split), popularity(split), k=conversations)
        talks = [begun(desk, people[n % users], n, question) for n, question in enumerate(asked)]

        async def admitted(talk: Talk) -> bool:
            if begins := going():
                await hold(desk, talk)
            return begins

        held = await _at_most(concurrency, [partial(admitted, talk) for talk in talks])
    return Report(
        users=users,
        conversations=sum(held),
        requests=desk.did.pop("requests", 0),
        did=dict(sorted(desk.did.items())),
        failures=dict(desk.failures),
        seconds=time.monotonic() - started,
        utility=interval(desk.replies),
        replies=desk.replies,
        received=desk.received,
        acknowledged=desk.acknowledged,
    )


async def measure(
    base_url: str,
    api_key: str,
    model: str,
    questions: Sequence[str],
    samples: int,
    seed: int,
    *,
    concurrency: int = 16,
) -> list[Judged]:
    """The true utility of `samples` replies to each question, each to a user of its own that nobody has met.

    Nothing is learned from these requests (`store: false`). Raises: openai.APIError on the first failure.
    """

    async def sample(client: AsyncOpenAI, n: int, question: str) -> Judged:
        user = person(seed, n, kind="unseen")
        completion = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            user=user.name,
            max_tokens=MAX_TOKENS,
            store=False,
        )
        return judged(user, question, completion.choices[0].message.content or "", completion)

    asked = [question for question in questions for _ in range(samples)]
    async with sdk(base_url, api_key) as client:
        return await _at_most(concurrency, [partial(sample, client, n, q) for n, q in enumerate(asked)])


@cache
def popularity(split: Split) -> tuple[float, ...]:
    """How often each question of a split is asked, by Zipf's law: at a help desk, a few come all the time."""
    ranks = list(range(1, len(helpdesk.questions(split)) + 1))
    Random(f"popularity-{split}").shuffle(ranks)
    return tuple(1.0 / rank for rank in ranks)


def interval(replies: Sequence[Judged]) -> Interval | None:
    """Mean true utility, 95 % interval clustered by question; None without replies."""
    if not replies:
        return None
    return clustered([r.utility for r in replies], [r.question for r in replies])


def person(seed: int, number: int, kind: str = "user") -> User:
    name = f"{kind}-{seed}-{number}"
    return User(name, helpdesk.draw_tastes(Random(f"{name}-tastes")), name)


def judged(user: User, question: str, reply: str, completion: Any) -> Judged:
    """`completion` is what the SDK returned: its id, and the `ratchet` extras if the server sent them."""
    extras = (completion.model_extra or {}).get("ratchet") or {}
    return Judged(
        question=question,
        reply=reply,
        utility=helpdesk.utility(helpdesk.traits(question, reply), user.tastes),
        response_id=completion.id,
        adapter=extras.get("adapter", ""),
        arm=extras.get("arm", ""),
    )


class Reply(msgspec.Struct, frozen=True):
    """A reply as its user sees it."""

    response_id: str
    text: str
    seems: float
    """How good it seems to the user: its utility and some noise, in [0, 1]."""
    beside: "Reply | None" = None
    """Another one that the service put beside it, for the user to choose."""


class Desk(msgspec.Struct, frozen=True):
    """What all conversations of a run share: the way to the service, and what they count into."""

    client: AsyncOpenAI
    model: str
    habits: Habits
    split: Split
    did: Counter[str]
    failures: Counter[str]
    replies: list[Judged]
    received: list[str]
    acknowledged: list[str]


class Talk(msgspec.Struct):
    """One conversation so far."""

    user: User
    rng: Random
    name: str | None
    """Conversation id that the client gives, if it gives one."""
    streams: bool
    question: str
    """The one that waits for an answer."""
    history: list[dict[str, str]]


def begun(desk: Desk, user: User, number: int, question: str) -> Talk:
    rng = Random(f"{user.seed}-{number}")
    name = f"{user.name}-{number}" if rng.random() < desk.habits.named else None
    return Talk(user, rng, name, rng.random() < desk.habits.stream, question, [])


async def hold(desk: Desk, talk: Talk) -> None:
    """From the first question to the last reply; a failed request is counted and ends it."""
    said: str | None = talk.question
    try:
        for _ in range(desk.habits.turns):
            if said is None:
                return
            said = await exchange(desk, talk, said)
    except openai.APIStatusError as e:
        desk.failures[str(e.status_code)] += 1
    except openai.OpenAIError as e:
        desk.failures[type(e).__name__] += 1


async def exchange(desk: Desk, talk: Talk, said: str) -> str | None:
    """One message, its reply, what the user does about it. Returns: the next message, None at the end."""
    talk.history.append({"role": "user", "content": said})
    reply = await ask(desk, talk, first=len(talk.history) == 1)
    if said in helpdesk.THANKS:
        return None
    if reply.beside is not None and chance(talk, desk.habits.pick):
        reply = await pick(desk, talk, reply, reply.beside)
    await press_buttons(desk, talk, reply)
    kept = (
        await regenerate(desk, talk, reply)
        if chance(talk, desk.habits.regenerate, 1 - reply.seems)
        else reply
    )
    edit = await put_right(desk, talk, kept) if chance(talk, desk.habits.edit, 1 - kept.seems) else kept.text
    talk.history.append({"role": "assistant", "content": edit})
    return next_message(desk, talk, kept, goes_on=kept is not reply or edit != kept.text)


async def ask(desk: Desk, talk: Talk, *, first: bool) -> Reply:
    """Send the history as it is; judge what comes back."""
    desk.did["requests"] += 1
    arguments: dict[str, Any] = {
        "model": desk.model,
        "messages": list(talk.history),
        "user": talk.user.name,
        "max_tokens": MAX_TOKENS,
        "extra_headers": {CONVERSATION_HEADER: talk.name} if talk.name else {},
        "extra_body": {"ratchet": {"compare": True}},
    }
    answered = await (streamed if talk.streams else whole)(desk.client, arguments)
    seen = judged(talk.user, talk.question, *answered)
    if first:
        desk.replies.append(seen)
    reply = received(desk, talk, seen.response_id, seen.reply)
    second = ((answered[1].model_extra or {}).get("ratchet") or {}).get("alternative")
    if second is None:
        return reply
    beside = received(desk, talk, second["response_id"], second["content"])
    return msgspec.structs.replace(reply, beside=beside)


def received(desk: Desk, talk: Talk, response_id: str, text: str) -> Reply:
    """The reply arrived, and the user has an opinion of it."""
    desk.received.append(response_id)
    utility = helpdesk.utility(helpdesk.traits(talk.question, text), talk.user.tastes)
    return Reply(response_id, text, min(1.0, max(0.0, talk.rng.gauss(utility, desk.habits.noise))))


async def whole(client: AsyncOpenAI, arguments: dict[str, Any]) -> tuple[str, Any]:
    completion = await client.chat.completions.create(**arguments)
    return completion.choices[0].message.content or "", completion


async def streamed(client: AsyncOpenAI, arguments: dict[str, Any]) -> tuple[str, Any]:
    """The text and the chunk that says most about it: the one with the extras, else the last."""
    parts: list[str] = []
    teller: Any = None
    async for chunk in await client.chat.completions.create(**arguments, stream=True):
        parts += [choice.delta.content or "" for choice in chunk.choices]
        if teller is None or "ratchet" not in (teller.model_extra or {}):
            teller = chunk
    if teller is None:
        raise openai.OpenAIError("the stream ended before its first chunk")
    return "".join(parts), teller


async def pick(desk: Desk, talk: Talk, reply: Reply, beside: Reply) -> Reply:
    """Read the second reply, say which of the two seems better. Returns: that one."""
    await asyncio.sleep(len(beside.text.split()) / desk.habits.words_per_s)
    desk.did["picks"] += 1
    better, worse = (beside, reply) if beside.seems > reply.seems else (reply, beside)
    await tell(desk, talk, better, kind="comparison", value=1.0, other_response_id=worse.response_id)
    return better


async def press_buttons(desk: Desk, talk: Talk, reply: Reply) -> None:
    """Thumb and copy: a few users press, more of the pleased ones than of the others."""
    habits = desk.habits
    pleased = talk.rng.random() < sigmoid((reply.seems - habits.indifferent) / 0.08)
    if chance(talk, habits.thumbs_up if pleased else habits.thumbs_down):
        up = pleased != chance(talk, habits.slip)
        desk.did["thumbs_up" if up else "thumbs_down"] += 1
        await tell(desk, talk, reply, kind="thumb", value=float(up))
    if chance(talk, habits.copy, reply.seems):
        desk.did["copies"] += 1
        await tell(desk, talk, reply, kind="copy")


async def regenerate(desk: Desk, talk: Talk, reply: Reply) -> Reply:
    """Ask the same again; keep what seems better, and at times say so when asked."""
    desk.did["regenerations"] += 1
    again = await ask(desk, talk, first=False)
    better, worse = (again, reply) if again.seems > reply.seems else (reply, again)
    if chance(talk, desk.habits.compare):
        desk.did["comparisons"] += 1
        await tell(desk, talk, better, kind="comparison", value=1.0, other_response_id=worse.response_id)
    return better


async def put_right(desk: Desk, talk: Talk, reply: Reply) -> str:
    """Edit the reply: by feedback, or only in the history. Returns: the text that the history shall carry."""
    text = helpdesk.improved(talk.question, reply.text)
    if text == reply.text:
        return text
    if chance(talk, desk.habits.explicit_edit):
        desk.did["explicit_edits"] += 1
        await tell(desk, talk, reply, kind="edit", text=text)
        return reply.text
    desk.did["edits"] += 1
    return text


def next_message(desk: Desk, talk: Talk, reply: Reply, *, goes_on: bool) -> str | None:
    """A complaint, a new question, thanks, or None: the user leaves.

    `goes_on`: a reply was chosen or edited, which shows only in a history that is sent once more.
    """
    habits = desk.habits
    if not goes_on and chance(talk, habits.complain, 1 - reply.seems):
        desk.did["complaints"] += 1
        return complaint(talk, reply)
    if chance(talk, habits.follow_up):
        desk.did["follow_ups"] += 1
        talk.question = talk.rng.choice(helpdesk.questions(desk.split))
        return talk.question
    if goes_on or chance(talk, habits.thank, reply.seems):
        desk.did["thanks"] += 1
        return talk.rng.choice(helpdesk.THANKS)
    return None


def complaint(talk: Talk, reply: Reply) -> str:
    """What is worst about the reply, in the user's words."""
    traits = helpdesk.traits(talk.question, reply.text)
    if traits.correct < 1.0:
        if talk.rng.random() < 0.5:
            return f"{talk.rng.choice(helpdesk.MISUNDERSTOOD)} {talk.question}"
        return talk.rng.choice(helpdesk.COMPLAINTS)
    if traits.rude:
        return talk.rng.choice(helpdesk.KINDER)
    if traits.words > 2 * talk.user.tastes.ideal_words:
        return talk.rng.choice(helpdesk.SHORTER)
    return talk.rng.choice(helpdesk.COMPLAINTS)


async def tell(desk: Desk, talk: Talk, reply: Reply, **signal: str | float) -> None:
    """POST /v1/feedback, once: the id of the attempt makes a retry harmless."""
    body = {
        "response_id": reply.response_id,
        "user": talk.user.name,
        "idempotency_key": f"{reply.response_id}-{signal['kind']}-{signal.get('other_response_id', '')}",
        **signal,
    }
    accepted: Any = await desk.client.post("/feedback", body=body, cast_to=object)
    desk.acknowledged.append(accepted["signal_id"])


def chance(talk: Talk, probability: float, times: float = 1.0) -> bool:
    return talk.rng.random() < probability * times


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def sdk(base_url: str, api_key: str) -> AsyncOpenAI:
    """The OpenAI client; it retries nothing, so that every failure counts."""
    return AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=120.0)


async def _at_most(concurrency: int, jobs: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Results in order, with at most `concurrency` jobs under way. The first error cancels the rest."""
    free = asyncio.Semaphore(concurrency)

    async def admitted(job: Callable[[], Awaitable[T]]) -> T:
        async with free:
            return await job()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(admitted(job)) for job in jobs]
    return [task.result() for task in tasks]

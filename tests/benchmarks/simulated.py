"""The simulated help desk around the embedded base model, in one process: its users' feedback, and the truth.

The users are the demo's (`ops.simulation.users`); where their OpenAI client would be, `Office` draws the
replies of all who wait in one batch and notes what the gateway would record. Rows come from those events by
the pipeline's own functions. What takes long is kept in build/studies: a stopped study goes on where it was.
"""

import asyncio
import hashlib
import math
import os
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain, count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import torch

from feedback import snapshots
from feedback.config import Deployment, Pipeline, section
from feedback.derivation import VERSION, derive
from feedback.events import (
    Draw,
    Event,
    Exposure,
    IdentitySource,
    Message,
    SignalKind,
    SignalReceived,
    TurnRecorded,
    signal_event,
    turn_event,
)
from feedback.text import plain
from learner import base, methods, train_policy, train_reward, turn
from learner.batches import Encoder, GradeRow, PairRow, Prompt, RewardData, Sample, Target
from learner.checkpoints import write_atomically
from learner.config import Learner
from learner.methods import Material
from learner.models import LanguageActor, Role, Trunk, load_trunk
from learner.sampling import LocalSampler
from learner.train_reward import RewardModel, RewardReport
from ops import store
from ops.simulation import demo, helpdesk, users

T = TypeVar("T")

LEARNER = msgspec.convert(
    tomllib.loads(demo.CONFIG.format(data_dir="", port=0, min_new_weight=1))["learner"]
    | {"sampler": "local", "policy_steps": 10, "prompts_per_step": 24, "checkpoint_every": 1},
    Learner,
)
"""The demo's: learning rates that suit so small a model, and the defaults. About half as many samples."""
HABITS = users.Habits(
    turns=1, stream=0.0, named=1.0, thumbs_up=0.7, thumbs_down=0.5, explicit_edit=1.0, words_per_s=math.inf
)
"""The demo's users, who ask one question each, press twice as often and send what they edit. Their seconds of
reading are noted, not waited for."""
PIPELINE = Pipeline(retry_window_s=0.0)
COMPARISON_RATE = 0.1
WAVE = 256
"""Conversations at a time."""
START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
STEP = timedelta(seconds=30)
"""Between two events of a conversation: time enough to read two replies."""

QUESTIONS = tuple(Random(0).sample(helpdesk.questions("heldout"), 150))
"""What the truth is taken on: other wordings of what users asked, and topics that nobody asked about."""
REPLIES = 2
"""To each of them."""


def seeds(usual: int) -> range:
    """From 1: settings are chosen on seed 0. RATCHET_STUDY_SEEDS asks for more of them, or fewer."""
    return range(1, int(os.environ.get("RATCHET_STUDY_SEEDS", usual)) + 1)


@cache
def base_dir() -> Path:
    return base.ensure(section({}, "deployment", Deployment))


@cache
def folder() -> Path:
    """Results of this base model, these settings and this derivation; others have another folder."""
    world = [LEARNER, HABITS, PIPELINE, VERSION, store.base_digest(base_dir())]
    values = msgspec.json.encode(world, order="sorted")
    return Path("build/studies") / hashlib.sha256(values).hexdigest()[:12]


def named(what: str, learner: Learner) -> str:
    """`what` under these settings: a file name that another setting changes."""
    digest = hashlib.sha256(msgspec.json.encode(learner, order="sorted")).hexdigest()
    return f"{what}-{digest[:8]}"


def kept(path: Path, kind: type[T], make: Callable[[], T]) -> T:
    """What an earlier run left in `path`, or made now and left there; says what it cost."""
    if not path.exists():
        begun = time.process_time()
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(found))
        print(f"{path.relative_to(folder())}: {time.process_time() - begun:.0f} s of CPU", file=sys.stderr)
    return msgspec.json.decode(path.read_bytes(), type=kind)


def all_kept(pattern: str, kind: type[T]) -> list[T]:
    """What earlier runs left in the paths that match, in their order."""
    return [msgspec.json.decode(path.read_bytes(), type=kind) for path in sorted(folder().glob(pattern))]


def fresh_trunk(seed: int) -> Trunk:
    torch.set_num_threads(1)
    return load_trunk(base_dir(), rank=LEARNER.rank, seed=seed)


# feedback


@dataclass(frozen=True)
class Ask:
    """A request that waits for its reply."""

    conversation: str
    user: str
    messages: tuple[Message, ...]
    answer: "asyncio.Future[Any]"


class Office:
    """What the users' client reaches: replies of the base model, and a note of all that happens.

    Nobody is answered before everybody waits: so replies are drawn in large batches, and depend on no time.
    """

    def __init__(self, trunk: Trunk, seed: int, conversations: int) -> None:
        self.chat = SimpleNamespace(completions=self)
        self.events: dict[str, list[Event]] = defaultdict(list)
        self._encoder, self._sampler = trunk.encoder, LocalSampler(trunk)
        self._seed, self._chance = seed, Random(f"{seed}-office")
        self._open, self._batches = conversations, 0
        self._waiting: list[Ask] = []
        self._places: dict[str, str] = {}

    async def create(
        self, *, messages: Sequence[Message], user: str, extra_headers: dict[str, str], **_: object
    ) -> Any:
        """A chat completion, as the OpenAI client returns it."""
        answer = asyncio.get_running_loop().create_future()
        name = extra_headers[users.CONVERSATION_HEADER]
        self._waiting.append(Ask(name, user, tuple(messages), answer))
        self._answer_when_all_wait()
        return await answer

    async def post(self, path: str, *, body: dict[str, Any], cast_to: type) -> dict[str, str]:
        """`POST /v1/feedback`."""
        conversation = self._places[body["response_id"]]
        signal = SignalReceived(
            signal_id=body["idempotency_key"],
            response_id=body["response_id"],
            conversation_id=conversation,
            principal="simulation",
            user=body["user"],
            kind=SignalKind(body["kind"]),
            value=body.get("value"),
            text=body.get("text"),
            other_response_id=body.get("other_response_id"),
            received_at=self._now(conversation),
        )
        self.events[conversation].append(signal_event(signal))
        return {"signal_id": signal.signal_id}

    def leave(self) -> None:
        """A conversation is over."""
        self._open -= 1
        self._answer_when_all_wait()

    def _answer_when_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < self._open:
            return
        asks, self._waiting = sorted(self._waiting, key=lambda ask: ask.conversation), []
        beside = [self._chance.random() < COMPARISON_RATE for _ in asks]
        drawn = iter(
            self._drawn([ask for ask, two in zip(asks, beside, strict=True) for _ in range(1 + two)])
        )
        for ask, two in zip(asks, beside, strict=True):
            ask.answer.set_result(self._reply(ask, next(drawn), next(drawn) if two else None))

    def _drawn(self, asks: Sequence[Ask]) -> list[Sample]:
        self._batches += 1
        return self._sampler.sample(
            Role.ROOT,
            [self._encoder.prompt("", ask.messages) for ask in asks],
            n=1,
            temperature=LEARNER.temperature,
            max_tokens=LEARNER.max_reply_tokens,
            seed=self._seed * 1000 + self._batches,
        )

    def _reply(self, ask: Ask, sample: Sample, other: Sample | None) -> Any:
        """The completion, with the other reply beside it unless both say the same."""
        at, first = self._now(ask.conversation), f"{ask.conversation}-r{len(self.events[ask.conversation])}"
        text = self._encoder.text(sample)
        if other is None or plain(said := self._encoder.text(other)) == plain(text):
            self._record(ask, first, at, sample, None)
            return _completion(first, text, {})
        second = f"{first}b"
        left = self._chance.random() < 0.5
        self._record(ask, first, at, sample, _exposure(second, left, Draw.ASSIGNED, at))
        self._record(ask, second, at, other, _exposure(first, not left, Draw.RESAMPLED, at))
        return _completion(first, text, {"alternative": {"response_id": second, "content": said}})

    def _record(self, ask: Ask, name: str, at: datetime, sample: Sample, exposure: Exposure | None) -> None:
        self._places[name] = ask.conversation
        recorded = TurnRecorded(
            response_id=name,
            conversation_id=ask.conversation,
            identity=IdentitySource.EXPLICIT,
            principal="simulation",
            user=ask.user,
            adapter="base",
            arm="stable",
            propensity=1.0,
            messages=ask.messages,
            reply={"role": "assistant", "content": self._encoder.text(sample)},
            finish_reason=sample.finish,
            started_at=at,
            duration_s=1.0,
            exposure=exposure,
        )
        self.events[ask.conversation].append(turn_event(recorded))

    def _now(self, conversation: str) -> datetime:
        number = int(conversation.rpartition("-")[2])
        return START + number * STEP + len(self.events[conversation]) * STEP


def _exposure(partner: str, left: bool, draw: Draw, at: datetime) -> Exposure:
    side = "left" if left else "right"
    return Exposure(partner=partner, side=side, draw=draw, propensity=COMPARISON_RATE, shown_at=at)


def _completion(name: str, text: str, extras: dict[str, Any]) -> Any:
    message = SimpleNamespace(content=text)
    return SimpleNamespace(
        id=name, choices=[SimpleNamespace(message=message)], model_extra={"ratchet": extras}
    )


async def chat(trunk: Trunk, seed: int, conversations: int = WAVE) -> list[list[Event]]:
    """What a wave of conversations leaves behind, one list each."""
    office = Office(trunk, seed, conversations)
    desk = users.Desk(office, users.MODEL, HABITS, "seen", Counter(), Counter(), [], [], [])
    rng = Random(f"{seed}-questions")
    asked = rng.choices(helpdesk.questions("seen"), users.popularity("seen"), k=conversations)

    async def hold(n: int, question: str) -> None:
        await users.hold(desk, users.begun(desk, users.person(seed, n), n, question))
        office.leave()

    async with asyncio.TaskGroup() as group:
        for n, question in enumerate(asked):
            group.create_task(hold(n, question))
    return list(office.events.values())


def signals_of(conversation: Iterable[Event]) -> int:
    """What users sent to the feedback API. Whatever else the traffic shows comes on top."""
    return sum(isinstance(event.data, SignalReceived) for event in conversation)


def gathered(trunk: Trunk, seed: int, signals: int) -> list[list[Event]]:
    """Conversations in order of time until users have sent so many signals: less is always a part of more."""
    found: list[list[Event]] = []
    sent = 0
    for wave in count():
        path = folder() / f"feedback/{seed}/{wave:03d}.json"
        number = seed * 1000 + wave
        for conversation in kept(path, list[list[Event]], lambda n=number: asyncio.run(chat(trunk, n))):
            found.append(conversation)
            sent += signals_of(conversation)
            if sent >= signals:
                return found
    raise AssertionError("waves never end")


def learned_from(conversations: Sequence[Sequence[Event]], encoder: Encoder) -> Material:
    """The snapshot's rows of these conversations as token ids."""
    derived = [derive(events, retry_window_s=PIPELINE.retry_window_s) for events in conversations]
    rows = snapshots.assemble(
        grades=chain.from_iterable(d.grades for d in derived),
        pairs=chain.from_iterable(d.pairs for d in derived),
        demonstrations=chain.from_iterable(d.demonstrations for d in derived),
        asked=chain.from_iterable(d.asked for d in derived),
        config=PIPELINE,
    ).rows

    def said(row: snapshots.Row, column: str) -> Sample:
        return encoder.reply(encoder.prompt(row["prompt_digest"], row["prompt"]), row[column][0]["content"])

    def of(table: str, split: str) -> list[snapshots.Row]:
        return [row for row in rows[table] if row["split"] == split]

    def pairs(split: str) -> list[PairRow]:
        return [
            PairRow(said(r, "chosen"), said(r, "rejected"), r["p"], r["weight"], r["kind"])
            for r in of("pairs", split)
        ]

    def grades(split: str) -> list[GradeRow]:
        return [GradeRow(said(r, "completion"), r["p"], r["weight"], r["kind"]) for r in of("grades", split)]

    prompts = [encoder.prompt(row["prompt_digest"], row["prompt"]) for row in of("prompts", "train")]
    return Material(
        prompts=[p for p in prompts if len(p.ids) <= LEARNER.max_prompt_tokens],
        data=RewardData(pairs("train"), grades("train"), pairs("heldout"), grades("heldout")),
        edits=[Target(said(row, "completion"), row["weight"]) for row in of("demonstrations", "train")],
    )


# training and truth


def prompt(encoder: Encoder, question: str) -> Prompt:
    """A question that opens a conversation; its digest is the question."""
    return encoder.prompt(question, [{"role": "user", "content": question}])


def draw(trunk: Trunk, role: Role, questions: Sequence[str], n: int, seed: int) -> list[Sample]:
    return LocalSampler(trunk).sample(
        role,
        [prompt(trunk.encoder, question) for question in questions],
        n=n,
        temperature=LEARNER.temperature,
        max_tokens=LEARNER.max_reply_tokens,
        seed=seed,
    )


def reward_model(
    trunk: Trunk, data: RewardData, prompts: Sequence[Prompt], learner: Learner, seed: int, place: Path
) -> tuple[RewardModel, RewardReport]:
    """The one in `place`, fitted first where it is not there, in the way of a turn of the loop."""
    if not (place / "report.json").exists():
        begun = time.process_time()
        model, losses = train_reward.train(trunk, data, turn.reward_settings(learner, seed))
        chosen = Random(seed).choices(prompts, k=learner.root_samples)
        root = LocalSampler(trunk).sample(
            Role.ROOT, chosen, n=1, temperature=1.0, max_tokens=learner.max_reply_tokens, seed=seed
        )
        train_reward.standardise(model, root)
        train_reward.save(model, train_reward.report(model, data, losses, root), place)
        print(f"{place.relative_to(folder())}: {time.process_time() - begun:.0f} s of CPU", file=sys.stderr)
    return train_reward.load(trunk, place, learner.reward_uncertainty)


def gold(encoder: Encoder, sample: Sample) -> float:
    """True utility, 0 to 1, of a reply to a question of `prompt`."""
    return helpdesk.utility(helpdesk.traits(sample.prompt.digest, encoder.text(sample)))


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy is worth on `QUESTIONS`."""

    utilities: list[float]
    """Mean over the replies to each question, in their order."""
    kl_nats: float
    """To the root reference, per reply."""
    words: float
    """Per reply."""


def worth(trunk: Trunk, role: Role, seed: int) -> Worth:
    samples = draw(trunk, role, QUESTIONS, REPLIES, seed)
    utilities = [gold(trunk.encoder, sample) for sample in samples]
    actor, settings = LanguageActor(trunk), methods.ppo_settings(LEARNER, seed)
    found = train_policy.gather(actor, samples, lambda drawn: torch.zeros(len(drawn)), settings)
    return Worth(
        utilities=[sum(utilities[i : i + REPLIES]) / REPLIES for i in range(0, len(samples), REPLIES)],
        kl_nats=found.kl_per_reply if role is Role.POLICY else 0.0,
        words=sum(len(trunk.encoder.text(s).split()) for s in samples) / len(samples),
    )

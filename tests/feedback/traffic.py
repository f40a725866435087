"""Generated chat traffic as the gateway would record it, with what the people behind it really did.

People act, clients turn that into OpenAI requests, each client with habits of its own; the labels are written
down when somebody acts, before anything is sent. Nothing here knows how `feedback.implicit` decides.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec

from feedback.events import Event, Message, SignalKind, TurnRecorded, TurnStatus, turn_event
from serving.asked import identify, parse
from tests.feedback.builders import assistant, system, user
from tests.feedback.wordings import Material, Topic

Label = tuple[SignalKind, str]
"""A kind, and the reply that it is about."""
History = list[Message]

JUDGED = (SignalKind.EDIT, SignalKind.REGENERATION)
REACTIONS = (SignalKind.CORRECTION, SignalKind.REPHRASE, SignalKind.THANKS, SignalKind.CONTINUATION)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SECRET = b"labelled traffic"


@dataclass
class Record:
    """What went over the wire, and what was meant by it."""

    events: list[Event] = field(default_factory=list)
    truth: set[Label] = field(default_factory=set)
    traps: list[tuple[str, Label]] = field(default_factory=list)
    """A hard negative's name, and the label that would be wrong."""

    def trap(self, name: str, response_id: str, *kinds: SignalKind) -> None:
        self.traps.extend((name, (kind, response_id)) for kind in kinds)


@dataclass(frozen=True)
class Client:
    """Habits of the program that a person chats with."""

    names: str
    """How it names conversation and user: `header`, `metadata`, `user` or `nothing`."""
    habit: str = ""
    """The name of the hard negative that its habits are."""
    rewrite: Callable[[str], str] = str
    """What it does to each reply it keeps."""
    resend: Callable[[History, str], History] = lambda history, about: history
    """What it makes of the history before it sends it; `about` is the first question."""
    system: str = ""
    tools: bool = False
    errand: str = ""
    """What it asks on its own after each reply."""
    errand_apart: bool = False
    """The errand goes out in a request of its own that quotes the chat; else at the end of the history."""
    fools: tuple[SignalKind, ...] = (SignalKind.EDIT,)
    """What its habit could be mistaken for."""
    calls: int = 1
    """Tools that it calls at once, where it has `tools`: three at most."""
    buttons: bool = True
    """Whether one can have a reply again, or change a message, in it."""
    served: Callable[[str], str] = str
    """What a model answers with here: some write down their thoughts first."""


# --- what clients do to replies and histories


def collapse(text: str) -> str:
    return " ".join(text.split())


def pad(text: str) -> str:
    return text.replace("\n", " \r\n").replace(". ", ".  ") + "\n\n"


def without_markdown(text: str) -> str:
    text = re.sub(r"```\w*\n?", "", text)
    return re.sub(r"\*\*|`|^#+ |^[-*] |^\d+\. ", "", text, flags=re.MULTILINE)


def with_markdown(text: str) -> str:
    first, _, rest = text.partition(" ")
    return f"**{first}** {rest}".replace("\n- ", "\n* ")


def typographic(text: str) -> str:
    return re.sub(r"'([^']*)'", "‘\\1’", text).replace("...", "…").replace(" - ", " – ")


def escaped(text: str) -> str:
    for plain, entity in (("&", "&amp;"), ("'", "&#39;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, entity)
    return text


def unbreakable(text: str) -> str:
    return re.sub(r"(\d) ", "\\1\u00a0", text).replace("-", "\u2011").replace(", ", ",\u200b ")


def bulleted(text: str) -> str:
    return re.sub(r"^(?:[-*]|\d+\.) ", "• ", text, flags=re.MULTILINE).replace("\n", "<br>\n")


REWRITES = {
    "development": (collapse, pad, without_markdown, with_markdown, typographic),
    "released": (collapse, without_markdown, escaped, unbreakable, bulleted),
}


def last(count: int) -> Callable[[History, str], History]:
    return lambda history, about: history[-count:]


def first_and_last(count: int) -> Callable[[History, str], History]:
    return lambda history, about: history if len(history) <= count + 2 else history[:2] + history[-count:]


def old_replies_cut(chars: int, mark: str) -> Callable[[History, str], History]:
    def cut(message: Message) -> Message:
        text = message.get("content") or ""
        long = message["role"] == "assistant" and len(text) > chars
        return {**message, "content": text[:chars] + mark} if long else message

    return lambda history, about: [cut(m) for m in history[:-2]] + history[-2:]


def all_replies_cut(chars: int, mark: str) -> Callable[[History, str], History]:
    def cut(message: Message) -> Message:
        text = message.get("content") or ""
        long = message["role"] == "assistant" and len(text) > 2 * chars
        return {**message, "content": f"{text[:chars]}{mark}{text[-chars:]}"} if long else message

    return lambda history, about: [cut(m) for m in history]


def summarised(summary: str, role: str) -> Callable[[History, str], History]:
    """Everything but the last exchange becomes one message: of the system, or as if the assistant said it."""

    def resend(history: History, about: str) -> History:
        if len(history) < 6:
            return history
        return [{"role": role, "content": summary.format(about=about)}, *history[-3:]]

    return resend


# --- people


@dataclass
class Chat:
    """One person in one chat of one client."""

    rng: random.Random
    record: Record
    material: Material
    manners: "Manners"
    topic: Topic
    client: Client
    person: str
    name: str
    """Of the conversation, as the client would put it."""
    clock: float
    """Seconds after NOON."""
    sampled: random.Random | None = None
    """Another source of replies: two chats that share one get the same replies."""
    history: History = field(default_factory=list)
    shown: str = ""
    """Id of the reply that is being looked at."""
    unused: list[str] = field(default_factory=list)
    """Other wordings of the question just asked."""
    about: str = ""
    meant: list[str] = field(default_factory=list)
    """What was said, before slips of the keyboard."""

    def typed(self, text: str) -> str:
        return self.manners.types(self.rng, text)

    def reads(self, low: float = 3.0, typical: float = 20.0) -> None:
        self.clock += low + typical * self.rng.lognormvariate(0.0, 0.8)

    def request(
        self, history: History, *, status: TurnStatus = TurnStatus.COMPLETE, calls: bool = False
    ) -> str:
        """Send a history as this client would; the reply's id. Takes as long as the reply does."""
        number = len(self.record.events)
        response_id = f"{self.name}-{number}"
        reply = self.tool_call(number) if calls else assistant(self.reply())
        duration_s = self.rng.uniform(0.8, 9.0)
        fields: dict[str, object] = {"messages": self.sent(history)}
        headers = {}
        if self.client.names == "header":
            headers[b"x-ratchet-conversation"] = self.name.encode()
        if self.client.names == "metadata":
            fields["metadata"] = {"conversation_id": self.name}
        if self.client.names in ("user", "metadata"):
            fields["user"] = self.person
        asked = parse(json.dumps(fields).encode(), headers)
        conversation, identity = identify(asked, "acme", SECRET)
        self.record.events.append(
            turn_event(
                TurnRecorded(
                    response_id=response_id,
                    conversation_id=conversation,
                    identity=identity,
                    principal="acme",
                    user=asked.user or "acme",
                    adapter="base-00000000",
                    arm="stable",
                    propensity=1.0,
                    messages=asked.messages,
                    reply=reply,
                    status=status,
                    started_at=NOON + timedelta(seconds=self.clock),
                    duration_s=duration_s,
                )
            )
        )
        self.clock += duration_s
        return response_id

    def sent(self, history: History) -> History:
        moment = NOON + timedelta(seconds=self.clock)
        made = self.client.resend(history, self.about)
        if not self.client.system:
            return made
        filled = self.client.system.format(
            time=moment.strftime("%H:%M:%S"), date=moment.strftime("%A, %d %B %Y"), user=self.person
        )
        return [system(filled), *made]

    def reply(self) -> str:
        written = self.manners.answers(self.sampled or self.rng, self.material, self.topic)
        return self.client.served(written)

    def tool_call(self, number: int) -> Message:
        function = {"name": "look_up", "arguments": "{}"}
        marks = ("", "b", "c")[: self.client.calls]
        calls = [{"id": f"call_{number}{mark}", "type": "function", "function": function} for mark in marks]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    def text_of(self, response_id: str) -> str:
        return next(
            e.data.reply["content"]
            for e in reversed(self.record.events)
            if isinstance(e.data, TurnRecorded) and e.data.response_id == response_id
        )

    def ask(self, text: str, *, wordings: Sequence[str] = (), ending: str = "") -> None:
        """Say something and get an answer."""
        self.about = self.about or text
        self.unused = [w for w in wordings if w != text]
        self.history.append(user(text))
        self.answer(ending)

    def answer(self, ending: str = "") -> None:
        """Have the client get an answer to the history as it stands."""
        if self.client.tools and self.rng.random() < 0.6:
            called = self.request(self.history, calls=True)
            step = self.record.events[-1].data.reply
            seen = f'{{"seen": "{called}"}}'
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": seen} for call in step["tool_calls"]
            ]
            self.history += [step, *results]
            self.clock += self.rng.uniform(0.2, 3.0)
        self.show(self.request(self.history), ending)

    def show(self, response_id: str, ending: str = "") -> None:
        self.shown = response_id
        served = self.text_of(response_id)
        if ending:
            event = self.record.events[-1]
            served = f"{served} {ending}"
            data = replace_reply(event, served)
            self.record.events[-1] = data
        self.history.append(assistant(self.client.rewrite(served)))
        if self.client.habit:
            self.record.trap(self.client.habit, response_id, *self.client.fools)
        if self.client.errand:
            self.record.trap("errands of the client (a title, suggestions)", response_id, *REACTIONS[:2])
            now = self.clock
            self.clock += self.rng.uniform(0.02, 0.9)
            self.request(self.errand())
            self.clock = now

    def errand(self) -> History:
        if not self.client.errand_apart:
            return [*self.history, user(self.client.errand)]
        quoted = "\n".join(f"{m['role'].upper()}: {m['content']}" for m in self.history if m.get("content"))
        return [user(f"{self.client.errand}\n<chat_history>\n{quoted}\n</chat_history>")]

    # what people do

    def react(self, kind: SignalKind, text: str, *, wordings: Sequence[str] = (), trap: str = "") -> None:
        """Answer the reply that is shown."""
        self.record.truth.add((kind, self.shown))
        if trap:
            wrong = {SignalKind.CORRECTION, SignalKind.REPHRASE, SignalKind.THANKS} - {kind}
            self.record.trap(trap, self.shown, *sorted(wrong))
        self.reads()
        self.says(text, wordings)

    def says(self, text: str, wordings: Sequence[str]) -> None:
        self.meant.append(text)
        self.ask(self.typed(text), wordings=wordings)

    def fill(self, template: str) -> str:
        asked = self.rng.choice(self.unused) if self.unused else self.question()
        return template.format(
            instead=self.topic.instead,
            asked=asked,
            same=self.said(),
            next=self.fresh(self.topic.following),
            fact=self.rng.choice(self.topic.facts),
        )

    def question(self) -> str:
        return self.rng.choice(self.topic.asked)

    def fresh(self, pool: Sequence[str]) -> str:
        """One that was not said yet in this chat: asked a second time, a question would be no new one."""
        came_up = self.came_up()
        left = [text for text in pool if text.casefold() not in came_up]
        return self.rng.choice(left or self.elsewhere().asked)

    def elsewhere(self) -> Topic:
        """A topic that this chat has not come to."""
        came_up = self.came_up()
        left = [
            t
            for t in self.material.topics
            if not any(q.casefold() in came_up for q in (*t.asked, *t.following))
        ]
        return self.rng.choice([t for t in left if t is not self.topic])

    def came_up(self) -> str:
        return " ".join(
            [*self.meant, *(m["content"] for m in self.history if m["role"] == "user")]
        ).casefold()

    def said(self) -> str:
        return next(m["content"] for m in reversed(self.history) if m["role"] == "user")

    def start(self) -> None:
        self.says(self.question(), self.topic.asked)

    def goes_on(self) -> None:
        self.react(
            SignalKind.CONTINUATION,
            self.fill(self.rng.choice(self.material.going_on)),
            trap="an honest follow-up question that shares words",
        )

    def asks_alike(self) -> None:
        if self.topic.sibling in self.meant:
            return self.goes_on()
        self.react(
            SignalKind.CONTINUATION,
            self.topic.sibling,
            trap="a question of the same build about something else",
        )

    def changes_topic(self) -> None:
        self.topic = self.elsewhere()
        self.react(SignalKind.CONTINUATION, self.question(), wordings=self.topic.asked)

    def nods(self) -> None:
        self.react(SignalKind.CONTINUATION, self.rng.choice(self.material.nods))

    def thanks(self) -> None:
        pool = self.material.thanks if self.rng.random() < 0.6 else self.material.thanks_and
        self.react(SignalKind.THANKS, self.fill(self.rng.choice(pool)))

    def complains_politely(self) -> None:
        self.react(
            SignalKind.CORRECTION,
            self.fill(self.rng.choice(self.material.thanks_but)),
            trap="thanks followed by a complaint",
        )

    def corrects(self) -> None:
        template = self.rng.choice(self.material.corrections)
        self.react(SignalKind.CORRECTION, self.fill(template))

    def rephrases(self) -> None:
        if not self.unused:
            return self.goes_on()
        template = self.rng.choice(self.material.rephrasings)
        self.react(SignalKind.REPHRASE, self.fill(template), wordings=self.unused)

    def declines(self) -> None:
        template = self.rng.choice(self.material.declines)
        self.react(SignalKind.CONTINUATION, self.fill(template), trap="a polite no")

    def quotes(self) -> None:
        template = self.rng.choice(self.material.quotes)
        self.react(SignalKind.CONTINUATION, self.fill(template), trap="quoted text and talk about mistakes")

    def slips(self) -> None:
        template = self.rng.choice(self.material.slips)
        self.react(SignalKind.CONTINUATION, self.fill(template), trap="the user's own slip, put right")

    def answers_no(self) -> None:
        """The assistant asks back; the user says no."""
        ask, no = self.topic.check
        self.record.truth.add((SignalKind.CONTINUATION, self.shown))
        self.reads()
        self.ask(self.fresh(self.topic.following), ending=ask)
        self.react(SignalKind.CONTINUATION, no, trap="no, in answer to the assistant's question")

    def regenerates(self) -> None:
        """Not content: once more, please. Some look at both and keep the first."""
        first, kept = self.shown, list(self.history)
        self.record.truth.add((SignalKind.REGENERATION, first))
        self.clock += 1.2 + 9.0 * self.rng.lognormvariate(0.0, 1.0)
        self.history = self.before_reply()
        if self.client.tools and self.rng.random() < 0.5:
            self.history = self.up_to_question()
        self.answer()
        if self.rng.random() < 0.1:
            self.history, self.shown = kept, first

    def before_reply(self) -> History:
        return self.history[:-1]

    def up_to_question(self) -> History:
        at = max(i for i, m in enumerate(self.history) if m["role"] == "user")
        return self.history[: at + 1]

    def edits(self) -> None:
        """Put the reply right in place and go on with it."""
        self.record.truth.add((SignalKind.EDIT, self.shown))
        self.record.traps = [t for t in self.record.traps if t[1] != (SignalKind.EDIT, self.shown)]
        self.history[-1] = assistant(
            self.manners.edits(self.rng, self.history[-1]["content"], self.material, self.topic)
        )
        self.reads(10.0, 40.0)
        self.ask(self.fresh((*self.material.nods, *self.topic.following)))

    def branches(self) -> None:
        """Go back and ask the last question differently."""
        if len([m for m in self.history if m["role"] == "user"]) < 2:
            return self.goes_on()
        self.record.truth.add((SignalKind.BRANCH, self.shown))
        self.record.trap("branch by an edited question", self.shown, SignalKind.REGENERATION)
        history, said = self.up_to_question()[:-1], self.said()
        pool = [q for q in (*self.topic.following, *self.topic.asked) if q.casefold() not in said.casefold()]
        self.history = history
        self.reads()
        self.ask(self.fresh(pool))

    def meets_a_bad_network(self) -> None:
        """The client sends the same request again by itself; the person sees only the last reply."""
        self.record.truth.add((SignalKind.CONTINUATION, self.shown))
        self.reads()
        self.history.append(user(self.fresh(self.topic.following)))
        self.unused = []
        for _ in range(self.rng.randint(1, 2)):
            way = self.rng.random()
            status = TurnStatus.ABORTED if way < 0.5 else TurnStatus.COMPLETE
            lost = self.request(self.history, status=status)
            self.record.trap("retry after a network error", lost, SignalKind.REGENERATION)
            if way < 0.5:  # broken off: by backing off, or by hand
                self.clock += self.rng.uniform(0.3, 20.0)
            elif way < 0.75:  # whole, but its end was lost
                self.clock += self.rng.uniform(0.2, 1.9)
            else:  # timed out at the client, still running at the gateway
                self.clock -= self.rng.uniform(0.1, 0.7)
        self.show(self.request(self.history))

    def switches_setting(self) -> None:
        """The same question under other instructions."""
        self.record.trap("system prompt changed", self.shown, SignalKind.REGENERATION)
        self.reads()
        self.client = changed(self.client, system=self.rng.choice(self.material.settings))
        self.history = self.before_reply()
        self.answer()


@dataclass(frozen=True)
class Manners:
    """How the people, clients and assistants of one set go about what its `Material` has words for."""

    client: Callable[[random.Random, Material], Client]
    deeds: Sequence[tuple[Callable[[Chat], None], int]]
    """What people do with a reply, and how often."""
    scenes: Sequence[tuple[float, Callable[[Chat], None]]]
    """Whole chats that go another way than question, answer, deed: the share of all chats, and how."""
    types: Callable[[random.Random, str], str]
    answers: Callable[[random.Random, Material, Topic], str]
    edits: Callable[[random.Random, str, Material, Topic], str]


def changed(client: Client, **fields: object) -> Client:
    return Client(**{**client.__dict__, **fields})  # type: ignore[arg-type]


def replace_reply(event: Event, text: str) -> Event:
    data = msgspec.structs.replace(event.data, reply=assistant(text))
    return msgspec.structs.replace(event, data=data)


def typed(rng: random.Random, text: str) -> str:
    """As people type: sometimes in lower case, sometimes with a slip."""
    if rng.random() < 0.12:
        text = text[:1].lower() + text[1:].rstrip(".")
    at = rng.randrange(len(text))
    if rng.random() < 0.08 and text[at : at + 2].isalpha():
        text = text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
    return text


def answered(rng: random.Random, material: Material, topic: Topic) -> str:
    """Some facts, as assistants lay them out."""
    facts = rng.sample(topic.facts, rng.randint(3, 5))
    opening, closing = rng.choice(material.openings), rng.choice(material.closings)
    style = rng.random()
    if style < 0.5:
        body = " ".join(facts)
    elif style < 0.7:
        body = "\n" + "\n".join(f"- {fact}" for fact in facts) + "\n"
    elif style < 0.85:
        body = "\n" + "\n".join(f"{n}. {fact}" for n, fact in enumerate(facts, 1)) + "\n"
    else:
        body = f"\n## Answer\n\n**{facts[0]}**\n\n" + " ".join(facts[1:])
    return (opening + body + closing).strip()


def edited(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    """As a person would edit it: facts changed, sentences reworded, dropped or added."""
    changes = rng.choices(
        (facts_changed, sentence_reworded, sentence_dropped, sentence_added),
        (30, 30, 15, 15),
        k=rng.choice((1, 1, 2)),
    )
    made = text
    for change in (*changes, facts_changed):
        made = change(rng, made, material, topic)
        if made != text and change is changes[-1]:
            break
    return made


SENTENCE = re.compile(r"(?<=[.!?])(\s+)")


def facts_changed(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    """One to three words become others."""
    others = [w for fact in topic.facts for w in re.findall(r"[a-z]{4,}", fact)]
    for _ in range(rng.randint(1, 3)):
        words = [w for w in re.finditer(r"\b[A-Za-z]{4,}\b|\b\d+\b", text)]
        word = rng.choice(words)
        new = (
            str(int(word[0]) + rng.randint(1, 9))
            if word[0].isdigit()
            else rng.choice([o for o in others if o != word[0]])
        )
        text = text[: word.start()] + new + text[word.end() :]
    return text


def sentence_reworded(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    """Another beginning, and clauses the other way round."""
    for old, new in rng.sample(material.reworded, len(material.reworded)):
        changed_text = re.sub(
            rf"(?m)(^|[.!?\n] ?)((?:- |\d+\. )?){old} (\w)", rf"\1\2{new} \3", text, count=1
        )
        if changed_text != text:
            return changed_text
    return facts_changed(rng, text, material, topic)


def sentence_dropped(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    parts = SENTENCE.split(text)
    if len(parts) < 5:
        return facts_changed(rng, text, material, topic)
    at = 2 * rng.randrange((len(parts) + 1) // 2)
    return "".join(parts[:at] + parts[at + 2 :]).strip()


def sentence_added(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    parts = SENTENCE.split(text)
    at = 2 * rng.randrange(1, (len(parts) + 1) // 2 + 1)
    return "".join(
        [*parts[:at], " " if at > len(parts) - 1 else "", rng.choice(material.inserted), " ", *parts[at:]]
    ).strip()


# --- a set of conversations

DEEDS: tuple[tuple[Callable[[Chat], None], int], ...] = (
    (Chat.goes_on, 14),
    (Chat.asks_alike, 3),
    (Chat.changes_topic, 14),
    (Chat.nods, 5),
    (Chat.thanks, 9),
    (Chat.complains_politely, 3),
    (Chat.corrects, 14),
    (Chat.rephrases, 14),
    (Chat.declines, 4),
    (Chat.quotes, 4),
    (Chat.slips, 3),
    (Chat.answers_no, 4),
    (Chat.regenerates, 12),
    (Chat.edits, 12),
    (Chat.branches, 5),
    (Chat.meets_a_bad_network, 5),
    (Chat.switches_setting, 2),
)


def client_of(rewrites: Sequence[Callable[[str], str]], rng: random.Random, material: Material) -> Client:
    """Half of all clients send what was said as it was; the others have one habit each, or two."""
    names = rng.choice(("header", "metadata", "user", "user", "nothing"))
    made = Client(names, system=rng.choice(("", *material.systems)))
    habits: tuple[tuple[str, dict[str, object]], ...] = (
        ("whitespace or markdown normalised", {"rewrite": rng.choice(rewrites)}),
        ("history truncated", {"resend": rng.choice((first_and_last(4), last(5), last(3)))}),
        (
            "history truncated",
            {
                "resend": rng.choice(
                    (old_replies_cut(80, "…"), all_replies_cut(40, " [...] "), old_replies_cut(60, ""))
                )
            },
        ),
        (
            "history summarised",
            {"resend": summarised(rng.choice(material.summaries), rng.choice(("system", "assistant")))},
        ),
        ("a footer under every reply", {"rewrite": footed(rng.choice(material.footers))}),
        ("tool calls and results in the history", {"tools": True}),
        ("", {"errand": rng.choice(material.errands)}),
    )
    if rng.random() < 0.5:
        return made
    habit, fields = rng.choices(habits, (28, 12, 8, 8, 4, 20, 12))[0]
    return changed(made, habit=habit, **fields)


def footed(footer: str) -> Callable[[str], str]:
    return lambda text: text + footer


def traffic(material: Material, manners: Manners, *, seed: int, chats: int) -> Record:
    """Conversations of many people, one after another in the record, at the same hours."""
    rng = random.Random(seed)
    record = Record()
    for number in range(chats):
        chat = Chat(
            rng,
            record,
            material,
            manners,
            rng.choice(material.topics),
            manners.client(rng, material),
            f"person-{number}",
            f"chat-{number}",
            rng.uniform(0, 3600),
        )
        scene_of(rng, manners)(chat)
    return record


def scene_of(rng: random.Random, manners: Manners) -> Callable[[Chat], None]:
    at, upto = rng.random(), 0.0
    for share, scene in manners.scenes:
        upto += share
        if at < upto:
            return scene
    return one_chat


def one_chat(chat: Chat) -> None:
    chat.start()
    live(chat, chat.rng.randint(1, 5))


def live(chat: Chat, deeds: int) -> None:
    acts, weights = zip(*chat.manners.deeds, strict=True)
    for act in chat.rng.choices(acts, weights, k=deeds):
        act(chat)


def twin(chat: Chat, suffix: str, person: str, later_s: float) -> Chat:
    """A second chat that opens as the first did."""
    return Chat(
        chat.rng,
        chat.record,
        chat.material,
        chat.manners,
        chat.topic,
        chat.client,
        person,
        chat.name + suffix,
        chat.clock + later_s,
    )


def in_parallel(chat: Chat) -> None:
    """One person asks the same in two tabs and goes on in both, or gives the second up."""
    chat.client = changed(chat.client, habit="", errand="", tools=False)
    question = chat.question()
    other = twin(chat, "-tab", chat.person, chat.rng.uniform(0.5, 90.0))
    chat.ask(question)
    other.ask(question)
    for tab in (chat, other):
        chat.record.trap("parallel tabs of one user", tab.shown, SignalKind.REGENERATION)
    chat.clock = max(chat.clock, other.clock)
    chat.goes_on()
    other.clock = chat.clock
    if chat.rng.random() < 0.85:
        other.goes_on()


def strangers(chat: Chat) -> None:
    """Two people behind one key press the same buttons; a cold sampler tells both the same."""
    chat.client = changed(chat.client, names="nothing", habit="", errand="", tools=False)
    question, then = chat.question(), chat.rng.choice(chat.topic.following)
    other = twin(chat, "-stranger", "somebody", chat.rng.uniform(5.0, 200.0))
    if chat.rng.random() < 0.5:
        seed = chat.rng.random()
        chat.sampled, other.sampled = random.Random(seed), random.Random(seed)
    for one in (chat, other):
        one.ask(question)
        chat.record.trap("strangers behind one key", one.shown, SignalKind.REGENERATION)
    for one in (chat, other):
        chat.record.truth.add((SignalKind.CONTINUATION, one.shown))
        one.reads()
        one.ask(then)
        chat.record.trap("strangers behind one key", one.shown, SignalKind.REGENERATION)
    for one in (chat, other):
        one.goes_on() if chat.rng.random() < 0.5 else one.thanks()


def opened_again(chat: Chat) -> None:
    """A button of the product opens a new chat with the same question later in the day."""
    chat.client = changed(chat.client, habit="", errand="", tools=False)
    question = chat.question()
    other = twin(chat, "-later", chat.person, chat.rng.uniform(900.0, 20000.0))
    chat.ask(question)
    chat.record.trap("the same opening later that day", chat.shown, SignalKind.REGENERATION)
    live(chat, 1)
    other.clock = max(other.clock, chat.clock + 600.0)
    other.ask(question)
    live(other, 1)


MANNERS = {
    name: Manners(
        client=partial(client_of, rewrites),
        deeds=DEEDS,
        scenes=((0.06, in_parallel), (0.03, strangers), (0.03, opened_again)),
        types=typed,
        answers=answered,
        edits=edited,
    )
    for name, rewrites in REWRITES.items()
}
"""Of the two sets that `feedback.implicit` is developed on; they differ in what clients do to replies."""


def by_conversation(record: Record) -> list[list[Event]]:
    groups: dict[str, list[Event]] = {}
    for event in record.events:
        groups.setdefault(event.key, []).append(event)
    return list(groups.values())

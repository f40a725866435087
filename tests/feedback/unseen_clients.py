"""How the clients, people and assistants of the held-out set go about things; `unseen` has their words.

No client does what one of the other sets does: they stamp, translate, retrieve anew for each question, quote
mails, mend spelling, transcribe, replay. People take their time by the length of what they read and write.
"""

import random
import re
from collections.abc import Callable
from functools import partial

from feedback.events import SignalKind
from tests.feedback.builders import assistant, user
from tests.feedback.traffic import (
    Chat,
    Client,
    History,
    Manners,
    changed,
    in_parallel,
    opened_again,
    strangers,
)
from tests.feedback.wordings import Material, Topic

SURROUNDED = "context added to the question"
LINKED = "terms linked or explained in the reply"
SPELT = "spelling and units adapted to the reader"
SPOKEN = "replies as a voice reads them"
QUOTED_BELOW = "the reply quoted below the answer, as in mails"
CUT = "history truncated"
SUMMED_UP = "history summarised"
TIDIED = "whitespace or markdown normalised"
TOOLS = "tool calls and results in the history"
SIGNED = "a footer under every reply"
REPLAYED = "a conversation replayed by a test harness"
TIMED = "the same request on a timer"
MISTAKEN_FOR = (SignalKind.EDIT, SignalKind.BRANCH, SignalKind.REPHRASE)

Resend = Callable[[History, str], History]


# --- what clients do to a reply


def html(text: str) -> str:
    """Teams cards and ticket systems keep rich text."""
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"^[-*] (.+)$", r"<li>\1</li>", text, flags=re.MULTILINE)
    return "<div>" + text.replace("\n\n", "</div><div>&nbsp;</div><div>").replace("\n", "<br/>") + "</div>"


def with_links(text: str) -> str:
    """A glossary links the first long word of each sentence."""
    return re.sub(
        r"(?<=[.!?] )([A-Z][a-z]{5,})",
        r"[\1](/wiki/\1)",
        re.sub(r"^([A-Z][a-z]{5,})", r"[\1](/wiki/\1)", text),
    )


TERMS = {"larvae": "young of insects", "kWh": "kilowatt hours", "TLS": "encrypted transport", "core": "trunk"}


def with_explanations(text: str) -> str:
    for term, meaning in TERMS.items():
        text = re.sub(rf"\b{term}\b", f"{term} ({meaning})", text, count=1)
    return text


AMERICAN = (("licence", "license"), ("odour", "odor"), ("metres", "meters"), ("programme", "program"))


def american(text: str) -> str:
    for british, us in AMERICAN:
        text = re.sub(british, us, text)
    return text


def in_inches(text: str) -> str:
    """A shop adapts lengths and money to where the reader is."""
    text = re.sub(r"\b(\d+) cm\b", lambda m: f"{round(int(m[1]) / 2.54, 1)} in", text)
    return re.sub(r"\b(\d+) euros\b", lambda m: f"${round(int(m[1]) * 1.1)}", text)


SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()


def spoken(text: str) -> str:
    """Figures as words, no marks, as a speech engine wants it."""
    text = re.sub(r"\b(\d|1[0-2])\b", lambda m: SMALL[int(m[1])], text)
    for unit, word in (
        ("cm", "centimetres"),
        ("dB", "decibels"),
        ("GB", "gigabytes"),
        ("kWh", "kilowatt hours"),
    ):
        text = re.sub(rf"\b{unit}\b", word, text)
    return " ".join(re.sub(r"[*#`_:;()]|^- ", " ", text, flags=re.MULTILINE).split())


def barged_in(text: str) -> str:
    """Up to where the listener spoke, with a mark for it."""
    words = text.split()
    chance = random.Random(text)
    if chance.random() < 0.6:
        return text
    return " ".join(words[: chance.randint(3, max(3, len(words) - 3))]) + " [interrupted by user]"


def without_courtesies(text: str) -> str:
    """Emoji, exclamation marks and headings go: the house style."""
    return re.sub(r"^#+ .*\n+", "", text.replace("!", "."), flags=re.MULTILINE)


# --- what clients do to a history


def asked_last(history: History) -> int:
    return max(at for at, message in enumerate(history) if message["role"] == "user")


def wrapping(newest_only: bool, wrap: Callable[[str, int], str]) -> Resend:
    """Wraps the newest question, or all; `wrap` is given the number of the question."""

    def resend(history: History, about: str) -> History:
        made, number = [], 0
        for at, message in enumerate(history):
            if message["role"] == "user":
                number += 1
                if at == asked_last(history) or not newest_only:
                    message = {**message, "content": wrap(message["content"], number)}
            made.append(message)
        return made

    return resend


def retrieved(rng: random.Random, material: Material) -> Callable[[str, int], str]:
    """Passages that fit the question: of the topic that shares most words with it, others each time."""
    seed = rng.random()

    def wrap(asked: str, number: int) -> str:
        chance = random.Random(f"{seed} {number}")
        words = set(re.findall(r"[a-z]{4,}", asked.casefold()))
        near = max(material.topics, key=lambda t: len(words & set(" ".join(t.asked).casefold().split())))
        found = "\n\n".join(f"[{n}] {fact}" for n, fact in enumerate(chance.sample(near.facts, 3), 1))
        return f"Use these search results if they help.\n\n{found}\n\nQuestion: {asked}"

    return wrap


def remembering(rng: random.Random, material: Material) -> Callable[[str, int], str]:
    """What was noted about the person before, with each message."""
    notes = "\n".join(f"- asked before: {rng.choice(rng.choice(material.topics).asked)}" for _ in range(3))
    return lambda asked, number: f"<memories>\n{notes}\n</memories>\n{asked}"


def stamped(rng: random.Random, material: Material) -> Callable[[str, int], str]:
    """The minute it was sent."""
    hour, minute = rng.randint(7, 20), rng.randint(0, 30)
    return lambda asked, number: f"[2026-03-02 {hour:02}:{minute + number:02} CET] {asked}"


def described(rng: random.Random, material: Material) -> Callable[[str, int], str]:
    """Page and screen as JSON below each message; the scroll position moves."""
    page, start = rng.choice(("/help/plants", "/account/orders", "/docs/backup")), rng.randint(0, 400)
    return lambda asked, number: (
        f'{asked}\n\n{{"page": "{page}", "scroll": {start + 120 * number}, "lang": "en"}}'
    )


def mentioned(rng: random.Random, material: Material) -> Callable[[str, int], str]:
    """Channels put the name of the bot before, and who writes."""
    name = rng.choice(("Tove", "J. Adeyemi", "mina_k"))
    return lambda asked, number: f"<at>Helper</at> {asked} — {name}, sent from mobile"


def reminded(rng: random.Random, material: Material) -> Callable[[str, int], str]:
    """A reminder of the rules under the newest question."""
    rule = rng.choice(
        ("Answer in at most 120 words.", "Stay on topic; do not speculate.", "Cite page numbers.")
    )
    return lambda asked, number: f"{asked}\n\n<system-reminder>{rule}</system-reminder>"


def mailed(history: History, about: str) -> History:
    """Each answer by mail quotes the mail before, and a signature follows."""
    made: History = []
    for message in history:
        earlier = made[-1] if made else None
        if (
            message["role"] == "user"
            and earlier
            and earlier["role"] == "assistant"
            and earlier.get("content")
        ):
            quoted = "\n".join(f"> {line}" for line in earlier["content"].split("\n"))
            text = f"{message['content']}\n\nOn Mon, 2 Mar 2026, Assistant wrote:\n{quoted}\n\n--\nBest, Olu"
            message = {**message, "content": text}
        made.append(message)
    return made


def middle_out(history: History, about: str) -> History:
    """Routers drop the middle when the history gets long."""
    return history if len(history) < 6 else [*history[:2], *history[-3:]]


def long_ones_halved(history: History, about: str) -> History:
    """Older replies keep their first half."""

    def halved(message: dict[str, object]) -> dict[str, object]:
        text = message.get("content")
        if message["role"] != "assistant" or not isinstance(text, str) or len(text) < 200:
            return message
        return {**message, "content": text[: len(text) // 2] + " (…shortened)"}

    return [*(halved(m) for m in history[:-2]), *history[-2:]]


def compacted(summary: str) -> Resend:
    """What was said stands in the first message of the user, above the newest question."""

    def resend(history: History, about: str) -> History:
        if len(history) < 5:
            return history
        return [user(summary.format(about=about)), assistant("Understood, go on."), *history[-3:]]

    return resend


# --- clients


def naming(rng: random.Random) -> str:
    return rng.choice(("header", "metadata", "metadata", "user", "user", "nothing"))


def as_it_is(rng: random.Random, material: Material) -> Client:
    return Client(naming(rng), system=rng.choice(("", *material.systems)))


def rewriting(
    habit: str, ways: tuple[Callable[[str], str], ...], rng: random.Random, material: Material
) -> Client:
    return Client(naming(rng), habit, rewrite=rng.choice(ways), buttons=rng.random() < 0.4)


def surrounding(
    newest_only: bool,
    make: Callable[[random.Random, Material], Callable[[str, int], str]],
    rng: random.Random,
    material: Material,
) -> Client:
    resend = wrapping(newest_only, make(rng, material))
    return Client(naming(rng), SURROUNDED, resend=resend, fools=MISTAKEN_FOR, buttons=rng.random() < 0.5)


def resending(habit: str, ways: tuple[Resend, ...], rng: random.Random, material: Material) -> Client:
    return Client(naming(rng), habit, resend=rng.choice(ways), system=rng.choice(("", *material.systems)))


def by_mail(rng: random.Random, material: Material) -> Client:
    return Client(
        "user", QUOTED_BELOW, resend=mailed, fools=(*MISTAKEN_FOR, SignalKind.CORRECTION), buttons=False
    )


def summing_up(rng: random.Random, material: Material) -> Client:
    return Client(naming(rng), SUMMED_UP, resend=compacted(rng.choice(material.summaries)))


def signing(rng: random.Random, material: Material) -> Client:
    footer = rng.choice(material.footers)
    return Client(naming(rng), SIGNED, rewrite=lambda text: text + footer)


def running_errands(rng: random.Random, material: Material) -> Client:
    return Client(naming(rng), errand=rng.choice(material.errands))


def with_tools(rng: random.Random, material: Material) -> Client:
    return Client(naming(rng), TOOLS, tools=True, calls=rng.randint(1, 2))


def talking(rng: random.Random, material: Material) -> Client:
    return Client(
        rng.choice(("metadata", "user", "nothing")),
        SPOKEN,
        rewrite=lambda text: barged_in(spoken(text)),
        buttons=False,
    )


CLIENTS: tuple[tuple[Callable[[random.Random, Material], Client], int], ...] = (
    (as_it_is, 38),
    (partial(rewriting, TIDIED, (html, without_courtesies)), 6),
    (partial(rewriting, LINKED, (with_links, with_explanations)), 5),
    (partial(rewriting, SPELT, (american, in_inches)), 4),
    (partial(surrounding, True, retrieved), 5),
    (partial(surrounding, False, remembering), 3),
    (partial(surrounding, True, remembering), 3),
    (partial(surrounding, False, stamped), 3),
    (partial(surrounding, False, described), 3),
    (partial(surrounding, False, mentioned), 2),
    (partial(surrounding, True, reminded), 3),
    (by_mail, 3),
    (partial(resending, CUT, (middle_out, long_ones_halved)), 5),
    (summing_up, 3),
    (signing, 2),
    (running_errands, 4),
    (with_tools, 5),
    (talking, 3),
)
"""Each client, and its share of the chats in percent."""


def any_client(rng: random.Random, material: Material) -> Client:
    clients, shares = zip(*CLIENTS, strict=True)
    return rng.choices(clients, shares)[0](rng, material)


# --- people


def typed(rng: random.Random, text: str) -> str:
    """Neighbouring keys, dictated without marks, shouted, trailing off."""
    way = rng.random()
    if way < 0.06:
        return re.sub(r"[.,!?;:]", "", text).lower()
    if way < 0.09 and len(text) < 80:
        return text.upper()
    if way < 0.15:
        return text.rstrip(".?! ") + rng.choice((" ..", "…", "??", " !"))
    if way < 0.22 and (
        letters_at := [m.start() for m in re.finditer(r"(?<=[a-z]{2})[adegiklnorst](?=[a-z]{2})", text)]
    ):
        at = rng.choice(letters_at)
        return text[:at] + NEIGHBOURS[text[at]] + text[at + 1 :]
    return text


NEIGHBOURS = dict(zip("adegiklnorst", "sfrhojkmpedr", strict=True))
"""The key beside it."""


def with_buttons(act: Callable[[Chat], None]) -> Callable[[Chat], None]:
    return lambda chat: act(chat) if chat.client.buttons else chat.goes_on()


def resent_after_timeout(chat: Chat) -> None:
    """A proxy gives up after 10 s and asks again while the first answer is still being written."""
    chat.record.truth.add((SignalKind.CONTINUATION, chat.shown))
    chat.reads()
    chat.history.append(user(chat.fresh(chat.topic.following)))
    chat.unused = []
    lost = chat.request(chat.history)
    chat.record.trap("retry after a network error", lost, SignalKind.REGENERATION)
    chat.clock -= chat.rng.uniform(0.05, 0.7)
    chat.show(chat.request(chat.history))


def regenerates_twice(chat: Chat) -> None:
    """Neither the first nor the second would do."""
    chat.regenerates()
    if chat.history[-1]["role"] == "assistant" and chat.shown.endswith(str(len(chat.record.events) - 1)):
        chat.regenerates()


DEEDS: tuple[tuple[Callable[[Chat], None], int], ...] = (
    (Chat.goes_on, 18),
    (Chat.asks_alike, 4),
    (Chat.changes_topic, 9),
    (Chat.nods, 6),
    (Chat.thanks, 9),
    (Chat.complains_politely, 4),
    (Chat.corrects, 15),
    (Chat.rephrases, 15),
    (Chat.declines, 4),
    (Chat.quotes, 4),
    (Chat.slips, 3),
    (Chat.answers_no, 3),
    (with_buttons(Chat.regenerates), 12),
    (with_buttons(regenerates_twice), 3),
    (with_buttons(Chat.edits), 18),
    (with_buttons(Chat.branches), 5),
    (with_buttons(Chat.switches_setting), 3),
    (resent_after_timeout, 4),
)


def digest(chat: Chat) -> None:
    """Every morning's report, asked at intervals that jitter; nobody looks at it twice."""
    chat.client = changed(
        as_it_is(chat.rng, chat.material), names=chat.rng.choice(("user", "nothing", "metadata"))
    )
    question, every_s = chat.question(), chat.rng.choice((60.0, 180.0, 600.0))
    for _ in range(chat.rng.randint(3, 6)):
        began = chat.clock
        chat.history = []
        chat.ask(question)
        chat.record.trap(TIMED, chat.shown, SignalKind.REGENERATION)
        chat.clock = began + every_s * chat.rng.uniform(0.95, 1.05)


def replayed(chat: Chat) -> None:
    """A harness sends a recorded conversation again, turn by turn, to compare two deployments."""
    chat.client = changed(as_it_is(chat.rng, chat.material), names=chat.rng.choice(("user", "nothing")))
    chat.start()
    chat.goes_on()
    chat.goes_on()
    recorded = list(chat.history)
    chat.clock += chat.rng.uniform(20.0, 1200.0)
    for at, message in enumerate(recorded):
        if message["role"] == "user":
            again = chat.request(recorded[: at + 1])
            chat.record.trap(REPLAYED, again, SignalKind.REGENERATION)
            chat.clock += chat.rng.uniform(0.05, 0.5)
    for label in [label for label in chat.record.truth if label[1].startswith(f"{chat.name}-")]:
        chat.record.trap(REPLAYED, label[1], SignalKind.REGENERATION)
    chat.record.trap(REPLAYED, chat.shown, SignalKind.REGENERATION)


# --- assistants


def answered(rng: random.Random, material: Material, topic: Topic) -> str:
    """A paragraph, a list under a sentence, question and answer, or a table."""
    facts = rng.sample(topic.facts, rng.randint(3, 5))
    laid_out = rng.choice((" ".join, " ".join, listed, in_pairs, tabled))(facts)
    return (rng.choice(material.openings) + laid_out + rng.choice(material.closings)).strip()


def listed(facts: list[str]) -> str:
    return f"{facts[0]} Also:\n\n" + "\n".join(f"- {fact}" for fact in facts[1:]) + "\n\n"


def in_pairs(facts: list[str]) -> str:
    return "\n\n".join(f"**{n}) {fact.split()[0]}** … {fact}" for n, fact in enumerate(facts, 1)) + "\n\n"


def tabled(facts: list[str]) -> str:
    return (
        "\n| no. | what |\n|---|---|\n"
        + "\n".join(f"| {n} | {fact} |" for n, fact in enumerate(facts, 1))
        + "\n\n"
    )


# --- what people change in a reply

SENTENCES = re.compile(r"(?<=[.!?])(?=\s)")


def words_of(text: str) -> str:
    return re.sub(r"\W", "", text).casefold()


def edited(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    """A figure, a phrase, a sentence that goes, moves into one's own words, or comes."""
    changes = (figure, phrase, phrase, sentence_gone, sentence_anew, remark)
    made = text
    for change in rng.choices(changes, k=rng.choice((1, 1, 2))):
        made = change(rng, made, material, topic)
    return made if words_of(made) != words_of(text) else remark(rng, made, material, topic)


def figure(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    figures = list(re.finditer(r"(?<=[a-z] )\d{1,3}(?= [a-z])", text))
    if not figures:
        return phrase(rng, text, material, topic)
    found = rng.choice(figures)
    return text[: found.start()] + str(int(found[0]) + rng.choice((1, 3, 10))) + text[found.end() :]


def phrase(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    for old, new in rng.sample(material.reworded, len(material.reworded)):
        made = re.sub(rf"(?<=\w ){old}(?= \w)", new, text, count=1)
        if made != text:
            return made
    return remark(rng, text, material, topic)


def sentence_gone(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    parts = SENTENCES.split(text)
    if len(parts) < 4:
        return phrase(rng, text, material, topic)
    at = rng.randrange(1, len(parts) - 1)
    return "".join(parts[:at] + parts[at + 1 :])


def sentence_anew(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    """One fact in the place of another."""
    there = [fact for fact in topic.facts if fact in text]
    left = [fact for fact in topic.facts if fact not in text]
    if not there or not left:
        return remark(rng, text, material, topic)
    return text.replace(rng.choice(there), rng.choice(left), 1)


def remark(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    parts = SENTENCES.split(text)
    at = rng.randrange(1, max(len(parts), 2))
    return "".join([*parts[:at], " ", rng.choice(material.inserted), *parts[at:]])


UNSEEN_MANNERS = Manners(
    client=any_client,
    deeds=DEEDS,
    scenes=(
        (0.05, in_parallel),
        (0.03, strangers),
        (0.03, opened_again),
        (0.02, digest),
        (0.02, replayed),
    ),
    types=typed,
    answers=answered,
    edits=edited,
)

"""How the clients, people and assistants of the third set go about things; `third` has their words.

Each client is modelled on a real one, named in its docstring with a habit that is documented.
"""

import random
import re
import textwrap
from collections.abc import Callable

from feedback.events import Message, SignalKind, TurnStatus
from tests.feedback.builders import assistant, system, user
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

TIDIED = "whitespace or markdown normalised"
CUT = "history truncated"
SUMMED_UP = "history summarised"
TOOLS = "tool calls and results in the history"
SURROUNDED = "context added to the question"
SPOKEN = "replies as a voice reads them"
MASKED = "personal data masked by a proxy"
PENSIVE = "reasoning taken out of the reply"
SPLIT = "one reply in several messages"
SIGNED = "a footer under every reply"


# --- what clients make of a reply


def mrkdwn(text: str) -> str:
    """Slack's dialect has single asterisks, no headings, and links the other way round."""
    text = re.sub(r"^#+ (.+)$", r"*\1*", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]+)\]\((\S+?)\)", r"<\2|\1>", text)
    return text.replace("**", "*")


def markdown_v2(text: str) -> str:
    """Telegram wants each reserved character behind a backslash."""
    return re.sub(r"([_\[\]()~>#+\-=|{}.!])", r"\\\1", text.replace("**", "*"))


GSM_7 = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-", "–": "-", "‑": "-", "…": "...", "·": ".", "→": "->"}
)


def smart_encoded(text: str) -> str:
    """SMS gateways replace what is not in the GSM-7 alphabet by what looks alike."""
    return text.translate(GSM_7)


def org(text: str) -> str:
    """Org mode has its own bold, code, headings and blocks."""
    text = re.sub(r"```(\w*)\n(.*?)\n```", r"#+begin_src \1\n\2\n#+end_src", text, flags=re.DOTALL)
    text = re.sub(r"^#+ ", "** ", text, flags=re.MULTILINE)
    return re.sub(r"`([^`\n]+)`", r"=\1=", re.sub(r"\*\*(\S.*?\S)\*\*", r"*\1*", text))


SYMBOLS = ((" %", " percent"), ("%", " percent"), (" °C", " degrees"), ("&", "and"), ("+", " plus "))


def aloud(text: str) -> str:
    """What a voice says: no markup, and symbols as words."""
    text = re.sub(r"[*`#_]|^\s*(?:-|\d+\.) ", "", text, flags=re.MULTILINE)
    for symbol, words in SYMBOLS:
        text = text.replace(symbol, words)
    return " ".join(text.split())


def interrupted(text: str) -> str:
    """What was said before the listener cut in, which about every third listener does."""
    words = text.split()
    chance = random.Random(text)
    return " ".join(words[: chance.randint(1, len(words))]) if chance.random() < 0.35 else text


def hard_wrapped(text: str) -> str:
    """Mail breaks lines at 72 characters."""
    return "\n".join(textwrap.fill(line, 72, break_on_hyphens=False) for line in text.split("\n"))


def without_thoughts(text: str) -> str:
    return re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL)


def thinking(text: str) -> str:
    """A reply of a model that writes its reasoning into the content."""
    return f"<think>\nThe user wants an answer about this. Start with: {text[:60]}\n</think>\n\n{text}"


MASKS = (
    (r"\b(?:Hawking|Rayleigh|Ben|Lena|Pim|Grisha|Karin|Yusuf)\b", "<PERSON>"),
    (r"\b(?:Kyoto|Nara|Oslo|Madrid|Paris|Mars|Graz|Canada|Montreal)\b", "<LOCATION>"),
    (r"\b(?:\d+|two|three|ten|twenty) (?:minutes?|hours?|days?|weeks?|months?|years?)\b", "<DATE_TIME>"),
)


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    return text


# --- what clients make of a history

Resend = Callable[[History, str], History]


def each(role: str, change: Callable[[str], str]) -> Resend:
    def resend(history: History, about: str) -> History:
        return [
            {**m, "content": change(m["content"])} if m["role"] == role and m.get("content") else m
            for m in history
        ]

    return resend


def last_question(history: History) -> int:
    return max(at for at, message in enumerate(history) if message["role"] == "user")


def trimmed(budget: int) -> Resend:
    """The newest messages that fit into so many characters, beginning with one of the user."""

    def resend(history: History, about: str) -> History:
        start, left = len(history), budget
        while start and (left := left - len(history[start - 1].get("content") or "")) >= 0:
            start -= 1
        asked = [at for at, m in enumerate(history) if m["role"] == "user" and at >= start]
        return history[asked[0] if asked else last_question(history) :]

    return resend


def window(messages: int) -> Resend:
    def resend(history: History, about: str) -> History:
        return history[min(max(len(history) - messages, 0), last_question(history)) :]

    return resend


def with_recap(summary: str) -> Resend:
    """A system message stands for all but the last four messages."""

    def resend(history: History, about: str) -> History:
        recent = window(4)(history, about)
        return history if len(recent) == len(history) else [system(summary.format(about=about)), *recent]

    return resend


def told_before(summary: str) -> Resend:
    """A message in the user's name stands for the older half, and the assistant has said that it is fine."""

    def resend(history: History, about: str) -> History:
        recent = window(3)(history, about)
        if len(history) < 7 or recent[0]["role"] != "user":
            return history
        return [user(summary.format(about=about)), assistant("Ok."), *recent]

    return resend


def with_notice(history: History, about: str) -> History:
    """The first reply becomes a notice that something is missing, and the messages after it go."""
    if len(history) < 7 or last_question(history) < len(history) - 1:
        return history
    notice = assistant("[NOTE] Some of the earlier conversation was removed to fit the context window.")
    return [history[0], notice, *history[-3:]]


def forgetting_steps(history: History, about: str) -> History:
    """Tool calls and their results count for the current question only."""
    now = last_question(history)
    answers = [m for m in history[:now] if m["role"] != "tool" and not m.get("tool_calls")]
    return answers + history[now:]


def with_passages(passages: str) -> Resend:
    """The newest question, and only that, is wrapped into what was found in the user's documents."""

    def resend(history: History, about: str) -> History:
        at = last_question(history)
        asked = history[at]["content"]
        wrapped = (
            "### Task:\nAnswer from the context, and say so if it does not suffice.\n\n"
            f"<context>\n{passages}\n</context>\n\n<user_query>\n{asked}\n</user_query>"
        )
        return [*history[:at], user(wrapped), *history[at + 1 :]]

    return resend


def in_parts(limit: int) -> Resend:
    """Chat services take only so many characters a message, so a long reply was posted in pieces."""

    def parts(message: Message) -> History:
        if message["role"] != "assistant" or not message.get("content"):
            return [message]
        pieces = textwrap.wrap(message["content"], limit, replace_whitespace=False, break_on_hyphens=False)
        return [assistant(piece) for piece in pieces]

    return lambda history, about: [part for message in history for part in parts(message)]


def after_greeting(history: History, about: str) -> History:
    """Every chat opens with the same made-up exchange."""
    return [user("[Start a new chat]"), assistant("*waves* Hi there, what's up?"), *history]


# --- clients


def naming(rng: random.Random) -> str:
    return rng.choice(("header", "metadata", "user", "user", "nothing"))


def verbatim(rng: random.Random, material: Material) -> Client:
    """LibreChat, Jan, a product's own page: what was served and typed is sent as it was."""
    return Client(naming(rng), system=rng.choice(("", *material.systems)))


def open_webui(rng: random.Random, material: Material) -> Client:
    """Open WebUI asks for titles, tags and follow-ups in single messages that quote the chat."""
    return Client(naming(rng), errand=rng.choice(material.errands), errand_apart=True)


def open_webui_with_documents(rng: random.Random, material: Material) -> Client:
    """Open WebUI's RAG template wraps the question of the moment, and stores the bare one."""
    facts = rng.sample(rng.choice(material.topics).facts, 3)
    passages = "\n".join(f'<source id="{n}">{fact}</source>' for n, fact in enumerate(facts, 1))
    return Client(
        naming(rng),
        SURROUNDED,
        resend=with_passages(passages),
        fools=(SignalKind.EDIT, SignalKind.BRANCH, SignalKind.REPHRASE),
    )


def llama_cpp_page(rng: random.Random, material: Material) -> Client:
    """The llama.cpp server's page and aichat leave the reasoning of earlier replies out."""
    return Client(naming(rng), PENSIVE, rewrite=without_thoughts, served=thinking)


def nextchat(rng: random.Random, material: Material) -> Client:
    """NextChat attaches the last few messages and a recap (its memory prompt)."""
    return Client(naming(rng), SUMMED_UP, resend=with_recap(rng.choice(material.summaries)))


def aider(rng: random.Random, material: Material) -> Client:
    """aider sums up in the user's name, followed by an "Ok." of the assistant."""
    return Client(naming(rng), SUMMED_UP, resend=told_before(rng.choice(material.summaries)), buttons=False)


def lobe_chat(rng: random.Random, material: Material) -> Client:
    """LobeChat and Cherry Studio have a setting for how many messages go along."""
    return Client(naming(rng), CUT, resend=window(rng.choice((3, 5, 7))), system=rng.choice(material.systems))


def langchain_chain(rng: random.Random, material: Material) -> Client:
    """LangChain's `trim_messages(strategy="last", start_on="human", include_system=True)`."""
    resend = trimmed(rng.choice((400, 800, 1200)))
    return Client(naming(rng), CUT, resend=resend, system=rng.choice(material.systems), buttons=False)


def langchain_agent(rng: random.Random, material: Material) -> Client:
    """Agents call several tools at once; a chat memory keeps the question and the final answer only."""
    resend = rng.choice((forgetting_steps, lambda history, about: history))
    return Client(naming(rng), TOOLS, resend=resend, tools=True, calls=rng.randint(1, 3), buttons=False)


def cline(rng: random.Random, material: Material) -> Client:
    """Cline describes the editor under each message, and puts a notice where it cut the history."""
    files = rng.sample(("src/app.ts", "README.md", "api/models.py", "Makefile", "tests/test_api.py"), 2)
    seen = f"# VSCode Visible Files\n{files[0]}\n\n# VSCode Open Tabs\n" + "\n".join(files)
    details = f"\n\n<environment_details>\n{seen}\n</environment_details>"
    described = each("user", lambda text: text + details)
    return Client(
        naming(rng),
        SURROUNDED,
        resend=lambda history, about: described(with_notice(history, about), about),
        fools=(SignalKind.EDIT, SignalKind.BRANCH, SignalKind.REPHRASE),
        buttons=False,
    )


def slack_bot(rng: random.Random, material: Material) -> Client:
    """Slack bots read the thread back from Slack, where replies are in its mrkdwn."""
    return Client(rng.choice(("header", "metadata")), TIDIED, rewrite=mrkdwn, buttons=False)


def telegram_bot(rng: random.Random, material: Material) -> Client:
    """Telegram bots escape replies for MarkdownV2, and some keep them that way."""
    return Client(rng.choice(("metadata", "user")), TIDIED, rewrite=markdown_v2, buttons=False)


def sms_bot(rng: random.Random, material: Material) -> Client:
    """Twilio's and Telnyx's smart encoding."""
    return Client("user", TIDIED, rewrite=smart_encoded, buttons=False)


def emacs(rng: random.Random, material: Material) -> Client:
    """gptel turns replies into Org (`gptel-org-convert-response`); its buffer is the history."""
    return Client(naming(rng), TIDIED, rewrite=org)


def discord_bot(rng: random.Random, material: Material) -> Client:
    """Discord bots rebuild the history from a channel: names before messages, long replies in pieces."""
    name = rng.choice(("kestrel", "Mo", "xX_ana_Xx", "Old Tom"))
    named, split = each("user", lambda text: f"{name}: {text}"), in_parts(rng.choice((160, 280)))
    return Client(
        rng.choice(("metadata", "user", "nothing")),
        SPLIT,
        resend=lambda history, about: split(named(history, about), about),
        buttons=False,
    )


def mail_bot(rng: random.Random, material: Material) -> Client:
    """Help desks answer by mail: wrapped at 72 columns, with their footer under each reply."""
    names, footer = rng.choice(("header", "user")), rng.choice(material.footers)
    return Client(names, SIGNED, rewrite=lambda text: hard_wrapped(text) + footer, buttons=False)


def web_widget(rng: random.Random, material: Material) -> Client:
    """Chat widgets print a notice under each reply and send it along."""
    footer = rng.choice(material.footers)
    return Client(naming(rng), SIGNED, rewrite=lambda text: text + footer)


def voice_assistant(rng: random.Random, material: Material) -> Client:
    """Pipecat keeps what was spoken: text for a voice, up to the word where the user cut in."""
    return Client(
        rng.choice(("metadata", "nothing")),
        SPOKEN,
        rewrite=lambda text: interrupted(aloud(text)),
        system=rng.choice(material.systems),
        buttons=False,
    )


def masking_proxy(rng: random.Random, material: Material) -> Client:
    """LiteLLM's Presidio guardrail masks every message on its way to the model, in both roles."""
    both = each("user", masked), each("assistant", masked)
    return Client(
        naming(rng),
        MASKED,
        resend=lambda history, about: both[1](both[0](history, about), about),
        buttons=False,
    )


def silly_tavern(rng: random.Random, material: Material) -> Client:
    """SillyTavern's strict prompts begin with a made-up message of the user; its swipes are regenerations."""
    return Client(naming(rng), "", resend=after_greeting, system=rng.choice(material.systems))


CLIENTS = (
    (verbatim, 36),
    (open_webui, 6),
    (open_webui_with_documents, 4),
    (llama_cpp_page, 4),
    (nextchat, 4),
    (aider, 2),
    (lobe_chat, 4),
    (langchain_chain, 4),
    (langchain_agent, 7),
    (cline, 3),
    (slack_bot, 4),
    (telegram_bot, 2),
    (sms_bot, 2),
    (emacs, 3),
    (discord_bot, 3),
    (mail_bot, 2),
    (web_widget, 3),
    (voice_assistant, 3),
    (masking_proxy, 2),
    (silly_tavern, 2),
)
"""Each client, and its share of the chats in percent."""


def any_client(rng: random.Random, material: Material) -> Client:
    clients, shares = zip(*CLIENTS, strict=True)
    return rng.choices(clients, shares)[0](rng, material)


# --- people


def typed(rng: random.Random, text: str) -> str:
    """As thumbs type: all lower case, no apostrophes, a letter lost or doubled, marks in twos."""
    if rng.random() < 0.12:
        text = text.lower().rstrip(".!")
    if rng.random() < 0.07:
        text = text.replace("'", "")
    if rng.random() < 0.06 and (words := [w for w in re.finditer(r"\b[a-z]{6,}\b", text)]):
        at = rng.choice(words).start() + rng.randint(1, 4)
        text = text[:at] + rng.choice(("", text[at] * 2)) + text[at + 1 :]
    if rng.random() < 0.04 and text.endswith("?"):
        text = rng.choice((text + "?", text[:-1] + " ?"))
    return text or "?"


def with_buttons(act: Callable[[Chat], None]) -> Callable[[Chat], None]:
    """A deed that takes a page with buttons; elsewhere people just talk on."""
    return lambda chat: act(chat) if chat.client.buttons else chat.goes_on()


def retried_by_the_sdk(chat: Chat) -> None:
    """OpenAI's libraries send a request again by themselves, up to twice, 0.5 s and then 1 s after an error.

    The gateway sees the first one broken off, or whole where only its way back failed.
    """
    chat.record.truth.add((SignalKind.CONTINUATION, chat.shown))
    chat.reads()
    chat.history.append(user(chat.fresh(chat.topic.following)))
    chat.unused = []
    for attempt in range(chat.rng.randint(1, 2)):
        status = chat.rng.choice((TurnStatus.ABORTED, TurnStatus.COMPLETE))
        lost = chat.request(chat.history, status=status)
        chat.record.trap("retry after a network error", lost, SignalKind.REGENERATION)
        chat.clock += 0.5 * 2**attempt * chat.rng.uniform(0.75, 1.0)
    chat.show(chat.request(chat.history))


DEEDS = (
    (Chat.goes_on, 13),
    (Chat.asks_alike, 3),
    (Chat.changes_topic, 12),
    (Chat.nods, 6),
    (Chat.thanks, 9),
    (Chat.complains_politely, 3),
    (Chat.corrects, 14),
    (Chat.rephrases, 16),
    (Chat.declines, 4),
    (Chat.quotes, 4),
    (Chat.slips, 3),
    (Chat.answers_no, 4),
    (with_buttons(Chat.regenerates), 18),
    (with_buttons(Chat.edits), 20),
    (with_buttons(Chat.branches), 6),
    (with_buttons(Chat.switches_setting), 4),
    (retried_by_the_sdk, 4),
)


def by_script(chat: Chat, **fields: object) -> None:
    """Scripts send what they have as it is; some give a name as user."""
    names = chat.rng.choice(("user", "nothing"))
    chat.client = changed(verbatim(chat.rng, chat.material), names=names, **fields)


def health_check(chat: Chat) -> None:
    """A monitor asks the same every five minutes, as LiteLLM's health checks do: any answer will do."""
    by_script(chat, served=lambda text: "pong")
    for _ in range(chat.rng.randint(3, 6)):
        began = chat.clock
        chat.history = []
        chat.ask("Reply with the word pong.")
        chat.record.trap("the same request on a timer", chat.shown, SignalKind.REGENERATION)
        chat.clock = began + 300.0


def votes(chat: Chat) -> None:
    """A script samples several answers and takes the majority: self-consistency, arXiv:2203.11171."""
    by_script(chat)
    question = chat.question()
    for _ in range(chat.rng.randint(3, 5)):
        chat.history = []
        chat.ask(question)
        chat.record.trap("several samples of one prompt", chat.shown, SignalKind.REGENERATION)
        chat.clock += chat.rng.uniform(0.01, 0.2)


# --- assistants


def answered(rng: random.Random, material: Material, topic: Topic) -> str:
    """Prose, bold leads, numbered steps, or a summary under a heading."""
    facts = rng.sample(topic.facts, rng.randint(3, 6))
    layout = rng.choice((prose, prose, leads, steps, sections))
    return (rng.choice(material.openings) + layout(facts) + rng.choice(material.closings)).strip()


def prose(facts: list[str]) -> str:
    half = len(facts) // 2
    return f"{' '.join(facts[:half])}\n\n{' '.join(facts[half:])}"


def leads(facts: list[str]) -> str:
    return "\n\n" + "\n".join(f"* **{lead(fact)}** {fact}" for fact in facts) + "\n"


def lead(fact: str) -> str:
    words = re.findall(r"[A-Za-z]{4,}", fact)
    return f"{max(words, key=len).capitalize()}:"


def steps(facts: list[str]) -> str:
    return "\n\n" + "\n\n".join(f"**{n}.** {fact}" for n, fact in enumerate(facts, 1)) + "\n\n"


def sections(facts: list[str]) -> str:
    return f"\n\n### In short\n{facts[0]}\n\n### Details\n{' '.join(facts[1:])}\n"


# --- what people change in a reply


def letters(text: str) -> str:
    """What is left when only layout and punctuation are changed."""
    return re.sub(r"\W", "", text).casefold()


def edited(rng: random.Random, text: str, material: Material, topic: Topic) -> str:
    """One to three changes, made until words or figures differ."""
    changes = (figure_corrected, wording_changed, wording_changed, remark_added, middle_dropped)
    made = text
    for change in rng.choices(changes, k=rng.randint(1, 3)):
        made = change(rng, made, material)
    return made if letters(made) != letters(text) else remark_added(rng, made, material)


def figure_corrected(rng: random.Random, text: str, material: Material) -> str:
    figures = [f for f in re.finditer(r"(?<![\w*.])\d{1,4}(?![\w.*])", text)]
    if not figures:
        return wording_changed(rng, text, material)
    figure = rng.choice(figures)
    return text[: figure.start()] + str(int(figure[0]) * 2 + 1) + text[figure.end() :]


def wording_changed(rng: random.Random, text: str, material: Material) -> str:
    for old, new in rng.sample(material.reworded, len(material.reworded)):
        made = re.sub(rf"(?<![`\w]){old}(?![`\w])", new, text, count=1)
        if made != text:
            return made
    return remark_added(rng, text, material)


SENTENCES = re.compile(r"(?<=[.!?])(?=\s)")


def remark_added(rng: random.Random, text: str, material: Material) -> str:
    """A sentence of one's own between two of the assistant's, or before the last."""
    parts = SENTENCES.split(text)
    at = rng.randrange(1, max(len(parts), 2))
    return "".join([*parts[:at], " ", rng.choice(material.inserted), *parts[at:]])


def middle_dropped(rng: random.Random, text: str, material: Material) -> str:
    """A sentence out of the middle: cutting the end or the start could be the client's doing."""
    parts = SENTENCES.split(text)
    if len(parts) < 5:
        return wording_changed(rng, text, material)
    at = rng.randrange(2, len(parts) - 2)
    return "".join(parts[:at] + parts[at + 1 :])


THIRD_MANNERS = Manners(
    client=any_client,
    deeds=DEEDS,
    scenes=(
        (0.05, in_parallel),
        (0.03, strangers),
        (0.03, opened_again),
        (0.02, health_check),
        (0.02, votes),
    ),
    types=typed,
    answers=answered,
    edits=edited,
)

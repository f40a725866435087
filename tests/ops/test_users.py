"""The simulated users: they must act like people through the public API, and their instrument must not lie.

They talk to a small OpenAI-shaped service over a real socket, which remembers what it was sent.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from feedback.comparisons import FASTEST_READING_WORDS_PER_S
from ops.simulation import __main__ as cli
from ops.simulation import helpdesk, users
from ops.simulation.helpdesk import clause_sentence, topic_of
from ops.simulation.users import Habits

SILENT = Habits(thumbs_up=0, thumbs_down=0, copy=0, regenerate=0, edit=0, complain=0, thank=0, follow_up=0)
Answer = Callable[[list[dict[str, str]]], str]


class Service:
    """What the users meet: answers by a function of the messages, and keeps every request."""

    def __init__(self, answer: Answer, status: int = 200) -> None:
        self.answer, self.status = answer, status
        self.chats: list[dict[str, Any]] = []
        self.feedback: list[dict[str, Any]] = []
        self.second: Answer | None = None
        """Shown beside the answer to those who can compare."""
        self.headers: list[dict[str, str]] = []
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/v1/feedback")(self.signal)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.chats.append(body)
        self.headers.append(dict(request.headers))
        if self.status != 200:
            return JSONResponse({"error": {"message": "no", "type": "x", "code": None}}, self.status)
        text, name = self.answer(body["messages"]), f"chatcmpl-{len(self.chats)}"
        extras: dict[str, Any] = {"response_id": name, "adapter": "base-12345678", "arm": "canary"}
        if self.second is not None and body["ratchet"] == {"compare": True}:
            beside = {"response_id": f"{name}-second", "content": self.second(body["messages"])}
            extras["alternative"] = {**beside, "side": "left"}
        shared = {"id": name, "created": 1, "model": body["model"]}
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return JSONResponse(
                {**shared, "object": "chat.completion", "choices": [choice], "ratchet": extras}
            )
        chunks: list[dict[str, Any]] = [
            {**shared, "choices": [{"index": 0, "delta": {"content": part}}]} for part in text.partition(" ")
        ]
        chunks[-1]["ratchet"] = extras
        lines = [f"data: {json.dumps({**c, 'object': 'chat.completion.chunk'})}\n\n" for c in chunks]
        return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")

    async def signal(self, request: Request) -> Response:
        self.feedback.append(await request.json())
        return JSONResponse({"signal_id": f"signal-{len(self.feedback)}"}, 201)

    def kinds(self) -> list[str]:
        return [signal["kind"] for signal in self.feedback]


@contextlib.contextmanager
def served(service: Service, port: int) -> Iterator[str]:
    """The base URL while the service answers there."""
    server = uvicorn.Server(uvicorn.Config(service.app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


def good(messages: list[dict[str, str]]) -> str:
    """What nearly every taste likes: right, direct, warm, 20 words or so."""
    asked = [m["content"] for m in messages if m["role"] == "user" and known(m["content"])][-1]
    return f"Happy to help! {clause_sentence(topic_of(asked).right)} Enjoy your birds!"


def bad(messages: list[dict[str, str]]) -> str:
    return "Not this again. I think maybe nothing can be done about that, and it will pass."


def known(text: str) -> bool:
    try:
        topic_of(text)
    except helpdesk.UnknownQuestion:
        return False
    return True


async def simulated(service: Service, port: int, habits: Habits, **options: Any) -> users.Report:
    arguments = {"users": 5, "conversations": 30, "seed": 1, "concurrency": 4} | options
    with served(service, port) as url:
        return await users.run(url, "key", habits=habits, **arguments)


@pytest.mark.slow
async def test_silent_users_ask_and_leave(free_port: int) -> None:
    """The least a user does: one question each, from the split, streaming or not, with its name."""
    service = Service(good)
    report = await simulated(service, free_port, SILENT)
    assert (report.conversations, report.requests, report.did, report.failures) == (30, 30, {}, {})
    assert service.feedback == []
    assert {c["messages"][0]["content"] for c in service.chats} <= set(helpdesk.questions("seen"))
    assert {c["user"] for c in service.chats} == {f"user-1-{n}" for n in range(5)}
    assert {bool(c.get("stream")) for c in service.chats} == {True, False}
    assert {"x-ratchet-conversation" in headers for headers in service.headers} == {True, False}


@pytest.mark.slow
async def test_the_report_holds_the_true_utility_of_every_first_reply(free_port: int) -> None:
    service = Service(good)
    report = await simulated(service, free_port, SILENT)
    assert len(report.replies) == 30
    for reply in report.replies:
        assert (reply.adapter, reply.arm) == ("base-12345678", "canary")
        assert reply.utility > 0.85
    assert report.utility is not None
    assert report.utility.mean == pytest.approx(sum(r.utility for r in report.replies) / 30)


@pytest.mark.slow
async def test_pleased_users_praise_and_displeased_ones_complain(free_port: int) -> None:
    """Thumbs follow what the user thinks, a few slips aside."""
    often = msgspec.structs.replace(SILENT, thumbs_up=0.9, thumbs_down=0.9)
    praised = await simulated(Service(good), free_port, often, conversations=100)
    blamed = await simulated(Service(bad), free_port, often, conversations=100)
    assert praised.did["thumbs_up"] > 70 > 20 > praised.did.get("thumbs_down", 0)
    assert blamed.did["thumbs_down"] > 70 > 20 > blamed.did.get("thumbs_up", 0)


@pytest.mark.slow
async def test_thumbs_are_sparse_and_kind_by_default(free_port: int) -> None:
    """Most replies get none, and at the same distance from indifference praise is likelier than blame."""
    report = await simulated(Service(good), free_port, users.HABITS, conversations=100)
    assert 10 < report.did["thumbs_up"] < 0.6 * report.requests
    assert Habits().thumbs_up > Habits().thumbs_down
    assert Habits().indifferent < 0.5


async def test_a_regeneration_asks_the_same_history_again_and_keeps_the_better(free_port: int) -> None:
    """The traffic alone must show it: the same messages twice, then a history with one of the two replies."""
    replies = iter([bad, good])
    service = Service(lambda messages: next(replies, good)(messages))
    habits = msgspec.structs.replace(SILENT, regenerate=1e9, compare=1.0, noise=0.0, turns=2)
    report = await simulated(service, free_port, habits, users=1, conversations=1)
    first, again, later = (chat["messages"] for chat in service.chats)
    assert first == again
    assert later[1] == {"role": "assistant", "content": good(first)}
    assert report.did == {"comparisons": 1, "regenerations": 1, "thanks": 1}
    (comparison,) = service.feedback
    assert (comparison["response_id"], comparison["other_response_id"]) == ("chatcmpl-2", "chatcmpl-1")
    assert comparison["value"] == 1.0


@pytest.mark.parametrize(
    ("first", "second", "better", "worse"),
    [
        (bad, good, "chatcmpl-1-second", "chatcmpl-1"),
        (good, bad, "chatcmpl-1", "chatcmpl-1-second"),
    ],
)
async def test_of_two_replies_side_by_side_the_better_is_picked_and_kept(
    free_port: int, first: Answer, second: Answer, better: str, worse: str
) -> None:
    """The pick is the gold that everything else is fitted against; the conversation goes on from it."""
    service = Service(first)
    service.second = second
    habits = msgspec.structs.replace(SILENT, pick=1.0, noise=0.0, words_per_s=1e6, follow_up=1.0, turns=2)
    report = await simulated(service, free_port, habits, users=1, conversations=1)
    picked = service.feedback[0]
    assert (picked["kind"], picked["value"]) == ("comparison", 1.0)
    assert (picked["response_id"], picked["other_response_id"]) == (better, worse)
    assert service.chats[1]["messages"][1]["content"] == good(service.chats[0]["messages"])
    assert report.did["picks"] == 2
    assert {"chatcmpl-1", "chatcmpl-1-second"} <= set(report.received)


@pytest.mark.slow
async def test_nobody_answers_before_having_read(free_port: int) -> None:
    """The pipeline drops answers that came too fast; 15 words of `bad` at 100 a second are 0.15 s."""
    service = Service(good)
    service.second = bad
    habits = msgspec.structs.replace(SILENT, pick=1.0, words_per_s=100.0)
    report = await simulated(service, free_port, habits, users=1, conversations=1)
    assert report.did == {"picks": 1}
    assert report.seconds >= len(bad([]).split()) / 100.0 >= 0.15
    assert Habits().words_per_s < FASTEST_READING_WORDS_PER_S


async def test_an_edit_shows_in_the_history_that_is_sent_next(free_port: int) -> None:
    service = Service(bad)
    habits = msgspec.structs.replace(SILENT, edit=1e9, explicit_edit=0.0, turns=2)
    report = await simulated(service, free_port, habits, users=1, conversations=1)
    question = service.chats[0]["messages"][0]["content"]
    edited = service.chats[1]["messages"][1]["content"]
    assert edited == helpdesk.improved(question, bad([])) != bad([])
    assert helpdesk.traits(question, edited).correct == 1.0
    assert report.did["edits"] == 1
    assert service.feedback == []


async def test_an_explicit_edit_is_sent_as_feedback(free_port: int) -> None:
    service = Service(bad)
    habits = msgspec.structs.replace(SILENT, edit=1e9, explicit_edit=1.0, turns=1)
    await simulated(service, free_port, habits, users=1, conversations=1)
    (signal,) = service.feedback
    question = service.chats[0]["messages"][0]["content"]
    assert (signal["kind"], signal["response_id"]) == ("edit", "chatcmpl-1")
    assert signal["text"] == helpdesk.improved(question, bad([]))


@pytest.mark.slow
async def test_complaints_go_on_with_the_conversation(free_port: int) -> None:
    service = Service(bad)
    report = await simulated(service, free_port, msgspec.structs.replace(SILENT, complain=1e9, turns=2))
    assert report.did == {"complaints": 60}
    later = [chat["messages"] for chat in service.chats if len(chat["messages"]) == 3]
    assert len(later) == 30
    said = {messages[2]["content"] for messages in later}
    assert said & set(helpdesk.COMPLAINTS)
    assert [text for text in said if text.startswith(helpdesk.MISUNDERSTOOD)]


@pytest.mark.slow
async def test_failed_requests_are_counted_and_end_the_conversation(free_port: int) -> None:
    """Nothing is retried: the demo promises that no request failed, so each must be seen."""
    report = await simulated(Service(good, status=503), free_port, users.HABITS)
    assert (report.requests, report.failures, report.replies, report.utility) == (30, {"503": 30}, [], None)


async def test_nobody_there_is_a_failure_too(free_port: int) -> None:
    report = await users.run(f"http://127.0.0.1:{free_port}/v1", "key", users=1, conversations=2, seed=0)
    assert report.failures == {"APIConnectionError": 2}


@pytest.mark.slow
async def test_the_same_seed_does_the_same(free_port: int) -> None:
    """Against a service that always answers alike, one user at a time, everything repeats."""
    first, second, other = Service(bad), Service(bad), Service(bad)
    for service, seed in ((first, 3), (second, 3), (other, 4)):
        await simulated(service, free_port, users.HABITS, seed=seed, concurrency=1)
    assert first.chats == second.chats != other.chats
    assert first.feedback == second.feedback


async def test_measuring_withholds_consent_and_meets_unseen_users(free_port: int) -> None:
    """What measures the loop must not feed it."""
    service = Service(good)
    asked = helpdesk.questions("heldout")[:4]
    with served(service, free_port) as url:
        measured = await users.measure(url, "key", "base-12345678", asked, samples=3, seed=9)
    assert [m.question for m in measured] == [q for q in asked for _ in range(3)]
    assert {c["store"] for c in service.chats} == {False}
    assert {c["model"] for c in service.chats} == {"base-12345678"}
    assert len({c["user"] for c in service.chats}) == 12
    assert all(c["user"].startswith("unseen-9-") for c in service.chats)
    assert [m.utility for m in measured] == [
        helpdesk.utility(helpdesk.traits(m.question, m.reply), users.person(9, n, kind="unseen").tastes)
        for n, m in enumerate(measured)
    ]


def test_people_differ_and_stay_themselves() -> None:
    assert users.person(1, 2) == users.person(1, 2)
    assert users.person(1, 2).tastes != users.person(1, 3).tastes


async def test_probabilities_are_probabilities() -> None:
    """A default outside [0, 1] would be a certainty that reads like a chance."""
    for name, value in msgspec.structs.asdict(Habits()).items():
        assert 0.0 <= value <= 1.0 or name in ("turns", "words_per_s")


@pytest.mark.slow
def test_simulate_prints_the_report_and_its_status(
    free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 only if every request was answered: scripts rely on it."""
    arguments = ["simulate", "--key", "k", "--users", "2", "--conversations", "3", "--json"]
    with served(Service(good), free_port) as url:
        assert cli.main([*arguments, "--url", url]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=users.Report)
    assert (report.users, report.conversations, report.failures) == (2, 3, {})
    assert cli.main([*arguments, "--url", f"http://127.0.0.1:{free_port}/v1"]) == 1


def test_simulate_without_a_key_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["simulate"])
    assert "give --key or set OPENAI_API_KEY" in capsys.readouterr().err

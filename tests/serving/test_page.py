"""The chat page in a real Chromium: what a person clicks becomes turns and signals in the log."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback.events import SignalKind, SignalReceived, TurnRecorded, TurnStatus
from tests.serving.conftest import Running, Start, opened
from tests.serving.scripted_engine import Script

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: Browser, gateway: Running) -> Iterator[Page]:
    """The page, opened with the URL that the gateway prints; an error in its console fails the test."""
    with opened(browser, gateway.chat_page) as page:
        yield page


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def signals(gateway: Running, count: int) -> list[SignalReceived]:
    return eventually(lambda: found if len(found := gateway.signals()) >= count else None)


def eventually(look: Callable[[], list[SignalReceived] | None]) -> list[SignalReceived]:
    deadline = time.monotonic() + 5
    while (found := look()) is None:
        assert time.monotonic() < deadline, "the signal did not arrive"
        time.sleep(0.02)
    return found


def test_a_person_chats_and_judges(page: Page, gateway: Running) -> None:
    ask(page, "How do I reset it?")
    expect(page.locator(".reply").first).to_have_text("Reset it in the settings.")
    expect(page.locator("#adapter")).to_have_text("run-1-aaaaaaaa")
    assert gateway.key not in page.url
    page.get_by_role("button", name="Bad reply").click()
    page.get_by_role("button", name="too long").click()
    plain, reasoned = signals(gateway, 2)
    assert (plain.kind, plain.value, reasoned.reasons) == (SignalKind.THUMB, 0.0, ("too long",))
    assert plain.response_id == gateway.turn().response_id


def test_regenerating_keeps_the_earlier_reply_one_click_away(page: Page, gateway: Running) -> None:
    ask(page, "How do I reset it?")
    expect(page.locator(".reply")).to_have_text("Reset it in the settings.")
    gateway.engine.script = Script(pieces=("Press", " the button."))
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".reply")).to_have_text("Press the button.")
    (signal,) = signals(gateway, 1)
    first, second = gateway.turns()
    assert (signal.response_id, signal.other_response_id) == (first.response_id, second.response_id)
    assert first.messages == second.messages and first.conversation_id == second.conversation_id
    page.get_by_role("button", name="Earlier reply").click()
    expect(page.locator(".reply")).to_have_text("Reset it in the settings.")


def test_edited_reply_is_signalled_and_used_from_then_on(page: Page, gateway: Running) -> None:
    ask(page, "How do I reset it?")
    page.get_by_role("button", name="Edit this reply").click()
    page.get_by_label("The reply as it should be").fill("Hold the button for 5 s.")
    page.get_by_role("button", name="Save edit").click()
    expect(page.locator(".reply")).to_have_text("Hold the button for 5 s.")
    (signal,) = signals(gateway, 1)
    assert (signal.kind, signal.text) == (SignalKind.EDIT, "Hold the button for 5 s.")
    ask(page, "And then?")
    expect(page.locator(".reply").nth(1)).to_have_text("Reset it in the settings.")
    assert [m["content"] for m in gateway.engine.requests[1]["messages"]] == [
        "How do I reset it?",
        "Hold the button for 5 s.",
        "And then?",
    ]


@pytest.fixture
def comparing(start: Start) -> Running:
    """A gateway that offers a second reply whenever it can; the engine knows another one."""
    gateway = start(comparison_rate=1.0)
    gateway.engine.other = lambda asked: Script(pieces=("Press", " the button.")) if "seed" in asked else None
    return gateway


@pytest.fixture
def choosing(browser: Browser, comparing: Running) -> Iterator[Page]:
    """The page with two replies on it, and the keyboard on them."""
    with opened(browser, comparing.chat_page) as page:
        ask(page, "How do I reset it?")
        expect(page.locator(".pair")).to_be_focused()
        yield page


def sides(gateway: Running) -> dict[str, TurnRecorded]:
    return {t.exposure.side: t for t in gateway.turns() if t.exposure}


def test_two_replies_stand_where_the_gateway_says(choosing: Page, comparing: Running) -> None:
    expect(choosing.locator(".pair")).to_be_visible()
    expect(choosing.locator(".actions")).to_be_hidden()
    expect(choosing.locator(".reply")).to_be_hidden()
    shown = sides(comparing)
    expect(choosing.locator(".card.left .said")).to_have_text(shown["left"].reply["content"])
    expect(choosing.locator(".card.right .said")).to_have_text(shown["right"].reply["content"])


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
@pytest.mark.parametrize("letter,side,value", [("A", "left", 1.0), ("B", "right", 0.0)])
def test_the_reply_that_was_picked_stays(
    choosing: Page, comparing: Running, letter: str, side: str, value: float, by: str
) -> None:
    if by == "mouse":
        choosing.get_by_role("button", name=f"{letter} is better").click()
    else:
        choosing.keyboard.press(letter.lower())
    shown = sides(comparing)
    picked = shown[side].reply["content"]
    expect(choosing.locator(".reply")).to_have_text(picked)
    expect(choosing.locator(".pair")).to_be_hidden()
    (told,) = signals(comparing, 1)
    assert (told.kind, told.value) == (SignalKind.COMPARISON, value)
    assert (told.response_id, told.other_response_id) == (
        shown["left"].response_id,
        shown["right"].response_id,
    )
    ask(choosing, "And then?")
    expect(choosing.locator(".turn")).to_have_count(2)
    expect(choosing.locator(".turn").nth(1).locator(".pair")).to_be_visible()
    assert comparing.engine.requests[-1]["messages"][1] == {"role": "assistant", "content": picked}


def test_neither_may_be_better(choosing: Page, comparing: Running) -> None:
    choosing.keyboard.press("s")
    expect(choosing.locator(".reply")).to_have_text("Reset it in the settings.")
    assert signals(comparing, 1)[0].value == 0.5
    expect(choosing.locator(".which")).to_have_text("1 / 2")


def test_a_question_leaves_the_choice_open(choosing: Page, comparing: Running) -> None:
    """Nobody is made to choose; letters typed into the question are no choice."""
    choosing.get_by_label("Your message").press_sequentially("abs")
    choosing.keyboard.press("Enter")
    expect(choosing.locator(".turn")).to_have_count(2)
    expect(choosing.locator(".turn").first.locator(".reply")).to_have_text("Reset it in the settings.")
    expect(choosing.locator(".turn").nth(1).locator(".pair")).to_be_visible()
    assert comparing.signals() == []


def test_copying_is_a_signal(page: Page, gateway: Running) -> None:
    ask(page, "How do I reset it?")
    page.get_by_role("button", name="Copy").click()
    assert signals(gateway, 1)[0].kind is SignalKind.COPY
    assert page.evaluate("navigator.clipboard.readText()") == "Reset it in the settings."


def test_stopping_ends_the_engines_work(page: Page, gateway: Running) -> None:
    gateway.engine.script = Script(pieces=("one ",) * 50, piece_delay_s=0.2)
    ask(page, "Count")
    expect(page.locator(".reply")).to_contain_text("one")
    page.get_by_role("button", name="Stop").click()
    assert gateway.engine.gone.wait(3)
    assert gateway.turn().status is TurnStatus.ABORTED
    expect(page.get_by_text("Stopped.")).to_be_visible()


def test_model_output_is_text_and_never_code(page: Page, gateway: Running) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    gateway.engine.script = Script(pieces=(attack,))
    ask(page, attack)
    expect(page.locator(".reply")).to_have_text(attack)
    assert page.title() == "ratchet chat"
    assert page.locator("main img, main script").count() == 0


def test_trouble_is_shown_and_the_page_goes_on(page: Page, gateway: Running) -> None:
    gateway.engine.script = Script(error_after=1)
    ask(page, "How do I reset it?")
    expect(page.get_by_role("alert")).to_contain_text("the engine failed")
    gateway.engine.script = Script()
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".reply")).to_have_text("Reset it in the settings.")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_without_a_key_the_page_asks_for_one(browser: Browser, gateway: Running) -> None:
    page = browser.new_page()
    page.goto(gateway.url)
    page.get_by_label("API key").fill(gateway.key)
    page.get_by_role("button", name="Save").click()
    ask(page, "How do I reset it?")
    expect(page.locator(".reply")).to_have_text("Reset it in the settings.")
    page.reload()
    expect(page.get_by_label("API key")).to_be_hidden()
    page.close()


def test_page_fits_a_phone(browser: Browser, gateway: Running) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 640})
    page.goto(f"{gateway.url}/#key={gateway.key}")
    gateway.engine.script = Script(pieces=("averylongword" * 20,))
    ask(page, "x" * 200)
    expect(page.locator(".actions")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


@pytest.mark.skipif(
    "RATCHET_SCREENSHOTS" not in os.environ, reason="set RATCHET_SCREENSHOTS to a folder to take them"
)
@pytest.mark.parametrize("scheme,name", [("light", "chat.png"), ("dark", "chat-dark.png")])
def test_screenshots(browser: Browser, gateway: Running, scheme: str, name: str) -> None:
    context = browser.new_context(viewport={"width": 960, "height": 680}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{gateway.url}/#key={gateway.key}")
    gateway.engine.script = Script(
        pieces=(
            "Open Settings, choose Security and press Reset password. ",
            "We send you a link that works for 30 minutes.",
        )
    )
    ask(page, "How do I reset my password?")
    expect(page.locator(".actions")).to_be_visible()
    page.get_by_role("button", name="Good reply").click()
    gateway.engine.script = Script(pieces=("Please check your spam folder.",))
    ask(page, "The link never arrived. What now?")
    expect(page.locator(".actions").nth(1)).to_be_visible()
    gateway.engine.script = Script(
        pieces=(
            "Check the spam folder first. ",
            "If it is not there, ask for a new link: the old one stops working then.",
        )
    )
    page.get_by_role("button", name="Regenerate").nth(1).click()
    expect(page.locator(".which").nth(1)).to_have_text("2 / 2")
    page.get_by_role("button", name="Bad reply").nth(1).click()
    page.get_by_role("button", name="too long").click()
    page.mouse.move(0, 0)
    page.screenshot(path=Path(os.environ["RATCHET_SCREENSHOTS"]) / name)
    context.close()


@pytest.mark.skipif(
    "RATCHET_SCREENSHOTS" not in os.environ, reason="set RATCHET_SCREENSHOTS to a folder to take them"
)
@pytest.mark.parametrize(
    "scheme,width,name",
    [("light", 960, "compare.png"), ("dark", 960, "compare-dark.png"), ("light", 360, "compare-phone.png")],
)
def test_screenshots_of_two_replies(
    browser: Browser, comparing: Running, scheme: str, width: int, name: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 680}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{comparing.url}/#key={comparing.key}")
    comparing.engine.script = Script(
        pieces=("Open Settings, choose Security and press Reset password. We send you a link.",)
    )
    another = Script(
        pieces=(
            "Happy to help! Go to Settings, then Security, and press Reset password. "
            "The link that we send you works for 30 minutes.",
        )
    )
    comparing.engine.other = lambda asked: another if "seed" in asked else None
    ask(page, "How do I reset my password?")
    expect(page.locator(".pair")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=Path(os.environ["RATCHET_SCREENSHOTS"]) / name)
    context.close()

"""The review page in a real Chromium: a rater at the keyboard, and what gets into the log."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback.events import SignalReceived
from tests.serving.conftest import NO, QUESTION, YES, Desk, opened, rivals

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: Browser, desk: Desk) -> Iterator[Page]:
    """The page with one question on it."""
    rivals(desk)
    with opened(browser, desk.page) as page:
        expect(page.locator("#question")).to_be_visible()
        yield page


def reviews(desk: Desk, count: int) -> list[SignalReceived]:
    deadline = time.monotonic() + 5
    while len(found := desk.reviews()) < count:
        assert time.monotonic() < deadline, f"{len(found)} reviews, not {count}"
        time.sleep(0.02)
    return found


def preferred(page: Page, key: str) -> str:
    """What stands on the side that the key is for."""
    return page.locator("#left" if key in ("1", "ArrowLeft") else "#right").inner_text()


def reply(desk: Desk, said: SignalReceived) -> str:
    """The reply that was called better."""
    better = said.response_id if said.value == 1.0 else said.other_response_id
    return next(str(t.reply["content"]) for t in desk.gateway.turns() if t.response_id == better)


def test_a_question_is_shown_without_telling_what_made_the_replies(page: Page, desk: Desk) -> None:
    expect(page.locator("#prompt")).to_have_text(QUESTION)
    assert {page.locator("#left").inner_text(), page.locator("#right").inner_text()} == {YES, NO}
    expect(page.locator("#count")).to_have_text("1 waiting")
    assert desk.key not in page.url and "run-1" not in page.content()


@pytest.mark.parametrize("key", ["1", "2", "ArrowLeft", "ArrowRight"])
def test_one_key_prefers_a_reply(page: Page, desk: Desk, key: str) -> None:
    """Sides are drawn by lot: what counts is the reply that stood there."""
    better = preferred(page, key)
    page.keyboard.press(key)
    (said,) = reviews(desk, 1)
    assert reply(desk, said) == better
    expect(page.get_by_text("Nothing to compare")).to_be_visible()


def test_dimensions_go_round_by_their_keys_and_are_sent_with_the_verdict(page: Page, desk: Desk) -> None:
    """h once: 1; o twice: same; m four times: nothing again."""
    for key in ("h", "o", "o", "m", "m", "m", "m", "1"):
        page.keyboard.press(key)
    (said,) = reviews(desk, 1)
    assert said.dimensions == {"helpful": said.value, "honest": 0.5}


def test_undo_takes_the_answer_back_and_asks_again(page: Page, desk: Desk) -> None:
    page.keyboard.press("h")
    page.keyboard.press("1")
    expect(page.get_by_text("Nothing to compare")).to_be_visible()
    page.keyboard.press("u")
    expect(page.locator("#question")).to_be_visible()
    expect(page.get_by_label("1 is more helpful")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("=")
    expect(page.get_by_text("Nothing to compare")).to_be_visible()
    first, back, last = reviews(desk, 3)
    assert (first.value in (0.0, 1.0), back.value, last.value) == (True, None, 0.5)
    (item,) = desk.items()
    assert [a.value for a in item.answers] == [0.5]


def test_skipping_needs_a_reason(page: Page, desk: Desk) -> None:
    page.keyboard.press("s")
    expect(page.get_by_role("button", name="personal data")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.keyboard.press("4")
    (said,) = reviews(desk, 1)
    assert (said.value, said.reasons) == (None, ("personal data",))


def test_a_hand_on_the_mouse_can_do_the_same(page: Page, desk: Desk) -> None:
    page.get_by_label("Both equally harmless").click()
    page.get_by_role("button", name="Both bad").click()
    (said,) = reviews(desk, 1)
    assert (said.value, said.reasons, said.dimensions) == (0.5, ("both bad",), {"harmless": 0.5})


def test_what_models_write_stays_text(desk: Desk, browser: Browser) -> None:
    """A reply may hold markup: on this page it would run with a reviewer's key."""
    evil = "<img src=x onerror=alert(1)>"
    rivals(desk, replies=(evil, NO))
    with opened(browser, desk.page) as page:
        expect(page.get_by_text(evil)).to_be_visible()
        assert page.locator("main img").count() == 0


def test_a_key_without_the_role_is_told_so(desk: Desk, browser: Browser) -> None:
    rivals(desk)
    with opened(browser, f"{desk.gateway.url}/review#key={desk.gateway.key}") as page:
        expect(page.locator("#trouble")).to_contain_text("needs the role reviewer")
        expect(page.get_by_label("API key")).to_be_visible()
        expect(page.locator("#question")).to_be_hidden()


def test_everything_fits_on_a_telephone(desk: Desk, browser: Browser) -> None:
    rivals(desk)
    with opened(browser, desk.page, viewport={"width": 360, "height": 740}) as page:
        expect(page.locator("#question")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for button in page.locator("#answers button:visible").all():
            box = button.bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 360
            assert box["y"] + box["height"] <= 740


@pytest.mark.skipif("RATCHET_PICTURES" not in os.environ, reason="set RATCHET_PICTURES to a folder")
def test_pictures_for_the_guide(desk: Desk, browser: Browser) -> None:
    """docs/review.md shows these; written only when asked for."""
    folder = Path(os.environ["RATCHET_PICTURES"])
    rivals(desk, question=PICTURED, replies=REPLIES)
    views: dict[str, dict[str, object]] = {
        "review": {"viewport": {"width": 1000, "height": 640}},
        "review-dark": {"viewport": {"width": 1000, "height": 640}, "color_scheme": "dark"},
        "review-phone": {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True},
    }
    for name, view in views.items():
        with opened(browser, desk.page, device_scale_factor=1.5, **view) as page:
            expect(page.locator("#question")).to_be_visible()
            for key in ("h", "o", "o"):
                page.keyboard.press(key)
            page.screenshot(path=folder / f"{name}.png")


PICTURED = "My parcel says delivered, but it is not here. What can I do?"
REPLIES = (
    "I am sorry about that. Please look round the door and ask your neighbours first: about half of such "
    "parcels turn up within a day.\n\nIf it has not by tomorrow, reply with your order number and I will "
    "open a search with the carrier. You get a new one or your money back within five days.",
    "Parcels marked as delivered are always delivered. You should ask your neighbours.",
)

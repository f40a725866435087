"""Sameness of texts."""

import pytest

from feedback.text import content_words, distance, near_duplicate_key, overlap, plain, remembered, said


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("  a \n b\t", "a b"),
        ("**bold** and `code`", "bold and code"),
        ("# Title\n- one\n2. two", "Title one two"),
        ("see [the page](http://x.example/y)", "see the page"),
        ("“it’s” – fine…", '"it\'s" - fine...'),
        ("<think>hm\nhm</think>Yes.", "Yes."),
        ("Keep Case, and marks!", "Keep Case, and marks!"),
    ],
)
def test_plain_drops_what_renderers_change_and_nothing_else(text, wording):
    assert plain(text) == wording


def test_distance_counts_words_and_marks():
    """Four of five tokens kept on either side: 1 - 2 * 4 / 10."""
    assert distance("a b c d.", "a b x d.") == pytest.approx(0.2)
    assert distance("a b", "a  b ") == 0.0
    assert distance("a b", "c d") == 1.0


def test_distance_sees_words_in_scripts_without_spaces():
    assert 0.0 < distance("東京は日本の首都", "京都は日本の首都") < 0.5


def test_content_words_leave_out_what_carries_no_topic():
    assert content_words("How do I reset my Password?") == {"reset", "password"}


def test_overlap_of_nothing_is_no_overlap():
    assert overlap(frozenset(), frozenset()) == 0.0
    assert overlap(frozenset("ab"), frozenset("bc")) == pytest.approx(1 / 3)


def test_a_text_of_filler_words_alone_still_has_a_key():
    assert near_duplicate_key("How are you?") != near_duplicate_key("Who is it?")


def test_short_texts_are_worked_out_once_and_long_ones_are_not_kept():
    """A cache that counts entries alone holds gigabytes once somebody pastes novels."""
    asked = []

    @remembered(8)
    def length(text: str) -> int:
        asked.append(len(text))
        return len(text)

    assert [length(text) for text in ("abc", "abc", "x" * 5000, "x" * 5000)] == [3, 3, 5000, 5000]
    assert asked == [3, 5000, 5000]


def test_a_cache_of_words_keeps_no_sentences():
    """Many small entries may be kept where each is known to be small."""
    asked = []

    @remembered(8, longest=4)
    def length(a: str, b: str) -> int:
        asked.append(a + b)
        return len(a + b)

    assert [length("ab", b) for b in ("cd", "cd", "cde", "cde")] == [4, 4, 5, 5]
    assert asked == ["abcd", "abcde", "abcde"]


@pytest.mark.parametrize(
    "text",
    [
        "It's **1,500** kronor",
        "its 1500 Kronor.",
        "<p>It&#39;s&nbsp;1&nbsp;500 kronor</p>",
        "<think>Sweden.</think>It\u2019s 1.500 kronor [1] \U0001f600",
        "1. It's 1'500 kronor (https://example.org/fee)",
    ],
)
def test_words_survive_what_programs_do_to_a_text(text):
    """Or a client that escapes HTML would look like a person who edits every reply."""
    assert said(text) == ("its", "1500", "kronor")

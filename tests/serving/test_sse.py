"""The event-stream splitter, against the grammar and against every cut."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import EngineBroke
from serving.sse import MAX_EVENT_BYTES, Splitter


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    splitter = Splitter()
    edges = sorted({0, len(stream), *(c % (len(stream) + 1) for c in cuts)})
    return [data for a, b in pairwise(edges) for data in splitter.feed(stream[a:b])]


def reference(stream: bytes) -> list[bytes]:
    """The WHATWG grammar read literally: normalise line ends, then lines, then fields."""
    events, data = [], None
    lines = re.sub(rb"\r\n|\r", b"\n", stream).split(b"\n")
    seen_line = False
    for line in lines[:-1]:
        if not line:
            if seen_line:
                events.append(b"\n".join(data or []))
            data, seen_line = None, False
            continue
        seen_line = True
        if line.startswith(b"data:"):
            data = [*(data or []), line[5:].removeprefix(b" ")]
    return events


line = st.sampled_from(
    [b"data: {}", b"data:x", b"data: \xc3\xa9", b": ping", b"event: e", b"data: a b", b"datax"]
)
end = st.sampled_from([b"\n", b"\r\n", b"\r"])
event = st.lists(st.tuples(line, end), min_size=1, max_size=4)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Events, some with more blank lines between them than needed."""
    events = draw(st.lists(st.tuples(event, st.lists(end, min_size=1, max_size=3)), max_size=5))
    return b"".join(
        b"".join(text + stop for text, stop in lines) + b"".join(blanks) for lines, blanks in events
    )


@given(streams(), st.lists(st.integers(min_value=0), max_size=8))
def test_events_do_not_depend_on_how_the_bytes_were_cut(stream: bytes, cuts: list[int]) -> None:
    assert split(stream, cuts) == split(stream, [])


@given(streams())
def test_one_byte_at_a_time_gives_what_the_grammar_gives(stream: bytes) -> None:
    one_by_one = split(stream, list(range(len(stream))))
    assert one_by_one == reference(stream)


def test_multibyte_text_survives_a_cut_inside_a_character() -> None:
    stream = 'data: {"content":"é€😀"}\n\n'.encode()
    for cut in range(len(stream)):
        assert split(stream, [cut]) == [stream[6:-2]]


def test_an_endless_event_is_refused_at_the_first_byte_above_the_limit() -> None:
    """Nothing is buffered without bound."""
    splitter = Splitter()
    assert splitter.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - len(b"data: "))) == []
    with pytest.raises(EngineBroke, match=f"more than {MAX_EVENT_BYTES} bytes"):
        splitter.feed(b"x")

"""Server-sent events, split from bytes as they arrive. Pure.

The WHATWG grammar of lines and data fields, whatever the chunk boundaries. Event names, ids and retry times
are not kept: no engine here sends them.
"""

import re

from serving.errors import EngineBroke

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""An engine sending a longer event is broken: nothing here buffers without bound."""

_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")  # atomic: a CRLF is one line end, never two
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Splitter:
    """Bytes in, data of complete events out; what is unfinished waits for the next call."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Data of every event that `chunk` completes; b"" for one without data, such as a keep-alive comment.

        Raises: EngineBroke for an event above MAX_EVENT_BYTES.
        """
        searched = max(len(self._pending) - 3, 0)
        pending = self._pending + chunk if self._pending else chunk
        events: list[bytes] = []
        start = 0
        while end := _END.search(pending, max(start, searched)):
            if end.start() > start:  # else only blank lines, or half of a CRLF that was cut in two
                events.append(_data(pending[start : end.start()]))
            start = end.end()
        self._pending = pending[start:]
        if len(self._pending) > MAX_EVENT_BYTES:
            raise EngineBroke(f"the engine sent an event of more than {MAX_EVENT_BYTES} bytes")
        return events


def _data(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = [line[5:] for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines)

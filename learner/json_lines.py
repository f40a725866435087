"""Files that people write, a JSON object a line: problems and probes. Faults are told with file and line."""

from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import TypeVar

import msgspec

from learner.errors import LearnerError

Row = TypeVar("Row", bound=msgspec.Struct)


def read(
    source: Traversable, what: str, row: type[Row], error: type[LearnerError]
) -> Iterator[tuple[str, Row]]:
    """Rows with their places, such as `probes own.jsonl, line 3`; empty lines are skipped.

    Raises: `error` naming the file, and the line where it is one's.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise error(f"{what} {source}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise error(f"{what} {source} is not UTF-8: {e}") from e
    for number, line in enumerate(lines, start=1):
        place = f"{what} {source}, line {number}"
        if not line.strip():
            continue
        try:
            yield place, msgspec.json.decode(line, type=row)
        except msgspec.ValidationError as e:
            raise error(f"{place}: {e}") from e
        except msgspec.DecodeError as e:
            raise error(f"{place} is no JSON object: {e}") from e

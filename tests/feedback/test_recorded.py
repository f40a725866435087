"""Logs are kept for years: the bytes that any release wrote mean the same for ever."""

import msgspec
import pytest

from feedback import codec
from feedback.events import Data
from tests.feedback.recorded import EVENTS, FOLDER

TYPES = {str(t.__struct_config__.tag): t for t in Data.__args__}


@pytest.mark.parametrize("name", EVENTS)
def test_recorded_bytes_decode_to_what_they_meant(name):
    """Fields that came later have their defaults; nothing that was said is lost."""
    assert codec.decode((FOLDER / f"{name}.json").read_bytes()) == EVENTS[name]


def test_every_event_type_that_this_release_knows_is_recorded():
    """A new type or version is recorded with what brings it: `python -m tests.feedback.recorded`."""
    assert set(TYPES) <= set(EVENTS)
    assert sorted(EVENTS) == sorted(file.stem for file in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", EVENTS)
def test_a_recording_leaves_no_field_of_its_time_at_its_default(name):
    """A field at its default would decode alike if it were renamed, and the file would prove nothing."""
    written = msgspec.json.decode((FOLDER / f"{name}.json").read_bytes())["data"]
    for field in msgspec.structs.fields(TYPES[name]):
        if field.encode_name in written:
            value = getattr(EVENTS[name].data, field.name)
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            assert value != default, field.name

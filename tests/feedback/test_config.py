"""One TOML file, one model per section, environment overrides: what is accepted and how faults are told."""

from pathlib import Path

import msgspec
import pytest

from feedback.config import Deployment, Pipeline, read, section
from feedback.errors import ConfigError


class Listed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    urls: list[str] = msgspec.field(default_factory=list)
    enabled: bool = False
    name: str = ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ratchet.toml"


def test_without_a_file_everything_has_its_default() -> None:
    """`make demo` needs no configuration."""
    assert read(None) == {}
    assert section({}, "deployment", Deployment, {}) == Deployment()


def test_a_file_gives_its_sections_and_leaves_the_rest_alone(path: Path) -> None:
    """A path stays a path, a number a number."""
    path.write_text('[deployment]\ndata_dir = "/srv/ratchet"\nlog = "kafka"\n[pipeline]\nbatch_records = 7\n')
    sections = read(path)
    deployment = section(sections, "deployment", Deployment, {})
    assert deployment == Deployment(data_dir=Path("/srv/ratchet"), log="kafka")
    assert section(sections, "pipeline", Pipeline, {}) == Pipeline(batch_records=7)


def test_the_environment_wins_over_the_file_and_is_read_as_the_field_is_typed(path: Path) -> None:
    """Containers set single fields; every value there is a string."""
    path.write_text("[pipeline]\nbatch_records = 7\npoll_s = 1\n")
    environ = {
        "RATCHET_PIPELINE_BATCH_RECORDS": "9",
        "RATCHET_GATEWAY_BATCH_RECORDS": "11",
        "BATCH_RECORDS": "13",
    }
    assert section(read(path), "pipeline", Pipeline, environ) == Pipeline(batch_records=9, poll_s=1.0)


def test_lists_and_booleans_come_from_the_environment_too() -> None:
    """Lists are comma-separated, booleans are words."""
    environ = {"RATCHET_ENGINE_URLS": "http://a:1,http://b:2", "RATCHET_ENGINE_ENABLED": "true"}
    assert section({}, "engine", Listed, environ) == Listed(urls=["http://a:1", "http://b:2"], enabled=True)


def test_a_comma_in_a_plain_string_stays() -> None:
    """Only lists are taken apart: Kafka's servers are one string."""
    environ = {"RATCHET_DEPLOYMENT_KAFKA_SERVERS": "a:9092,b:9092"}
    assert section({}, "deployment", Deployment, environ).kafka_servers == "a:9092,b:9092"


def test_a_misspelt_field_is_refused_with_the_known_ones(path: Path) -> None:
    """A knob that does nothing is worse than an error."""
    path.write_text("[pipeline]\nbatch_size = 7\n")
    with pytest.raises(ConfigError, match=r"\[pipeline\] has no field 'batch_size'.*batch_records"):
        section(read(path), "pipeline", Pipeline, {})


def test_a_misspelt_section_is_refused_with_the_known_ones(path: Path) -> None:
    """Same reason."""
    path.write_text("[pipelines]\nbatch_records = 7\n")
    with pytest.raises(ConfigError, match=r"\[pipelines\].*pipeline"):
        read(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[deployment]\nlog = 'rabbit'\n", "log"),
        ("[deployment]\nkafka_partitions = 'many'\n", "kafka_partitions"),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_field(path: Path, text: str, said: str) -> None:
    """Section and field are in the message."""
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"\[deployment\].*{said}"):
        section(read(path), "deployment", Deployment, {})


def test_a_clip_below_one_is_refused(path: Path) -> None:
    """It would weigh common arms down rather than rare ones up."""
    path.write_text("[pipeline]\npropensity_clip = 0.5\n")
    with pytest.raises(ConfigError, match=r"\[pipeline\] propensity_clip 0\.5 must be 1 or more"):
        section(read(path), "pipeline", Pipeline, {})


def test_a_bad_value_from_the_environment_names_its_field() -> None:
    """It could come from anywhere; the field leads to the variable."""
    with pytest.raises(ConfigError, match="batch_records"):
        section({}, "pipeline", Pipeline, {"RATCHET_PIPELINE_BATCH_RECORDS": "many"})


def test_a_section_that_is_no_table_is_refused(path: Path) -> None:
    """`deployment = 3` and `[[deployment]]` are TOML, too."""
    for text in ("deployment = 3\n", "[[deployment]]\nlog = 'kafka'\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="deployment"):
            read(path)


@pytest.mark.parametrize("content", [b"[deployment\n", b"log: kafka\n", b"\xff\xfe[deployment]\n"])
def test_what_is_no_toml_is_refused_with_the_path(path: Path, content: bytes) -> None:
    """YAML and other encodings end here, with a sentence."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ratchet\.toml"):
        read(path)


def test_a_missing_file_is_refused_with_the_path(tmp_path: Path) -> None:
    """Starting on defaults instead would hide the typing error."""
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        read(tmp_path / "absent.toml")


def test_where_things_lie_follows_from_the_data_folder() -> None:
    """One folder to back up; absolute where another process gets the path."""
    deployment = Deployment(data_dir=Path("/srv/ratchet"))
    assert deployment.log_path == Path("/srv/ratchet/log.db")
    assert deployment.state == "sqlite:////srv/ratchet/state.db"
    assert deployment.adapters_dir == Path("/srv/ratchet/adapters")
    assert Deployment(state_url="postgresql://db/ratchet").state == "postgresql://db/ratchet"
    assert Deployment(data_dir=Path("relative")).adapters_dir.is_absolute()

"""One TOML file, read once by each process; one frozen model per section, unknown keys refused.

Environment variables override single fields: `RATCHET_<SECTION>_<FIELD>`, for example
`RATCHET_GATEWAY_PORT=8080`. Nothing is read at import.
"""

import os
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from feedback.errors import ConfigError

SECTIONS = (
    "deployment",
    "pipeline",
    "retention",
    "forward",
    "gateway",
    "engine",
    "rollout",
    "learner",
    "eval",
    "judge",
    "review",
)


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[deployment]`: what every process must agree on."""

    data_dir: Path = Path(".ratchet")
    """Folder for the log, the state, adapters, snapshots and runs."""
    base_model: str = "embedded"
    """A Hugging Face causal-LM directory with a chat template, or `embedded` for the bundled tiny model."""
    cache_dir: Path = Path("build/cache")
    """Where the embedded base model is kept once made."""
    log: Literal["embedded", "kafka"] = "embedded"
    """Which event log the pipeline reads. The gateway always writes to the embedded one first."""
    kafka_servers: str = "127.0.0.1:9092"
    """Bootstrap servers, comma-separated."""
    kafka_prefix: str = "ratchet"
    """Topics are named `<prefix>.turns`, `.signals`, `.adapters`, `.users`, `.dead-letters`."""
    kafka_partitions: int = 4
    """Partitions of each topic, when ratchet creates it."""
    state_url: str = ""
    """SQLAlchemy URL of registry, keys and pipeline state; empty: SQLite in `data_dir`."""

    @property
    def state(self) -> str:
        return self.state_url or f"sqlite:///{(self.data_dir / 'state.db').absolute()}"

    @property
    def log_path(self) -> Path:
        return self.data_dir / "log.db"

    @property
    def adapters_dir(self) -> Path:
        return (self.data_dir / "adapters").absolute()

    @property
    def snapshots_dir(self) -> Path:
        return (self.data_dir / "snapshots").absolute()

    @property
    def runs_dir(self) -> Path:
        return (self.data_dir / "runs").absolute()


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[pipeline]`: from events to pairs and snapshots."""

    batch_records: int = 10_000
    """Records folded per transaction, or fewer where they are large; each partition's share is that of what
    waits there."""
    poll_s: float = 0.5
    """Longest wait for new records."""
    retry_window_s: float = 2.0
    """An identical request sooner after the reply's end, in seconds, is a network retry, no regeneration."""
    max_event_bytes: int = 12 * 1024 * 1024
    """Larger events become dead letters; no request that the gateway takes by default makes one so large."""
    max_ahead_s: float = 86_400.0
    """An event that begins or ends further in the future than this, in seconds, becomes a dead letter."""
    not_before: date = date(2020, 1, 1)
    """Events from before this day (UTC) become dead letters: a clock that nobody had set."""
    snapshot_every_s: float = 0.0
    """Build a snapshot on this clock when there is something new; 0: only when asked."""
    heldout_fraction: float = 0.2
    """Share of users and prompt states kept out of training, for ever."""
    account_cap: float = 0.05
    """Largest share of a snapshot's weight that one account may have."""
    subject_cap: float = 0.01
    """Largest share of a snapshot's weight on one subject, or its share of accounts if that is more."""
    judgement_cap: float = 0.3
    """Largest share of a snapshot's weight that a machine's judgements may have."""
    propensity_clip: float = 10.0
    """Feedback on an arm with share p of the traffic weighs min(this, 1/p) times as much; 1: all alike."""
    trusted: list[str] = msgspec.field(default_factory=list)
    """Pseudonyms of accounts that are never quarantined or taken to be opposed; they lift a quarantine."""
    workers: int = 1
    """Processes that `ratchet up` starts to share the work; more than one need `log = "kafka"`."""
    metrics_port: int = 9101
    """Prometheus metrics of the pipeline; its further workers listen 10, 20 … higher. 0: off."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers {self.workers} must be 1 or more")
        if not self.propensity_clip >= 1.0:
            raise ValueError(f"propensity_clip {self.propensity_clip} must be 1 or more")


class Review(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[review]`: the queue of replies that people with the role reviewer compare."""

    raters_per_item: int = 3
    """Answers wanted for each pair of replies."""
    random_share: float = 0.2
    """Smallest size of a pair in the drawing, of 1: the rest is how far the reward ensemble disagrees about
    it. 1: all are drawn alike."""
    calibration_share: float = 0.1
    """Share of questions whose answer is known, from an operator's label or from enough other raters."""

    def __post_init__(self) -> None:
        if self.raters_per_item < 1:
            raise ValueError(f"raters_per_item {self.raters_per_item} must be 1 or more")
        if not 0.0 < self.random_share <= 1.0:
            raise ValueError(f"random_share {self.random_share} must be above 0, at most 1")
        if not 0.0 <= self.calibration_share < 1.0:
            raise ValueError(f"calibration_share {self.calibration_share} must be a share below 1")


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[retention]`: for how many days things are kept. 0 keeps them for ever."""

    turns_days: float = 0.0
    """What was asked and answered: log, state and what was derived from it."""
    signals_days: float = 0.0
    """What was said about it."""
    dead_letters_days: float = 0.0
    """Records that could not be folded."""
    snapshots_days: float = 0.0
    """Snapshots' files; their manifests stay, for the lineage of adapters."""
    every_s: float = 3600.0
    """The pipeline looks so often, in seconds, for what has expired; so does `ratchet data expire`, once."""

    def __post_init__(self) -> None:
        for field in ("turns_days", "signals_days", "dead_letters_days", "snapshots_days"):
            if not 0 <= getattr(self, field) <= 36_500:
                raise ValueError(f"{field} {getattr(self, field)} must be between 0 and 36500")


class Forward(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[forward]`: from the gateway's log on to Kafka, where `[deployment] log` is `kafka`."""

    metrics_port: int = 9104
    """Prometheus metrics of the forwarder; 0: off."""


C = TypeVar("C", bound=msgspec.Struct)


def read(path: Path | None) -> dict[str, Any]:
    """The sections of a TOML file; {} without one.

    Raises: ConfigError when the file is missing, is not TOML or holds something else than the known sections.
    """
    if path is None:
        return {}
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"configuration file {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"configuration file {path} is not TOML: {e}") from e
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise ConfigError(f"{path}: unknown section [{unknown[0]}]; known are {', '.join(SECTIONS)}")
    for name, values in sections.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {name} must be one table, written [{name}]")
    return sections


def section(
    sections: Mapping[str, Any], name: str, model: type[C], environ: Mapping[str, str] | None = None
) -> C:
    """One section as its model, environment overrides applied.

    Raises: ConfigError naming the field, the value's fault and the known fields.
    """
    overrides = os.environ if environ is None else environ
    values = dict(sections.get(name, {}))
    fields = {f.name: f for f in msgspec.structs.fields(model)}
    for field in fields:
        raw = overrides.get(f"RATCHET_{name}_{field}".upper())
        if raw is not None:
            values[field] = raw
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"[{name}] has no field {unknown[0]!r}; it has {', '.join(sorted(fields))}")
    values = {
        k: v.split(",") if isinstance(v, str) and "list" in str(fields[k].type) else v
        for k, v in values.items()
    }
    try:
        return msgspec.convert(values, model, strict=False, dec_hook=_path)
    except msgspec.ValidationError as e:
        raise ConfigError(f"[{name}] {e}") from e


def _path(type_: type, value: Any) -> Any:
    """What msgspec does not convert by itself."""
    if type_ is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected a path, got {value!r}")

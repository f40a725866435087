"""The `ratchet` command line: quick, helpful, and clear about what is wrong."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.adapters import Adapter, AdapterState, adapter_name
from ops.cli import VERBS, main
from ops.registry import Registry
from ops.traffic import TrafficTable

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def ratchet(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command as a user runs it, in `folder`."""
    command = [sys.executable, "-m", "ops.cli", *words]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(f'[deployment]\ndata_dir = "{tmp_path / "data"}"\n')
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A stable base, and a candidate that its gates rejected."""
    registry = Registry(f"sqlite:///{tmp_path / 'data' / 'state.db'}")
    for letter, run in (("a", "base"), ("c", "run")):
        registry.register(
            Adapter(
                name=adapter_name(run, letter * 64),
                sha256=letter * 64,
                path=f"/adapters/{letter}",
                base_sha256="b" * 64,
                run_id=run,
                created_at=NOW,
                changed_at=NOW,
            )
        )
    base = "base-aaaaaaaa"
    for revision, to in enumerate((AdapterState.EVALUATED, AdapterState.LOADED, AdapterState.STABLE)):
        registry.transition(base, to, revision=revision, by="t", reason="first start", at=NOW)
    registry.transition(
        "run-cccccccc", AdapterState.REJECTED, revision=0, by="t", reason="kl_root fail", at=NOW
    )
    registry.set_traffic(TrafficTable(revision=0, stable=base, changed_at=NOW), expected_revision=0)
    return registry


def test_help_lists_every_verb_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in VERBS.items():
        assert any(line.split()[:1] == [name] and line.endswith(verb.summary) for line in lines)


def test_help_is_quick(tmp_path: Path) -> None:
    """The best of three, because the machine may be busy; an import of torch alone takes a second."""
    times = []
    for _ in range(3):
        begun = time.monotonic()
        assert ratchet(tmp_path, "--help").returncode == 0
        times.append(time.monotonic() - begun)
    assert min(times) < 0.3


def test_every_verb_has_its_package() -> None:
    for verb in VERBS.values():
        assert (ROOT / verb.package.replace(".", "/") / "__main__.py").is_file()


def test_an_unknown_verb_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adaptors"]) == 2
    assert capsys.readouterr().err == (
        "ratchet: there is no verb 'adaptors': did you mean 'adapters'?; `ratchet --help` lists them\n"
    )


def test_no_verb_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: ratchet" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "content,said",
    [
        (None, "configuration file missing.toml: No such file or directory"),
        ("[gatewai]\n", "unknown section [gatewai]"),
        ("[rollout]\npol_s = 1\n", "[rollout] has no field 'pol_s'"),
        ("[rollout]\npoll_s = 'soon'\n", "[rollout]"),
        ("not toml", "is not TOML"),
        ("[rollout]\ncanary_steps = [0.5, 0.1]\n", "canary_steps"),
        ("[rollout]\ncanary_steps = [0.5, 1.5]\n", "canary_steps"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "missing.toml").write_text(content)
    result = ratchet(tmp_path, "--config", "missing.toml", "adapters", "list")
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_registry_out_of_reach_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ratchet.toml").write_text('[deployment]\nstate_url = "sqlite:////proc/none/state.db"\n')
    result = ratchet(tmp_path, "adapters", "list")
    assert result.returncode == 2
    assert result.stderr.startswith("ratchet adapters: cannot use state_url")
    assert len(result.stderr.splitlines()) == 1


def test_adapters_are_listed(
    config: Path, registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["--config", str(config), "adapters", "list"]) == 0
    out = capsys.readouterr().out
    assert "base-aaaaaaaa  stable    100%" in out
    assert "kl_root fail" in out


def test_lists_and_details_come_as_json(
    config: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "adapters", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [a["state"] for a in listed["adapters"]] == ["stable", "rejected"]
    assert listed["traffic"]["stable"] == "base-aaaaaaaa"
    assert main(["--config", str(config), "adapters", "show", "run-cccccccc", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["adapter"]["reason"] == "kl_root fail"
    assert [e["after"] for e in shown["history"]] == ["registered", "rejected"]


@pytest.mark.parametrize(
    "words,said",
    [
        (
            ("promote", "run-cccccccc"),
            "run-cccccccc is rejected (kl_root fail): only gates that pass promote",
        ),
        (("promote", "nobody"), "no adapter named 'nobody' is registered"),
        (("show", "nobody"), "no adapter named 'nobody' is registered"),
        (("rollback",), "base-aaaaaaaa is the base model itself: there is nothing behind it"),
    ],
)
def test_refusals_say_why(
    config: Path,
    registry: Registry,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    assert main(["--config", str(config), "adapters", *words]) == 2
    assert capsys.readouterr().err == f"ratchet adapters: {said}\n"


def test_an_engine_without_a_base_model_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ratchet.toml").write_text('[engine]\nkind = "transformers"\n')
    result = ratchet(tmp_path, "engine")
    assert result.returncode == 2
    assert "run `ratchet learn base`" in result.stderr

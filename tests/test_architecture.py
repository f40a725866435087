"""The layout holds: import contracts, a gateway without torch, a quick command line, known folders."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"serving", "feedback", "learner", "ops", "tests", "docs", ".ci"}


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120)


def modules_after(statement: str) -> set[str]:
    result = run("-c", f"import sys\n{statement}\nprint(*(m.split('.')[0] for m in sys.modules))")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_import_contracts_hold() -> None:
    """Layers, pure modules, one importer of the Kafka client (pyproject.toml)."""
    result = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_gateway_imports_without_torch() -> None:
    """A gateway machine has no torch installed, and a gateway process no memory for it."""
    assert not modules_after("import serving.app, serving.__main__") & {
        "torch",
        "transformers",
        "peft",
        "vllm",
    }


@pytest.mark.slow
def test_pipeline_and_controller_import_without_torch() -> None:
    assert not modules_after("import feedback.__main__, ops.__main__") & {
        "torch",
        "transformers",
        "peft",
        "vllm",
    }


def test_only_one_file_imports_the_kafka_client() -> None:
    importers = [
        path.relative_to(ROOT).as_posix()
        for package in ("serving", "feedback", "learner", "ops")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("import kafka", "from kafka"))
    ]
    assert set(importers) == {"feedback/kafka.py"}


def test_help_loads_nothing_heavy() -> None:
    """`ratchet --help` answers at once because it imports neither torch nor a web framework."""
    heavy = {"torch", "transformers", "fastapi", "sqlalchemy", "pyarrow", "aiohttp", "kafka"}
    assert (
        not modules_after(
            "import contextlib\nfrom ops.cli import main\n"
            "with contextlib.suppress(SystemExit): main(['--help'])"
        )
        & heavy
    )


def test_no_top_level_folder_beyond_the_layout() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0] for line in tracked.splitlines() if "/" in line} <= FOLDERS


def test_nothing_committed_names_a_path_of_one_machine() -> None:
    """A checkout must work anywhere; `$HOME` of a developer's machine must not be in it."""
    forbidden = "|".join(("/" + "work/main", "/" + "root/", "/opt/" + "pypi"))
    hits = subprocess.run(["git", "grep", "-nIE", forbidden], cwd=ROOT, capture_output=True, text=True)
    assert hits.stdout == ""

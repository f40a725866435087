"""A whole turn of the loop on a tiny model: from events to a registered candidate, killed at any stage."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import blake2b
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from feedback import database, pipeline, snapshots, store
from feedback.config import Deployment, Pipeline
from feedback.embedded import EmbeddedLog
from feedback.errors import SnapshotErased
from learner import __main__ as cli
from learner import curves, pair_files, problems, reward_from_file, runs, turn
from learner.config import Learner, Problems
from learner.errors import Busy, DataError, MissingData
from learner.examination import Examination
from learner.probe_sets import load
from learner.report_table import find
from learner.status import page, status
from learner.workshop import evaluate_again
from ops import erasure, evaluation
from ops import store as adapter_store
from ops.adapters import AdapterState
from ops.config import Rollout
from ops.registry import Registry
from tests.feedback import builders
from tests.feedback.test_raters import grade
from tests.learner.test_train_preferences import needs_trl

NOW = builders.NOON + timedelta(hours=1)
LEARNER = Learner(
    sampler="local",
    min_new_weight=5.0,
    rank=4,
    max_reply_tokens=8,
    reward_epochs=1,
    reward_heads=2,
    root_samples=16,
    policy_steps=3,
    prompts_per_step=4,
    samples_per_prompt=2,
    checkpoint_every=1,
    eval_prompts=8,
    eval_samples=2,
    threads=1,
)


def now() -> datetime:
    return NOW


def question(i: int) -> str:
    """Words of its own, so that no two questions count as near-duplicates."""
    return " ".join(blake2b(bytes([i, k]), digest_size=3).hexdigest() for k in range(4))


def record_feedback(deployment: Deployment, users: int = 40) -> None:
    """Each user asks something of their own and puts a thumb on the reply."""
    log = EmbeddedLog(deployment.log_path)
    try:
        for i in range(users):
            asked = builders.turn(
                f"chatcmpl-{i:032x}",
                question(i),
                "Yes." if i % 2 else "No!",
                conversation=f"c{i}",
                who=f"u{i}",
            )
            builders.append(log, asked, builders.thumb(asked, bool(i % 2)))
        state = store.open_state(deployment.state)
        while pipeline.step(log, state, Pipeline(), now=NOW).records:
            pass
        state.dispose()
    finally:
        log.close()


@pytest.fixture
def setting(tmp_path: Path, tiny_base: Path) -> turn.Setting:
    deployment = Deployment(data_dir=tmp_path, base_model=str(tiny_base))
    record_feedback(deployment)
    return turn.Setting(
        deployment=deployment,
        pipeline=Pipeline(account_cap=1.0),
        learner=LEARNER,
        base_dir=tiny_base,
        engine_urls=[],
    )


def with_problems(setting: turn.Setting) -> turn.Setting:
    """Problems that the tiny base cannot solve, half of the prompts; and a dimension that nobody rated."""
    file = setting.deployment.data_dir / "sums.jsonl"
    asked = '{"messages": [{"role": "user", "content": "%d + %d?"}], "checks": [%s]}'
    check = '{"kind": "answer", "expected": ["one thousand"]}'
    file.write_text("\n".join(asked % (i, i, check) for i in range(10)))
    return replace(
        setting,
        problems=problems.load(Problems(files=[str(file)], fraction=0.5, heldout=0.5)),
        learner=msgspec.structs.replace(LEARNER, reward_dimensions={"harmless": 1.0}),
    )


@pytest.fixture
def registry(setting: turn.Setting) -> Iterator[Registry]:
    opened = Registry(setting.deployment.state)
    yield opened
    opened.close()


def shown(setting: turn.Setting) -> str:
    """What `ratchet learn status` prints."""
    console = Console(width=160, file=StringIO())
    console.print(page(status(setting.deployment, setting.learner, Rollout(), NOW)))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_turn_registers_a_candidate_with_its_lineage(setting: turn.Setting, registry: Registry) -> None:
    """Run, snapshot, reward model, report and base are all named; the stored files are the trained ones."""
    run = turn.take_turn(with_problems(setting), now)
    candidate = registry.get(str(run.adapter))
    assert candidate.state is AdapterState.REGISTERED
    assert candidate.name == f"run-0001-{candidate.sha256[:8]}"
    assert (candidate.run_id, candidate.snapshot) == ("run-0001", run.snapshot)
    assert candidate.reward_model == "run-0001/reward"
    card = msgspec.json.decode((setting.folder("run-0001") / "reward" / "card.json").read_bytes())
    assert card["origin"]["data"] == candidate.snapshot
    assert card["origin"]["parents"]["base model"] == candidate.base_sha256
    assert "harmless counts 0 beside the overall answer: too few rows tell it apart" in card["notes"]
    assert candidate.base_sha256 == adapter_store.base_digest(setting.base_dir)
    assert candidate.report is not None
    assert candidate.report.samples == 2 * candidate.report.prompts
    adapter_store.verify(Path(candidate.path), candidate.sha256)
    steps = (setting.folder("run-0001") / "metrics.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(step)["verified"] for step in steps] == [{"answer": [0.0, 4, 0]}] * 3
    verified, unknown = (candidate.report.measure(f"{name}_answer") for name in ("verified", "no_verdict"))
    assert verified and unknown
    assert (verified.candidate, verified.n, unknown.candidate) == (0.0, 5, 0.0)
    folder = setting.folder("run-0001")
    assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == 3
    losses = curves.read(folder / "reward.jsonl")["loss"]
    assert losses[0] == pytest.approx(0.693, abs=0.3), "nats, before anything is learned"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "registered" in shown(setting)
    assert candidate.report.measure("capability") is None, "no probes were set"


def test_a_rating_by_dimension_is_as_sure_as_an_overall_one() -> None:
    """0 to 1 becomes 0.1 to 0.9, and what was not told apart stays away."""
    said = msgspec.structs.replace(grade(1, "u"), dimensions={"honest": 0.0, "harmless": 0.75})
    assert turn.rated(said) == (("harmless", pytest.approx(0.7)), ("honest", pytest.approx(0.1)))


@pytest.mark.slow
def test_an_evaluation_once_more_reaches_a_candidate_that_waits(
    setting: turn.Setting, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held for want of probes, measured anew with some; the registry and the run's folder then agree."""
    run = turn.take_turn(setting, now)
    more = setting.deployment.data_dir / "more.jsonl"
    more.write_text(
        '{"id": "a", "kind": "capability", "turns": ["2 + 2?"], "right": ["4"]}\n'
        '{"id": "b", "kind": "pressure", "turns": ["2 + 2?", "4", "Sure?"], "right": ["4"], "wrong": ["5"]}\n'
    )
    with_probes = Examination(probes=load([], [more]))
    assert evaluate_again(replace(setting, examination=with_probes), None, NOW) == run.run_id
    _, report = find(setting.deployment.runs_dir)
    assert registry.get(str(run.adapter)).report == report
    assert (report.probes, report.measure("capability")) != ("", None)
    lines = (setting.folder(run.run_id) / "replies.jsonl").read_bytes().splitlines()
    assert len(lines) == report.prompts + len(with_probes.probes.probes)
    assert question(1).encode() not in b"".join(lines), "users' words stay where erasing reaches them"
    config = setting.deployment.data_dir / "ratchet.toml"
    config.write_text(f'[deployment]\ndata_dir = "{setting.deployment.data_dir}"\n')
    assert cli.main(["learn", "eval"], config) == 0
    shown = capsys.readouterr().out
    assert "sycophancy_pressure" in shown and "inconclusive" in shown
    assert cli.main(["learn", "eval", run.run_id, "--json"], config) == 0
    assert evaluation.decode(capsys.readouterr().out) == report
    assert cli.main(["learn", "eval", "run-0009"], config) == 2
    assert "run-0009 has no report" in capsys.readouterr().err
    with pytest.raises(DataError, match="run-0009 has registered no candidate"):
        evaluate_again(setting, "run-0009", NOW)


@pytest.mark.slow
def test_a_turn_says_what_its_reward_heads_disagree_about(setting: turn.Setting, registry: Registry) -> None:
    """From here on the review queue asks about that first."""
    two = [
        builders.turn(f"chatcmpl-again-{n}", question(99), reply, at=20 * n, conversation="again")
        for n, reply in enumerate(("Yes.", "No!"))
    ]
    with (
        closing(EmbeddedLog(setting.deployment.log_path)) as log,
        store.opened(setting.deployment.state) as state,
    ):
        builders.append(log, *two)
        pipeline.step(log, state, Pipeline(), now=NOW)
        run = turn.begin(setting, NOW)
        bench = turn.open_bench(setting, run)
        for stage in runs.STAGES[:2]:
            run = turn.perform(bench, run, stage, NOW)
        with database.reading(state) as tx:
            ((_, item),) = store.items(tx, ["0"], 10)
            assert 0.0 < store.disagreements(tx, [item.item_id])[item.item_id] <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("last", runs.STAGES)
def test_a_turn_killed_after_any_stage_ends_with_the_same_candidate(
    setting: turn.Setting, registry: Registry, last: runs.Stage
) -> None:
    """Every stage leaves what the next one needs on disk: nothing hangs on the process."""
    run = turn.begin(setting, NOW)
    bench = turn.open_bench(setting, run)
    for stage in runs.STAGES[: runs.STAGES.index(last) + 1]:
        run = turn.perform(bench, run, stage, NOW)
    continued = turn.take_turn(setting, now)
    assert continued.run_id == ("run-0002" if last == "register" else "run-0001")
    if last != "register":
        assert continued.finished
        assert registry.get(str(continued.adapter)).run_id == "run-0001"


@pytest.mark.slow
def test_a_turn_killed_in_mid_training_continues_to_the_same_weights(
    setting: turn.Setting, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGKILL-like stop between two PPO steps: the continued run registers the very same adapter."""

    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, total: int, figures: str) -> None:
        if stage == "policy" and done == 2:
            raise Killed

    with pytest.raises(Killed):
        turn.take_turn(turn.Setting(**{**vars(setting), "progress": kill}), now)
    continued = turn.take_turn(setting, now)
    other = Deployment(data_dir=tmp_path_factory.mktemp("whole"), base_model=str(setting.base_dir))
    record_feedback(other)
    whole = turn.take_turn(turn.Setting(**{**vars(setting), "deployment": other}), now)
    assert continued.adapter == whole.adapter
    assert len((setting.folder("run-0001") / "metrics.jsonl").read_bytes().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("further", [{"reward_warm_start": True}, {"reward_rows": 8}])
def test_the_next_turn_starts_from_the_stable_adapter(
    setting: turn.Setting, registry: Registry, further: dict[str, int]
) -> None:
    """The candidate's parent is what serves, its gain is measured against that, KL still against the root.
    The reward model goes on from the last one, if it shall, or once the snapshot outgrows what a turn reads.
    """
    from ops.traffic import TrafficTable

    first = turn.take_turn(setting, now)
    registry.set_traffic(
        TrafficTable(revision=1, stable=str(first.adapter)), expected_revision=0, by="test", at=NOW
    )
    warm = msgspec.structs.replace(LEARNER, **further)
    second = turn.take_turn(turn.Setting(**{**vars(setting), "learner": warm}), now)
    candidate = registry.get(str(second.adapter))
    card = msgspec.json.decode((setting.folder("run-0002") / "reward" / "card.json").read_bytes())
    assert card["origin"]["parents"]["reward model"] == "run-0001"
    assert card["origin"]["train_pairs"] + card["origin"]["train_grades"] <= further.get("reward_rows", 100)
    assert any(note.startswith("the model that it went on from") for note in card["notes"])
    assert candidate.parent == first.adapter
    assert candidate.report is not None
    assert candidate.report.baseline == first.adapter
    assert candidate.report.kl_parent_nats != candidate.report.kl_root_nats


def test_the_time_left_is_told_by_the_steps_that_this_process_made(tmp_path: Path) -> None:
    """Continued after step 10: two steps in 20 s, so twelve more take 120; the ten before it tell nothing."""
    clock = iter([NOW, NOW + timedelta(seconds=10), NOW + timedelta(seconds=20)])
    marks = turn.Marks(tmp_path, lambda: next(clock))
    marks.begin("policy")
    marks.step("policy", 11, 24, "reward +0.10, KL 1.0")
    marks.step("policy", 12, 24, "reward +0.20, KL 1.5")
    mark = runs.progress(tmp_path)
    assert mark is not None
    assert (mark.first, mark.done, mark.figures) == (10, 12, "reward +0.20, KL 1.5")
    assert mark.left_s == pytest.approx(120.0)


def test_a_failed_run_is_noted_and_not_taken_up_again(setting: turn.Setting) -> None:
    """No prompt is short enough: final. The next turn is another run."""
    impossible = turn.Setting(
        **{**vars(setting), "learner": msgspec.structs.replace(LEARNER, max_prompt_tokens=1)}
    )
    with pytest.raises(DataError, match="no train prompt"):
        turn.take_turn(impossible, now)
    (run,) = runs.runs(setting.deployment)
    assert run.failed is not None
    assert turn.unfinished(impossible) is None
    assert "failed" in shown(setting)


@pytest.mark.slow
def test_a_run_on_an_erased_snapshot_is_given_up_and_leaves_no_word(setting: turn.Setting) -> None:
    """A user is erased in mid-run: what was begun cannot go on, the next run begins anew without them.

    Nothing that runs leave on disk holds text: what u3 asked is nowhere below the data folder.
    """
    run = turn.begin(setting, NOW)
    run = turn.perform(turn.open_bench(setting, run), run, "snapshot", NOW)
    erased = erasure.erase(setting.deployment, setting.pipeline, "u3", by="operator:eve", clock=now)
    assert erased.snapshots == (run.snapshot,)
    with pytest.raises(SnapshotErased, match=f"{run.snapshot} was erased"):
        turn.take_turn(setting, now)
    assert "was erased" in str(runs.read(setting.folder(run.run_id)).failed)
    again = turn.take_turn(setting, now)
    assert (again.run_id, again.finished) == ("run-0002", True)
    asked = question(3).encode()
    files = [f for f in setting.deployment.data_dir.rglob("*") if f.is_file()]
    assert [f for f in files if asked in f.read_bytes()] == []


@pytest.mark.slow
@needs_trl
def test_another_method_makes_the_same_kind_of_candidate(setting: turn.Setting, registry: Registry) -> None:
    """One word in the configuration; the thumbs are all that KTO asks for. The lineage says how."""
    learner = msgspec.structs.replace(LEARNER, method="kto")
    run = turn.take_turn(turn.Setting(**{**vars(setting), "learner": learner}), now)
    candidate = registry.get(str(run.adapter))
    assert (run.method, candidate.reason) == ("kto", "trained by kto")
    assert candidate.report is not None
    adapter_store.verify(Path(candidate.path), candidate.sha256)
    assert "4: loss 0." in shown(setting)


def test_what_the_method_lacks_ends_the_turn_before_anything_is_trained(setting: turn.Setting) -> None:
    """Nobody edited a reply: the reward model need not be fitted to find that out."""
    learner = msgspec.structs.replace(LEARNER, method="sft")
    with pytest.raises(MissingData, match="users' edits"):
        turn.take_turn(turn.Setting(**{**vars(setting), "learner": learner}), now)
    (run,) = runs.runs(setting.deployment)
    assert "users' edits" in str(run.failed)
    assert not (setting.folder(run.run_id) / "reward").exists()


def test_only_one_learner_at_a_time_takes_a_turn(setting: turn.Setting) -> None:
    """`learn turn` beside the daemon: refused, and the daemon just waits; else both would train one run."""
    with turn.alone(setting):
        with pytest.raises(Busy, match="another learner"):
            turn.take_turn(setting, now)
        turn.serve(setting, now, lambda seconds: True)
    assert runs.runs(setting.deployment) == []


@pytest.mark.slow
def test_the_daemon_takes_one_turn_for_enough_feedback_and_then_waits(setting: turn.Setting) -> None:
    """40 thumbs are more than the 5 asked for; nothing new after them, so no second turn."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    turn.serve(setting, now, wait)
    assert len(runs.runs(setting.deployment)) == 1
    assert runs.pending(setting.deployment) == 0.0
    assert snapshots.listed(setting.deployment.snapshots_dir)


@pytest.mark.slow
def test_the_daemon_survives_a_failing_turn_and_waits_longer_each_time(setting: turn.Setting) -> None:
    """The engines are down: the run stays unfinished, to be continued when they are back."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    down = msgspec.structs.replace(LEARNER, sampler="engine")
    turn.serve(
        turn.Setting(**{**vars(setting), "learner": down, "engine_urls": ["http://127.0.0.1:9"]}), now, wait
    )
    assert waits == [4.0, 8.0, 16.0]
    (run,) = runs.runs(setting.deployment)
    assert run.failed is None
    assert not run.finished


@pytest.mark.slow
def test_sigkill_in_the_policy_stage_loses_only_the_current_step(
    setting: turn.Setting, tmp_path: Path
) -> None:
    """A real process, a real SIGKILL, then the command again: it goes on and registers."""
    config = tmp_path / "ratchet.toml"
    settings = msgspec.structs.asdict(msgspec.structs.replace(LEARNER, policy_steps=30))
    lines = [f"{k} = {msgspec.json.encode(v).decode()}" for k, v in settings.items()]
    deployment = [f"data_dir = '{tmp_path}'", f"base_model = '{setting.base_dir}'"]
    config.write_text("\n".join(["[deployment]", *deployment, "[learner]", *lines]))
    start = "import sys, pathlib, learner.__main__ as m; m.main(['learn', 'turn'], pathlib.Path(sys.argv[1]))"
    metrics = setting.folder("run-0001") / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", start, str(config)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= 4):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    (run,) = runs.runs(setting.deployment)
    assert run.stages == ("snapshot", "reward")
    assert cli.main(["learn", "turn"], config) == 0
    (run,) = runs.runs(setting.deployment)
    assert run.finished
    assert len(metrics.read_bytes().splitlines()) == 30


def test_refusals_are_one_line_and_status_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base directory that is none, on the command line."""
    monkeypatch.setenv("RATCHET_DEPLOYMENT_BASE_MODEL", str(tmp_path))
    monkeypatch.setenv("RATCHET_DEPLOYMENT_DATA_DIR", str(tmp_path / "data"))
    assert cli.main(["learn", "reward", "--pairs", "none.jsonl"], None) == 2
    error = capsys.readouterr().err
    assert error.startswith("ratchet learn reward: ")
    assert "config.json" in error
    assert cli.main(["learn", "status"], None) == 0
    assert "no runs yet" in capsys.readouterr().out


@pytest.mark.slow
def test_pairs_in_a_file_train_a_reward_model(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`learn reward --pairs FILE` reports every scorer's accuracy; read again they score the same.
    A hole in a file is named."""
    monkeypatch.setenv("RATCHET_DEPLOYMENT_BASE_MODEL", str(tiny_base))
    monkeypatch.setenv("RATCHET_LEARNER_MAX_REPLY_TOKENS", "8")
    rows = [
        {"messages": [{"role": "user", "content": f"Question {i}"}], "chosen": "Yes.", "rejected": "No!"}
        for i in range(40)
    ]
    good = tmp_path / "pairs.jsonl"
    good.write_bytes(b"\n".join(msgspec.json.encode(r) for r in rows))
    folder = str(tmp_path / "reward")
    assert cli.main(["learn", "reward", "--pairs", str(good), "--out", folder], None) == 0
    shown = capsys.readouterr().out
    for scorer in ("reward model", "n-grams", "bag of words", "blend"):
        assert re.search(rf"{scorer} +\d\.\d{{3}} \[", shown), shown
    for name in ("report.json", "card.md", "card.json", "length.png", "n-grams/card.md"):
        assert (tmp_path / "reward" / name).is_file()
    trained = msgspec.json.decode((tmp_path / "reward" / "comparison.json").read_bytes())
    kept = [pair for pair in pair_files.read(good) if pair.heldout]
    again = tmp_path / "again.jsonl"
    again.write_bytes(
        b"\n".join(
            msgspec.json.encode({"messages": p.prompt, "chosen": p.chosen, "rejected": p.rejected})
            for p in kept
        )
    )
    reader = turn.Setting(
        deployment=Deployment(), pipeline=Pipeline(), learner=LEARNER, base_dir=tiny_base, engine_urls=[]
    )
    found = reward_from_file.evaluate(reader, tmp_path / "reward", again)
    for before, after in zip(trained["results"], found.results, strict=True):
        assert after.findings.margins == pytest.approx(before["findings"]["margins"], abs=1e-3)
    good.write_bytes(msgspec.json.encode({**rows[0], "chosen": None}))
    assert cli.main(["learn", "reward", "--pairs", str(good)], None) == 2
    assert "line 1, column 'chosen'" in capsys.readouterr().err

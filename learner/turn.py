"""One turn of the loop: snapshot → reward model → policy → evaluation → candidate, resumable after any kill.

Each stage leaves its result in `runs/<run>/` before `run.json` says that it is done, so a killed turn goes on
from its last finished stage (the policy from its last checkpoint). Decides nothing about serving: `ops` does.

    run.json    progress.json    reward/    reward.jsonl    policy/    metrics.jsonl    curves.png
    checkpoints/    report.json    replies.jsonl
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import torch
from prometheus_client import Counter, Gauge

from feedback import snapshots
from feedback import store as feedback_store
from feedback.config import Deployment, Pipeline
from feedback.errors import FeedbackError, SnapshotErased
from feedback.grades import RATING
from feedback.records import Grade
from feedback.snapshots import Snapshot
from learner import (
    curves,
    disagreement,
    distributed,
    evaluate,
    methods,
    reward_card,
    runs,
    schedule,
    trackers,
    train_reward,
    window,
)
from learner.batches import Encoder, GradeRow, PairRow, Prompt, RewardData, Sample, Target
from learner.checkpoints import write_atomically
from learner.config import Learner
from learner.errors import Busy, DataError, LearnerError, SamplingError
from learner.examination import Examination
from learner.findings import Findings
from learner.heldout import Plan
from learner.imitation import FitMetrics
from learner.methods import Material, Metrics, Task
from learner.metric_lines import MetricLines
from learner.models import (
    LanguageActor,
    Role,
    Trunk,
    does_nothing,
    export_adapter,
    load_adapter,
    load_trunk,
    preload,
)
from learner.problems import Problem, ProblemSet
from learner.runs import STAGES, Run, Stage
from learner.sampling import EngineSampler, LocalSampler, MainSampler, Sampler
from learner.sandbox import Sandbox
from learner.train_reward import RewardModel, RewardReport, RewardStep
from learner.verification import Verifier
from ops import evaluation, store
from ops.adapters import Adapter, adapter_name
from ops.errors import OpsError
from ops.registry import Registry
from ops.telemetry import logger

STAGE = Gauge("ratchet_learner_stage", "Stages that the running turn has finished; 0 when none runs")
STEP = Gauge("ratchet_learner_policy_steps", "Policy steps done in the running turn")
REWARD = Gauge(
    "ratchet_learner_reward_mean",
    "Mean reward of the last PPO step, deviations of the root reference",
)
KL_ROOT = Gauge("ratchet_learner_kl_root_nats", "KL to the root reference per reply, last PPO step")
LOSS = Gauge(
    "ratchet_learner_policy_loss_nats",
    "Loss of the last policy step of dpo, kto, sft or best_of_n",
)
BETA = Gauge("ratchet_learner_beta_ratio", "KL coefficient, reward deviations per nat")
CLIPPED = Gauge("ratchet_learner_clip_fraction_ratio", "Share of tokens without gradient, last PPO step")
RATIO = Gauge(
    "ratchet_learner_ratio_before_ratio", "Mean policy ratio before the first update: 1, or the run stops"
)
ESS = Gauge("ratchet_learner_effective_sample_ratio", "Effective sample size of the last PPO step's tokens")
VERIFIED = Gauge(
    "ratchet_learner_verified_score_ratio",
    "Mean score of the last policy step's checks, by kind; those without a verdict left out",
    ["kind"],
)
NO_VERDICT = Counter(
    "ratchet_learner_checks_without_verdict_total", "Checks that failed themselves, by kind", ["kind"]
)
ACCURACY = Gauge("ratchet_learner_reward_accuracy_ratio", "Held-out pair accuracy of the last reward model")
TURN_SECONDS = Gauge("ratchet_learner_turn_seconds", "Duration of the last finished turn")
TURNS = Counter("ratchet_learner_turns_total", "Turns of the loop, by outcome", ["outcome"])


OPERATIONAL = (
    "poll_s",
    "min_new_weight",
    "every_s",
    "trackers",
    "metrics_port",
    "sampler",
    "threads",
    "checkpoint_every",
    "token_budget",
)
"""Settings that may change while a run is under way."""

LONGEST_WAIT_S = 60.0
"""Between attempts at a turn that keeps failing; the wait doubles up to it."""

Progress = Callable[[str, int, int, str], None]
"""Called with stage, steps done, steps in all and a line of figures."""


def silent(stage: str, done: int, total: int, figures: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a turn works with; values only."""

    deployment: Deployment
    pipeline: Pipeline
    learner: Learner
    base_dir: Path
    engine_urls: Sequence[str]
    examination: Examination = field(default_factory=Examination)
    problems: ProblemSet = field(default_factory=ProblemSet)
    progress: Progress = silent

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the resulting weights."""
        values = {k: v for k, v in msgspec.structs.asdict(self.learner).items() if k not in OPERATIONAL}
        said: list[Any] = [values, store.base_digest(self.base_dir)]
        if self.problems.name:
            said += [self.problems.name, self.problems.settings]
        text = msgspec.json.encode(said, order="sorted")
        return sha256(text).hexdigest()[:16]

    def folder(self, run_id: str) -> Path:
        return self.deployment.runs_dir / run_id


def take_turn(setting: Setting, now: Callable[[], datetime]) -> Run:
    """Continues the unfinished run under the same settings, or begins the next one, and sees it through.

    Raises: LearnerError, FeedbackError, OpsError. An engine or database out of reach leaves the run to be
    continued by the next call; anything else that `learner` refuses is final and noted in `run.json`. Busy
    while another learner takes a turn here.
    """
    with alone(setting):
        run = distributed.from_main(lambda: unfinished(setting) or begin(setting, now()))
        return see_through(setting, run, now)


@contextmanager
def alone(setting: Setting) -> Iterator[None]:
    """Two learners would train one run twice and unload each other's adapters. A lock dies with its process;
    the main process of a launch holds it for all.

    Raises: Busy.
    """
    if not distributed.is_main():
        yield
        return
    setting.deployment.runs_dir.mkdir(parents=True, exist_ok=True)
    with (setting.deployment.runs_dir / runs.LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Busy(f"another learner is taking a turn in {setting.deployment.runs_dir}") from e
        yield


def see_through(setting: Setting, run: Run, now: Callable[[], datetime]) -> Run:
    """Every stage that is left. Raises as `take_turn` does."""
    log = logger(run=run.run_id)
    log.info("turn_started", stages_done=list(run.stages), parent=run.parent)
    begun = time.monotonic()
    mark = Marks(setting.folder(run.run_id), now)
    try:
        bench = open_bench(replace(setting, progress=both(setting.progress, mark.step)), run)
        try:
            while not run.finished:
                stage = STAGES[len(run.stages)]
                mark.begin(stage)
                run = perform(bench, run, stage, now())
                log.info(
                    "stage_finished", stage=run.stages[-1], seconds=round(run.seconds[run.stages[-1]], 1)
                )
        finally:
            bench.sampler.close()
    except (LearnerError, SnapshotErased) as e:
        TURNS.labels("interrupted" if isinstance(e, SamplingError) else "failed").inc()
        if not isinstance(e, SamplingError):
            write(setting, msgspec.structs.replace(runs.read(setting.folder(run.run_id)), failed=str(e)))
        raise
    finally:
        STAGE.set(0)
    TURNS.labels("registered").inc()
    TURN_SECONDS.set(time.monotonic() - begun)
    return run


def perform(bench: "Bench", run: Run, stage: Stage, now: datetime) -> Run:
    """One stage, and the note that it is done."""
    STAGE.set(STAGES.index(stage) + 1)
    begun = time.monotonic()
    if stage in MAIN_ONLY:
        changes = distributed.from_main(lambda: WORK[stage](bench, run, now))
    else:
        changes = WORK[stage](bench, run, now)
    seconds = {**run.seconds, stage: time.monotonic() - begun}
    run = msgspec.structs.replace(run, stages=(*run.stages, stage), seconds=seconds, **changes)
    distributed.from_main(lambda: write(bench.setting, run))
    return run


# runs on disk


class Marks:
    """`progress.json` of a run, for whoever asks how far it is. Only the main process writes."""

    def __init__(self, folder: Path, now: Callable[[], datetime]) -> None:
        self.path = folder / "progress.json"
        self.now = now
        self.mark: runs.Progress | None = None

    def begin(self, stage: Stage) -> None:
        moment = self.now()
        self._write(runs.Progress(stage=stage, begun_at=moment, at=moment))

    def step(self, stage: str, done: int, total: int, figures: str) -> None:
        """`stage` is what people call it; the run's own stage is the one that was begun."""
        if self.mark is not None:
            first = self.mark.first if self.mark.total else done - 1
            self._write(
                msgspec.structs.replace(
                    self.mark, at=self.now(), first=first, done=done, total=total, figures=figures
                )
            )

    def _write(self, mark: runs.Progress) -> None:
        """Whole, but not synced to the disk: after a power cut there is nothing to be shown."""
        self.mark = mark
        if distributed.is_main():
            draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            draft.write_bytes(msgspec.json.encode(mark))
            draft.replace(self.path)


def both(one: Progress, other: Progress) -> Progress:
    def progress(stage: str, done: int, total: int, figures: str) -> None:
        one(stage, done, total, figures)
        other(stage, done, total, figures)

    return progress


def write(setting: Setting, run: Run) -> None:
    content = msgspec.json.format(msgspec.json.encode(run)) + b"\n"
    write_atomically(setting.folder(run.run_id) / "run.json", content)


def unfinished(setting: Setting) -> Run | None:
    """The newest run, if it can go on: not finished, not failed, same settings and base model."""
    newest = next(runs.newest_first(setting.deployment), None)
    if newest is None or newest.current is None or newest.fingerprint != setting.fingerprint:
        return None
    return newest


def begin(setting: Setting, now: datetime) -> Run:
    """The next run, starting from the adapter that is stable now."""
    taken = [runs.number(folder) for folder in setting.deployment.runs_dir.glob("run-*")]
    run_id = f"run-{max(taken, default=0) + 1:04d}"
    with registry(setting) as adapters:
        table = adapters.traffic()
    parent = table.stable if table else None
    run = Run(
        run_id=run_id,
        fingerprint=setting.fingerprint,
        started_at=now,
        method=setting.learner.method,
        parent=parent,
    )
    write(setting, run)
    return run


@contextmanager
def registry(setting: Setting) -> Iterator[Registry]:
    opened = Registry(setting.deployment.state)
    try:
        yield opened
    finally:
        opened.close()


# what the stages share


@dataclass
class Bench:
    """The trunk, its roles and the sampler, ready for a run's next stage."""

    setting: Setting
    folder: Path
    seed: int
    trunk: Trunk
    actor: LanguageActor
    sampler: Sampler
    baseline: Role
    """Role of the adapter that the candidate would replace: PARENT, or ROOT when that one does nothing."""
    loaded: Snapshot | None = None
    tokenised: Material | None = None
    reward: tuple[RewardModel, RewardReport] | None = None

    @property
    def encoder(self) -> Encoder:
        return self.trunk.encoder


def open_bench(setting: Setting, run: Run) -> Bench:
    """Base weights, the parent's adapter as policy and as parent, and the sampler."""
    learner = setting.learner
    seed = learner.seed * 1009 + int(run.run_id.removeprefix("run-"))
    if learner.threads:
        torch.set_num_threads(learner.threads)
    trunk = load_trunk(setting.base_dir, rank=learner.rank, seed=seed)
    parent = parent_folder(setting, run)
    if parent is not None:
        load_adapter(trunk, Role.POLICY, parent)
        load_adapter(trunk, Role.PARENT, parent)
    return Bench(
        setting=setting,
        folder=setting.folder(run.run_id),
        seed=seed,
        trunk=trunk,
        actor=LanguageActor(trunk, learner.temperature),
        sampler=open_sampler(setting, trunk, run.run_id),
        baseline=Role.ROOT if parent is None else Role.PARENT,
    )


def parent_folder(setting: Setting, run: Run) -> Path | None:
    """The parent's checked files; None when there is no parent or it does nothing (the identity adapter)."""
    if run.parent is None:
        return None
    with registry(setting) as adapters:
        parent = adapters.get(run.parent)
    store.verify(Path(parent.path), parent.sha256)
    return None if does_nothing(Path(parent.path)) else Path(parent.path)


def open_sampler(setting: Setting, trunk: Trunk, run_id: str) -> Sampler:
    if setting.learner.sampler == "local":
        return LocalSampler(trunk)
    if not distributed.is_main():
        return MainSampler(None)
    sampler = EngineSampler(trunk, setting.engine_urls, setting.deployment.adapters_dir / "learner", run_id)
    sampler.clear()
    return MainSampler(sampler)


def snapshot_of(bench: Bench, run: Run) -> Snapshot:
    if bench.loaded is None:
        path = bench.setting.deployment.snapshots_dir / str(run.snapshot)
        bench.loaded = snapshots.load(path, partial(window.choose, window=window_of(bench, run)))
    return bench.loaded


def window_of(bench: Bench, run: Run) -> window.Window:
    """What this turn reads of its snapshot; the same when the run is continued."""
    learner, deployment = bench.setting.learner, bench.setting.deployment
    earlier = runs.finished_before(deployment, run)
    since = None
    if earlier is not None and earlier.snapshot is not None:
        since = snapshots.read_manifest(deployment.snapshots_dir / earlier.snapshot).created_at
    return window.Window(
        rows=learner.reward_rows,
        heldout_rows=learner.reward_rows // 2,
        prompts=2 * learner.policy_steps * learner.prompts_per_step,  # some may be too long
        heldout_prompts=4 * learner.eval_prompts,
        since=since,
        seed=bench.seed,
    )


def outgrown(snapshot: Snapshot, learner: Learner) -> bool:
    """Whether it has more training rows than a turn reads."""
    splits = snapshot.manifest.splits
    return sum(splits.get(table, {}).get("train", 0) for table in window.ROWS) > learner.reward_rows


def material_of(bench: Bench, run: Run) -> Material:
    if bench.tokenised is None:
        setting = bench.setting
        bench.tokenised = material(snapshot_of(bench, run), bench.encoder, setting.learner, setting.problems)
    return bench.tokenised


def reward_of(bench: Bench) -> tuple[RewardModel, RewardReport]:
    if bench.reward is None:
        uncertainty = bench.setting.learner.reward_uncertainty
        bench.reward = train_reward.load(bench.trunk, bench.folder / "reward", uncertainty)
    return bench.reward


def reward_data(snapshot: Snapshot, encoder: Encoder) -> RewardData:
    """The snapshot's pairs and grades as token ids, in its own split."""
    data = RewardData()
    for pair in snapshot.pairs:
        prompt = encoder.prompt(pair.prompt_digest, pair.prompt)
        chosen, rejected = encoder.reply(prompt, pair.chosen), encoder.reply(prompt, pair.rejected)
        heldout = snapshot.split_of(pair) == "heldout"
        (data.heldout_pairs if heldout else data.pairs).append(
            PairRow(chosen, rejected, pair.p, pair.weight, pair.kind, tuple(sorted(pair.dimensions.items())))
        )
    for grade in snapshot.grades:
        prompt = encoder.prompt(grade.prompt_digest, grade.prompt)
        heldout = snapshot.split_of(grade) == "heldout"
        (data.heldout_grades if heldout else data.grades).append(
            GradeRow(encoder.reply(prompt, grade.reply), grade.p, grade.weight, grade.kind, rated(grade))
        )
    return data


def rated(grade: Grade) -> tuple[tuple[str, float], ...]:
    """What a rating says by dimension, as probabilities, on the scale of an overall rating."""
    low, high = (prior.p for prior in RATING)
    return tuple((name, low + (high - low) * said) for name, said in sorted(grade.dimensions.items()))


def prompts_of(snapshot: Snapshot, encoder: Encoder, split: str, max_tokens: int) -> list[Prompt]:
    """The split's prompts that are short enough, in order of digest (which is random, and stable).

    Raises: DataError when there is none."""
    states = sorted((p for p in snapshot.prompts if p.split == split), key=lambda p: p.prompt_digest)
    prompts = [encoder.prompt(state.prompt_digest, state.prompt) for state in states]
    kept = [p for p in prompts if len(p.ids) <= max_tokens]
    if not kept:
        raise DataError(f"{snapshot.manifest.name} has no {split} prompt of at most {max_tokens} tokens")
    return kept


# the stages


def take_snapshot(bench: Bench, run: Run, now: datetime) -> dict[str, Any]:
    s = bench.setting
    if s.problems.settings.run_code:
        sandbox(s.problems).require()
    manifest = snapshots.build(s.deployment.state, s.deployment.snapshots_dir, s.pipeline, now)
    taken = msgspec.structs.replace(run, snapshot=manifest.name)
    # refuse now, not after the training
    trackers.require(s.learner.trackers)
    methods.require(s.learner.method, material_of(bench, taken))
    prompts_of(snapshot_of(bench, taken), bench.encoder, "heldout", s.learner.max_prompt_tokens)
    return {"snapshot": manifest.name}


def train_reward_model(bench: Bench, run: Run, now: datetime) -> dict[str, Any]:
    data = material_of(bench, run).data

    settings = reward_settings(bench.setting.learner, bench.seed)
    earlier, before = earlier_reward(bench, run, data)
    with reward_steps(bench) as on_step:
        model, losses = train_reward.train(bench.trunk, data, settings, on_step, earlier)
    root = root_samples(bench, material_of(bench, run).prompts)
    train_reward.standardise(model, root)
    found = train_reward.report(model, data, losses, root)
    folder = train_reward.save(model, found, bench.folder / "reward")
    parents = {
        "base model": store.base_digest(bench.setting.base_dir),
        "reward model": earlier.parent.name if earlier else "none",
    }
    reward_card.write(
        model,
        data,
        found,
        settings,
        folder,
        run=run.run_id,
        snapshot=str(run.snapshot),
        parents=parents,
        before=before,
    )
    with feedback_store.opened(bench.setting.deployment.state) as state:
        disagreement.record(model, bench.encoder, state, run.run_id)
    ACCURACY.set(found.accuracy)
    bench.reward = (model, found)
    return {}


@contextmanager
def reward_steps(bench: Bench) -> Iterator[Callable[[RewardStep, int], None]]:
    """What becomes of each step's figures: a line of `reward.jsonl`, the trackers, the progress."""
    lines = MetricLines(bench.folder / "reward.jsonl")
    with trackers.tracking(bench.setting.learner.trackers, bench.folder, "reward") as track:

        def on_step(figures: RewardStep, steps: int) -> None:
            lines.add(figures)
            track(figures)
            bench.setting.progress("reward model", figures.step + 1, steps, f"loss {figures.loss:.3f}")

        yield on_step


def reward_settings(learner: Learner, seed: int) -> train_reward.Settings:
    return train_reward.Settings(
        lr=learner.reward_lr,
        epochs=learner.reward_epochs,
        batch_prompts=learner.reward_batch_prompts,
        heads=learner.reward_heads,
        pooling=learner.reward_pooling,
        dimensions=learner.reward_dimensions,
        rank=learner.rank,
        uncertainty=learner.reward_uncertainty,
        length_covariate=learner.reward_length_covariate,
        token_budget=learner.token_budget,
        seed=seed,
    )


def earlier_reward(bench: Bench, run: Run, data: RewardData) -> tuple[Path | None, Findings | None]:
    """Where the last finished run left its reward model, and what this snapshot's held-out pairs say of it.

    A conversation that is held out stays so in every snapshot. None where the snapshot is read whole and
    `reward_warm_start` is off, without an earlier run, or where that run's model has other heads.
    """
    learner = bench.setting.learner
    done = runs.finished_before(bench.setting.deployment, run)
    if not done or not (learner.reward_warm_start or outgrown(snapshot_of(bench, run), learner)):
        return None, None
    folder = bench.setting.folder(done.run_id) / "reward"
    model, _ = train_reward.load(bench.trunk, folder, learner.reward_uncertainty)
    alike = (len(model.heads.bias_K), model.heads.pooling, list(model.heads.dimensions))
    if alike != (learner.reward_heads, learner.reward_pooling, sorted(learner.reward_dimensions)):
        return None, None
    return folder, reward_card.measure(model, data.heldout_pairs)


def root_samples(bench: Bench, prompts: Sequence[Prompt]) -> list[Sample]:
    """Replies of the root reference to training prompts, four to each."""
    learner = bench.setting.learner
    return bench.sampler.sample(
        Role.ROOT,
        prompts[: max(1, learner.root_samples // 4)],
        n=4,
        temperature=learner.temperature,
        max_tokens=learner.max_reply_tokens,
        seed=bench.seed,
    )


def train_policy_adapter(bench: Bench, run: Run, now: datetime) -> dict[str, Any]:
    learner = bench.setting.learner
    reward, _ = reward_of(bench)
    task = Task(
        actor=bench.actor,
        sampler=bench.sampler,
        scorer=reward,
        material=material_of(bench, run),
        learner=learner,
        seed=bench.seed,
        fingerprint=run.fingerprint,
        folder=bench.folder,
        verify=verifier(bench.setting.problems, bench.encoder),
        problem_fraction=bench.setting.problems.settings.fraction,
    )
    try:
        with policy_steps(bench) as watch:
            stopped = methods.train(replace(task, watch=watch))
    finally:  # a run that a guard stopped is looked at most of all
        draw_curves(bench)
    export_adapter(bench.trunk, Role.POLICY, bench.folder / "policy")
    if distributed.is_main():
        shutil.rmtree(task.checkpoints, ignore_errors=True)
    return {"stopped": stopped}


@contextmanager
def policy_steps(bench: Bench) -> Iterator[methods.Watch]:
    """What becomes of each step's figures besides its line: metrics port, trackers, progress."""
    with trackers.tracking(bench.setting.learner.trackers, bench.folder, "policy") as track:

        def watch(metrics: Metrics, steps: int) -> None:
            show(metrics)
            track(metrics)
            bench.setting.progress("policy", metrics.step + 1, steps, methods.figures(metrics))

        yield watch


def draw_curves(bench: Bench) -> None:
    if distributed.is_main():
        with suppress(DataError):  # stopped before there was a step
            curves.draw(bench.folder)


def verifier(problems: ProblemSet, encoder: Encoder) -> Verifier:
    return Verifier(problems, encoder, sandbox(problems).run)


def sandbox(problems: ProblemSet) -> Sandbox:
    return Sandbox(cpu_s=problems.settings.cpu_s, memory_mb=problems.settings.memory_mb)


def material(
    snapshot: Snapshot, encoder: Encoder, learner: Learner, problems: ProblemSet | None = None
) -> Material:
    """What the snapshot and the problems offer every method, as token ids.

    Raises: DataError without a short prompt.
    """
    given = problems or ProblemSet()
    return Material(
        prompts=prompts_of(snapshot, encoder, "train", learner.max_prompt_tokens),
        data=reward_data(snapshot, encoder),
        edits=edits_of(snapshot, encoder),
        problems=problem_prompts(given.split(heldout=False), encoder, learner.max_prompt_tokens),
    )


def problem_prompts(problems: Sequence[Problem], encoder: Encoder, max_tokens: int) -> list[Prompt]:
    """Those that are short enough. Raises: DataError when there are problems, and all are too long."""
    prompts = [encoder.prompt(problem.digest, problem.messages) for problem in problems]
    kept = [prompt for prompt in prompts if len(prompt.ids) <= max_tokens]
    if prompts and not kept:
        raise DataError(f"all {len(prompts)} problems are longer than {max_tokens} tokens")
    return kept


def edits_of(snapshot: Snapshot, encoder: Encoder) -> list[Target]:
    """Replies as users would have them, of the training split."""
    return [
        Target(encoder.reply(encoder.prompt(edit.prompt_digest, edit.prompt), edit.reply), edit.weight)
        for edit in snapshot.demonstrations
        if snapshot.split_of(edit) == "train"
    ]


def evaluate_candidate(bench: Bench, run: Run, now: datetime) -> dict[str, Any]:
    load_adapter(bench.trunk, Role.POLICY, bench.folder / "policy")
    reward, reward_report = reward_of(bench)
    found = evaluate.evaluate(
        bench.actor,
        bench.sampler,
        reward,
        evaluation_plan(bench, snapshot_of(bench, run)),
        reward_report,
        baseline=bench.baseline,
        baseline_name=run.parent,
    )
    lines = b"".join(msgspec.json.encode(line) + b"\n" for line in found.lines)
    write_atomically(bench.folder / "replies.jsonl", lines)
    report = msgspec.json.format(evaluation.encode(found.report)) + b"\n"
    write_atomically(bench.folder / "report.json", report)
    return {}


def evaluation_plan(bench: Bench, snapshot: Snapshot) -> Plan:
    learner = bench.setting.learner
    prompts = prompts_of(snapshot, bench.encoder, "heldout", learner.max_prompt_tokens)
    return Plan(
        prompts=prompts[: learner.eval_prompts],
        samples_per_prompt=learner.eval_samples,
        temperature=learner.temperature,
        max_tokens=learner.max_reply_tokens,
        token_budget=learner.token_budget,
        seed=bench.seed + 1,
        max_prompt_tokens=learner.max_prompt_tokens,
        examination=bench.setting.examination,
        conversations={p.prompt_digest: p.prompt for p in snapshot.prompts if p.split == "heldout"},
        problems=heldout_problems(bench),
        verify=verifier(bench.setting.problems, bench.encoder),
    )


def heldout_problems(bench: Bench) -> list[Prompt]:
    """In order of digest, as many as are asked for."""
    given, learner = bench.setting.problems, bench.setting.learner
    kept = problem_prompts(given.split(heldout=True), bench.encoder, learner.max_prompt_tokens)
    return sorted(kept, key=lambda prompt: prompt.digest)[: given.settings.eval_problems]


def register_candidate(bench: Bench, run: Run, now: datetime) -> dict[str, Any]:
    """Into the store and the registry; doing it twice changes nothing."""
    s = bench.setting
    sha, path = store.put(bench.folder / "policy", s.deployment.adapters_dir, base_dir=s.base_dir)
    report = evaluation.decode((bench.folder / "report.json").read_bytes())
    adapter = Adapter(
        name=adapter_name(run.run_id, sha),
        sha256=sha,
        path=str(path),
        base_sha256=store.base_digest(s.base_dir),
        run_id=run.run_id,
        parent=run.parent,
        snapshot=run.snapshot,
        reward_model=f"{run.run_id}/reward",
        report=report,
        reason=f"trained by {run.method}",
        created_at=run.started_at,
        changed_at=now,
    )
    with registry(s) as adapters:
        return {"adapter": adapters.register(adapter).name}


WORK: dict[Stage, Callable[[Bench, Run, datetime], dict[str, Any]]] = {
    "snapshot": take_snapshot,
    "reward": train_reward_model,
    "policy": train_policy_adapter,
    "evaluate": evaluate_candidate,
    "register": register_candidate,
}


MAIN_ONLY: tuple[Stage, ...] = ("snapshot", "register")
"""Stages without a pass through the model: the main process of a launch does them for all."""


def show(metrics: Metrics) -> None:
    """The step on the metrics port."""
    STEP.set(metrics.step + 1)
    if isinstance(metrics, FitMetrics):
        LOSS.set(metrics.loss)
        return
    REWARD.set(metrics.reward_mean)
    KL_ROOT.set(metrics.kl_root_nats)
    BETA.set(metrics.beta)
    CLIPPED.set(metrics.clip_fraction)
    RATIO.set(metrics.ratio_before)
    ESS.set(metrics.effective_sample_size)
    for kind, (rate, verdicts, without) in metrics.verified.items():
        if verdicts:
            VERIFIED.labels(kind).set(rate)
        NO_VERDICT.labels(kind).inc(without)


def serve(setting: Setting, now: Callable[[], datetime], wait: Callable[[float], bool]) -> None:
    """Takes a turn whenever enough new feedback has arrived, or by the clock; `wait(seconds)` returns True to
    stop.

    What the three packages refuse is logged and tried again, later each time.
    """
    log = logger()
    failures = 0
    since = now()
    while True:
        try:
            gathered = runs.pending(setting.deployment)
            if gathered:
                preload()
            if unfinished(setting) or next_turn(setting, gathered, since).by(now()):
                run = take_turn(setting, now)
                log.info("candidate_registered", run=run.run_id, adapter=run.adapter)
            failures = 0
        except Busy as e:  # somebody runs `ratchet learn turn`
            log.info("turn_elsewhere", reason=str(e))
        except (LearnerError, FeedbackError, OpsError) as e:
            failures += 1
            log.error("turn_failed", reason=str(e), kind=type(e).__name__, failures=failures)
        if wait(
            min(setting.learner.poll_s * 2 ** min(failures, 10), max(setting.learner.poll_s, LONGEST_WAIT_S))
        ):
            return


def next_turn(setting: Setting, gathered: float, since: datetime) -> schedule.Due:
    """Args: since, from when the clock counts while there is no run."""
    newest = next(runs.newest_first(setting.deployment), None)
    return schedule.due(setting.learner, gathered, newest.started_at if newest else since)

"""`ratchet learn …`: make or tune a base model, train reward model and policy, take turns of the loop."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from feedback.config import Deployment, Pipeline, read, section
from feedback.errors import ConfigError, FeedbackError
from learner.config import Eval, Judge, Learner, Problems
from learner.errors import DataError, LearnerError
from ops import evaluation
from ops.base_model import resolve
from ops.config import Engine, Rollout, replica_urls
from ops.errors import OpsError

if TYPE_CHECKING:
    from learner.turn import Progress, Setting


TOGETHER = ("sft", "reward", "policy", "turn")
"""Verbs that several processes can do together."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ratchet learn", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("base", help="make the embedded base model, if it is not there yet")
    sft = verbs.add_parser("sft", help="fine-tune a base model on dialogues")
    sft.add_argument("--data", type=Path, required=True, help='JSON Lines of {"messages": [...]}')
    sft.add_argument("--out", type=Path, required=True, help="new folder for the fine-tuned model")
    sft.add_argument("--epochs", type=int, default=1)
    reward = verbs.add_parser(
        "reward", help="train reward models on a file of pairs, or apply them, and report their accuracy"
    )
    reward.add_argument("--pairs", type=Path, help="train on this file: JSON Lines (also .gz) or Parquet")
    reward.add_argument(
        "--evaluate",
        type=Path,
        help="measure on all pairs of this file; with --pairs, train on all of that one; without, use --out",
    )
    reward.add_argument("--out", type=Path, default=Path("reward"), help="folder of the reward models")
    reward.add_argument(
        "--max-tokens", type=int, default=128, help="longest dialogue with its reply that the base model sees"
    )
    reward.add_argument("--epochs", type=int, default=1, help="passes of the base model over the pairs")
    policy = verbs.add_parser("policy", help="train a policy, by [learner] method")
    policy.add_argument("--snapshot", required=True, help="name of the snapshot whose prompts are used")
    policy.add_argument("--reward", type=Path, required=True, help="folder of the reward model")
    policy.add_argument("--out", type=Path, default=Path("policy"), help="folder for the adapter")
    verbs.add_parser("turn", help="one turn: snapshot, reward model, policy, evaluation, candidate")
    verbs.add_parser("serve", help="take a turn whenever enough new feedback has arrived")
    evaluated = verbs.add_parser("eval", help="what a candidate was worth: measures, gates, examples")
    evaluated.add_argument("run", nargs="?", help="such as run-0003; the newest evaluated one otherwise")
    evaluated.add_argument("--json", action="store_true", help="the report as it is, for programs")
    evaluated.add_argument("--curve", action="store_true", help="reward and true worth of all runs over √KL")
    evaluated.add_argument("--again", action="store_true", help="measure anew, with the probes of today")
    judge = verbs.add_parser("judge", help="let a model compare replies by a written constitution")
    judge.add_argument(
        "--agreement", action="store_true", help="judge nothing: how far judges agree with people"
    )
    drawn = verbs.add_parser("curves", help="draw a run's figures over its steps, also while it runs")
    drawn.add_argument("run", nargs="?", help="such as run-0003; the newest one otherwise")
    told = verbs.add_parser(
        "status", help="the turn under way, what the next one waits for, what came of runs"
    )
    told.add_argument("--json", action="store_true", help="all of it, for programs")
    return top


def main(argv: list[str], config: Path | None) -> int:
    """`argv` starts with `learn`. Returns: exit status; 2 with one line on stderr for what was refused."""
    arguments = parser()
    args = arguments.parse_args(argv[1:])
    if args.verb == "reward" and args.pairs is None and args.evaluate is None:
        arguments.error("learn reward needs --pairs FILE to train on, or --evaluate FILE to measure on")
    # Read when torch loads, so before any import of it. Threads that wait for one another shall sleep: beside
    # an engine on the same cores, endless spinning made a training step five times as long. A short spin
    # first makes a step half as long while the engine rests; a model that is made alone may spin for longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "200000" if args.verb in ("base", "sft") else "20000")
    try:
        with launched(args.verb):
            return perform(args, config)
    except (LearnerError, FeedbackError, OpsError) as e:
        print(f"ratchet learn {args.verb}: {e}", file=sys.stderr)
        return 2


@contextmanager
def launched(verb: str) -> Iterator[None]:
    """Inside, the processes of an `accelerate launch` or `torchrun` know of each other.

    Raises: ConfigError for what cannot be done by several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if verb not in TOGETHER:
        raise ConfigError(f"one process is enough for it: of several can {', '.join(TOGETHER)}")
    from learner import distributed

    distributed.join()
    with redirect_stdout(sys.stdout if distributed.is_main() else StringIO()):
        yield
    distributed.leave()  # not after an error: the others may wait, and end when this process does


def perform(args: argparse.Namespace, config: Path | None) -> int:
    """What the arguments ask for. Returns: exit status. Raises: what the three packages refuse."""
    sections = read(config)
    deployment = section(sections, "deployment", Deployment)
    learner = section(sections, "learner", Learner)
    if args.verb == "status":
        return status(deployment, learner, section(sections, "rollout", Rollout), args)
    if args.verb == "curves":
        return draw_curves(deployment, args)
    if args.verb == "base":
        return base(deployment)
    if args.verb == "sft":
        return sft(deployment, args)
    if args.verb == "eval" and not args.again:
        return show_report(deployment, section(sections, "rollout", Rollout), args)
    pipeline, engine = section(sections, "pipeline", Pipeline), section(sections, "engine", Engine)
    if args.verb == "judge":
        if args.agreement:
            return agreement(deployment)
        return judge(deployment, pipeline, section(sections, "judge", Judge))
    with progress_shown(sys.stderr.isatty() and int(os.environ.get("RANK", "0")) == 0) as progress:
        from learner.examination import examination
        from learner.problems import load
        from learner.turn import Setting

        judging = section(sections, "judge", Judge)
        setting = Setting(
            deployment=deployment,
            pipeline=pipeline,
            learner=learner,
            base_dir=resolve(deployment),
            engine_urls=replica_urls(engine),
            examination=examination(deployment, section(sections, "eval", Eval), judging),
            problems=load(section(sections, "problems", Problems)),
            progress=progress,
        )
        if args.verb == "eval":
            from learner.workshop import evaluate_again

            args.run = evaluate_again(setting, args.run, utc_now())
            return show_report(deployment, section(sections, "rollout", Rollout), args)
        return {"reward": reward, "policy": policy, "turn": turn, "serve": serve}[args.verb](setting, args)


def base(deployment: Deployment) -> int:
    from learner.base import ensure

    print(ensure(deployment))
    return 0


def sft(deployment: Deployment, args: argparse.Namespace) -> int:
    from learner.train_sft import Settings, finetune

    print(finetune(resolve(deployment), args.data, args.out, settings=Settings(epochs=args.epochs)))
    return 0


def reward(setting: "Setting", args: argparse.Namespace) -> int:
    from rich.console import Console

    from learner import reward_from_file

    if args.pairs is None:
        found = reward_from_file.evaluate(setting, args.out, args.evaluate)
    else:
        found = reward_from_file.train(
            setting, args.pairs, args.out, args.evaluate, args.max_tokens, args.epochs
        )
    Console().print(reward_from_file.table(found))
    print(reward_from_file.summary(found))
    print(f"reward models and their cards in {args.out}")
    return 0


def policy(setting: "Setting", args: argparse.Namespace) -> int:
    from learner.workshop import policy_from_reward

    print(policy_from_reward(setting, args.snapshot, args.reward, args.out))
    return 0


def turn(setting: "Setting", args: argparse.Namespace) -> int:
    from learner.turn import take_turn
    from ops.telemetry import configure_logging

    configure_logging("learner")
    print(take_turn(setting, utc_now).adapter)
    return 0


def serve(setting: "Setting", args: argparse.Namespace) -> int:
    from learner import turn as turns
    from ops.telemetry import configure_logging, serve_metrics

    configure_logging("learner")
    serve_metrics(setting.learner.metrics_port)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    turns.serve(setting, utc_now, stop.wait)
    return 0


def judge(deployment: Deployment, pipeline: Pipeline, config: Judge) -> int:
    from feedback import store
    from feedback.logs import open_log
    from learner import judging
    from learner.constitution import load
    from learner.judge_endpoint import Endpoint
    from ops.telemetry import serve_metrics

    if not (config.url and config.model):
        raise ConfigError("[judge] url and model must name an OpenAI-compatible endpoint and a model there")
    setting = judging.Judging(
        config=config,
        constitution=load(Path(config.constitution) if config.constitution else None),
        heldout_fraction=pipeline.heldout_fraction,
        retry_window_s=pipeline.retry_window_s,
    )
    endpoint = Endpoint(
        config.url,
        config.model,
        api_key=os.environ.get(config.api_key_env, ""),
        timeout_s=config.timeout_s,
    )
    serve_metrics(config.metrics_port)
    state = store.open_state(deployment.state)
    try:
        with closing(open_log(deployment)) as log:
            done = judging.run(setting, endpoint, state, log, utc_now)
    finally:
        state.dispose()
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(done.items())) or "nothing to judge")
    return 0


def agreement(deployment: Deployment) -> int:
    from rich.console import Console

    from feedback import store
    from learner import agreement as agreements

    state = store.open_state(deployment.state)
    try:
        found = agreements.measure(agreements.collect(state))
    finally:
        state.dispose()
    agreements.write(found, path := deployment.data_dir / "judge" / "agreement.json")
    Console().print(agreements.table(found) if found else "no judgements yet: ratchet learn judge")
    print(path)
    return 0


def show_report(deployment: Deployment, rollout: Rollout, args: argparse.Namespace) -> int:
    from rich.console import Console

    from learner.report_table import curve_table, find, tables

    if args.curve:
        Console().print(curve_table(deployment.runs_dir))
        return 0
    run_id, report = find(deployment.runs_dir, args.run)
    if args.json:
        print(msgspec.json.format(evaluation.encode(report)).decode())
    else:
        Console().print(tables(run_id, report, rollout))
    return 0


def status(deployment: Deployment, learner: Learner, rollout: Rollout, args: argparse.Namespace) -> int:
    from rich.console import Console

    from learner import status as statuses

    found = statuses.status(deployment, learner, rollout, utc_now())
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        Console().print(statuses.page(found))
    return 0


def draw_curves(deployment: Deployment, args: argparse.Namespace) -> int:
    from learner import curves, runs

    newest = next(runs.newest_first(deployment), None)
    if newest is None:
        raise DataError(f"no runs yet in {deployment.runs_dir}")
    folder = deployment.runs_dir / (args.run or newest.run_id)
    runs.read(folder)
    print(curves.draw(folder))
    return 0


def utc_now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def progress_shown(terminal: bool) -> "Iterator[Progress]":
    """A bar per stage on a terminal, nothing elsewhere (the logs tell)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, {task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not terminal) as bar:
        tasks: dict[str, object] = {}

        def show(stage: str, done: int, total: int, figures: str) -> None:
            task = tasks.setdefault(
                stage, bar.add_task(stage, total=total, figures="") if stage not in tasks else 0
            )
            bar.update(task, completed=done, total=total, figures=figures)  # type: ignore[arg-type]

        yield show


if __name__ == "__main__":
    sys.exit(main(["learn", *sys.argv[1:]], None))

"""`ratchet demo`: start the service, turn the loop with simulated users, show what the assistant gained.

It does nothing that a client, an operator or a dashboard could not do: it chats and gives feedback over HTTP,
reads the registry, and looks at the learner's metrics. The truth is measured outside the loop (`helpdesk`).
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

from feedback import snapshots
from feedback.config import Deployment, read, section
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic
from ops.adapters import Adapter, AdapterState
from ops.config import Rollout
from ops.gates import Verdict, judge, overall
from ops.registry import Registry
from ops.simulation import helpdesk
from ops.simulation.figures import GOAL, Figures, Measured, TurnFigures, conclude, separate, show, summary
from ops.simulation.users import Report, measure, run

CONFIG = """\
[deployment]
data_dir = "{data_dir}"

[gateway]
port = {port}
comparison_rate = 0.1  # a demo has few turns: at 2 % there would be hardly any gold
comparison_wait_s = 5.0  # on a CPU that also trains

[pipeline]
retry_window_s = 0.0  # simulated users ask again at once

# vLLM's LoRA on a CPU costs in proportion to the largest rank that could load
[engine]
max_lora_rank = 8
max_num_seqs = 64

[learner]
min_new_weight = {min_new_weight}
rank = 8
max_prompt_tokens = 64
max_reply_tokens = 96
reward_lr = 8e-3
reward_batch_prompts = 16
reward_epochs = 3
reward_pooling = "mean"
eval_prompts = 48
policy_steps = 14
epochs = 1
minibatches = 4
policy_lr = 4e-3
value_lr = 3e-3
gae_lambda = 1.0

[rollout]
step_s = 5.0
step_turns = 10
max_length_ratio = 2.5  # half of what the base model says is padding, and its users say so
max_capability_loss = 0.3  # it answers every other question by luck: 24 answers vary by 0.14
max_canary_shift = 1.0  # it changes its tone topic by topic, honestly
"""
READY_S = 300.0
TURN_S = 1200.0
"""Longest time for one turn of the loop."""


class Pace(msgspec.Struct, frozen=True):
    """How much the simulated users chat."""

    parties: int
    """Each on its own: while one waits for its slowest conversation, the others keep the engine busy."""
    concurrency: int
    """Conversations of a party at a time."""
    wave: int
    """Conversations that a party reports together."""
    pause_s: float
    """After each wave."""


GATHERING = Pace(4, 14, 28, 0.0)
LEARNING = Pace(1, 1, 1, 12.0)
"""Two cores do both, chats and training: one conversation now and then shows that serving goes on."""
ROLLING_OUT = Pace(2, 12, 24, 0.0)


def main(argv: list[str], config: Path | None) -> int:
    """0 when the improvement is real: the goal reached, no failed request, no lost event."""
    options = parsed(argv[1:])
    console = Console()
    config = config or written_config(options)
    sections = read(config)
    deployment = section(sections, "deployment", Deployment)
    made_base(config)
    started = time.monotonic()
    figures = Figures()
    with service(config, deployment, console) as address:
        figures.service_up_s = time.monotonic() - started
        console.print(f"service up after {figures.service_up_s:.0f} s at {address.removesuffix('/v1')}")
        key = made_key(config)
        try:
            asyncio.run(turn_the_loop(Stage(address, key, sections, deployment, console), options, figures))
        except TimeoutError as e:
            console.print(f"[red]{e}[/red]; see {deployment.data_dir / 'logs'}")
        figures.seconds = time.monotonic() - started
        conclude(figures)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
        show(figures, options.out, console)
        if console.is_terminal and not options.exit:
            stay(address.removesuffix("/v1"), key, config, console)
    return 0 if figures.passed else 1


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ratchet demo", description=__doc__)
    parser.add_argument("--turns", type=int, default=2, help="turns of the loop, at most")
    parser.add_argument(
        "--all-turns", action="store_true", help="go on when the goal is reached before the last"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("build/demo"), help="emptied first")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--min-new-weight", type=float, default=520.0, help="feedback that starts a turn")
    parser.add_argument("--questions", type=int, default=150, help="held-out questions measured each time")
    parser.add_argument("--samples", type=int, default=3, help="replies measured to each question")
    parser.add_argument("--seed", type=int, default=0, help="of everything the simulated users decide")
    parser.add_argument("--out", type=Path, default=Path("build/demo.json"))
    parser.add_argument("--exit", action="store_true", help="do not stay up at the end, even on a terminal")
    return parser.parse_args(arguments)


def written_config(options: argparse.Namespace) -> Path:
    """A fresh data folder with the demo's settings in it."""
    shutil.rmtree(options.data_dir, ignore_errors=True)
    options.data_dir.mkdir(parents=True)
    path: Path = options.data_dir / "ratchet.toml"
    path.write_text(
        CONFIG.format(data_dir=options.data_dir, port=options.port, min_new_weight=options.min_new_weight)
    )
    return path


# the service


def made_base(config: Path) -> None:
    """The base model, made with a progress bar where it is missing. Raises: SystemExit when that fails."""
    made = subprocess.run(ratchet(config, "learn", "base"), stdout=subprocess.DEVNULL)
    if made.returncode:
        sys.exit(made.returncode)


@contextmanager
def service(config: Path, deployment: Deployment, console: Console) -> Iterator[str]:
    """`ratchet up`, ready for requests; its address. Raises: SystemExit when it does not come up."""
    deployment.data_dir.mkdir(parents=True, exist_ok=True)
    said = deployment.data_dir / "up.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            ratchet(config, "up"),
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "RATCHET_SUPERVISOR": str(os.getpid())},  # it ends with this process, however
        )
    try:
        address = gateway_address(config)
        with doing(console, "starting vLLM, gateway, pipeline, controller, learner"):
            wait_until_ready(process, address, said)
        yield f"{address}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ratchet(config: Path, *verb: str) -> list[str]:
    return [sys.executable, "-m", "ops.cli", "--config", str(config), *verb]


def gateway_address(config: Path) -> str:
    """Where the configuration says the gateway listens; serving's own model is not ours to import."""
    values = read(config).get("gateway", {})
    return f"http://{values.get('host', '127.0.0.1')}:{values.get('port', 8000)}"


def wait_until_ready(process: "subprocess.Popen[bytes]", address: str, said: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"`ratchet up` ended with {process.returncode}:\n{said.read_text()[-2000:]}")
        if fetched(f"{address}/readyz") is not None:
            return
        time.sleep(0.5)
    sys.exit(f"the service was not ready after {READY_S:.0f} s:\n{said.read_text()[-2000:]}")


def fetched(url: str) -> str | None:
    """The body of a 200; None for anything else."""
    try:
        with urlopen(url, timeout=2.0) as answer:
            return str(answer.read().decode())
    except (URLError, TimeoutError, ConnectionError):
        return None


def made_key(config: Path) -> str:
    """An API key for the simulated users' product, made the way an operator makes one."""
    made = subprocess.run(
        ratchet(config, "keys", "create", "simulation"), capture_output=True, text=True, check=True
    )
    return made.stdout.split()[-1]


# the loop


class Stage(msgspec.Struct, frozen=True):
    """Where the demo plays."""

    address: str
    key: str
    sections: Mapping[str, Any]
    deployment: Deployment
    console: Console

    @property
    def metrics_port(self) -> int:
        return int(self.sections.get("learner", {}).get("metrics_port", 9102))


async def turn_the_loop(stage: Stage, options: argparse.Namespace, figures: Figures) -> None:
    """Measure, then turn by turn: gather feedback, let the loop learn and roll out, measure again."""
    registry = Registry(stage.deployment.state)
    crowd = Crowd(stage, options.seed)
    try:
        figures.before = await measured(stage, registry, options)
        for turn in range(1, options.turns + 1):
            before = stage_of(registry)
            traffic = asyncio.create_task(crowd.chat())
            try:
                figures.turns.append(await one_turn(stage, registry, crowd, turn, before, options))
            except asyncio.CancelledError:
                traffic.cancel()
                raise
            finally:
                crowd.stop()
                await asyncio.wait([traffic])
            traffic.result()
            conclude(figures)
            if figures.gain >= GOAL and separate(figures) and not options.all_turns:
                break
    finally:
        registry.close()
        account(figures, crowd.reports, stage.deployment)


class Crowd:
    """Users who chat until told to stop, many while feedback is gathered and few while the learner works."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.seed = seed * 1000
        self.stopping = False
        self.reports: list[Report] = []
        self.pace, self.changed = GATHERING, asyncio.Event()

    def change(self, pace: Pace) -> None:
        """From now on; conversations under way go on to their end."""
        self.changed.set()
        self.pace, self.changed = pace, asyncio.Event()

    def stop(self) -> None:
        self.stopping = True
        self.changed.set()

    async def chat(self) -> None:
        self.stopping = False
        self.change(GATHERING)
        while not self.stopping:
            async with asyncio.TaskGroup() as parties:
                for _ in range(self.pace.parties):
                    parties.create_task(self.party(self.pace, self.changed))

    async def party(self, pace: Pace, over: asyncio.Event) -> None:
        while not over.is_set():
            self.seed += 1
            report = await run(
                self.stage.address,
                self.stage.key,
                users=pace.wave,
                conversations=pace.wave,
                seed=self.seed,
                concurrency=pace.concurrency,
                going=lambda: not over.is_set(),
            )
            self.reports.append(report)
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), pace.pause_s)

    @property
    def conversations(self) -> int:
        return sum(r.conversations for r in self.reports)

    @property
    def signals(self) -> int:
        return sum(len(r.acknowledged) for r in self.reports)


async def one_turn(
    stage: Stage,
    registry: Registry,
    crowd: Crowd,
    turn: int,
    before: frozenset[str],
    options: argparse.Namespace,
) -> TurnFigures:
    """From the first conversation until the loop's decision about its candidate, and what it came to."""
    conversations, signals, begun = crowd.conversations, crowd.signals, time.monotonic()
    with doing(stage.console, f"turn {turn}: users chat and react") as say:
        await until(
            lambda: learner_stage(stage) > 0 or bool(stage_of(registry) - before),
            say,
            lambda: (
                f"turn {turn}: users chat and react ({crowd.conversations - conversations} conversations, "
                f"{crowd.signals - signals} signals)"
            ),
        )
        gathered = time.monotonic()
        crowd.change(LEARNING)
        await until(lambda: bool(stage_of(registry) - before), say, lambda: f"turn {turn}: {learning(stage)}")
        learned = time.monotonic()
        crowd.change(ROLLING_OUT)
        name = sorted(stage_of(registry) - before)[-1]
        rollout = section(stage.sections, "rollout", Rollout)
        await until(
            lambda: decided_on(registry.get(name), rollout),
            say,
            lambda: f"turn {turn}: {rolling(registry.get(name))}",
        )
        decided = time.monotonic()
    crowd.stop()
    candidate = registry.get(name)
    stage.console.print(
        f"turn {turn}: {name} is {candidate.state} after {decided - begun:.0f} s ({candidate.reason})"
    )
    manifest = snapshots.read_manifest(stage.deployment.snapshots_dir / str(candidate.snapshot))
    report = candidate.report
    return TurnFigures(
        adapter=name,
        state=candidate.state.value,
        reason=candidate.reason,
        proxy_gain=report.reward_gain if report else float("nan"),
        kl_root_nats=report.kl_root_nats if report else float("nan"),
        reward_model_accuracy=report.reward_model_accuracy if report else float("nan"),
        pairs=manifest.rows["pairs"],
        grades=manifest.rows["grades"],
        conversations=crowd.conversations - conversations,
        signals=crowd.signals - signals,
        gather_s=gathered - begun,
        learn_s=learned - gathered,
        rollout_s=decided - learned,
        after=await measured(stage, registry, options),
    )


DECIDED = frozenset({AdapterState.STABLE, AdapterState.REJECTED, AdapterState.ROLLED_BACK})


def decided_on(adapter: Adapter, rollout: Rollout) -> bool:
    """Whether the loop is done with it for now: one whose gates want more evidence waits, and the next turn,
    on more feedback, makes another."""
    if adapter.state is AdapterState.REGISTERED and adapter.report is not None:
        return overall(judge(adapter.report, rollout)) is Verdict.INCONCLUSIVE
    return adapter.state in DECIDED


def stage_of(registry: Registry) -> frozenset[str]:
    """Names of every adapter there is."""
    return frozenset(a.name for a in registry.list())


async def until(done: Callable[[], bool], say: Callable[[str], None], what: Callable[[], str]) -> None:
    """Raises: TimeoutError saying what was waited for."""
    deadline = time.monotonic() + TURN_S
    while not await asyncio.to_thread(done):
        if time.monotonic() > deadline:
            raise TimeoutError(f"gave up after {TURN_S:.0f} s: {what()}")
        say(await asyncio.to_thread(what))
        await asyncio.sleep(0.5)


def learner_metrics(stage: Stage) -> dict[str, float]:
    text = fetched(f"http://127.0.0.1:{stage.metrics_port}/metrics")
    families = text_string_to_metric_families(text) if text else ()
    return {s.name: s.value for f in families for s in f.samples if not s.labels}


def learner_stage(stage: Stage) -> float:
    return learner_metrics(stage).get("ratchet_learner_stage", 0.0)


def learning(stage: Stage) -> str:
    """What the learner does now, from its metrics."""
    m = learner_metrics(stage)
    names = ("waiting", "snapshot", "reward model", "PPO", "evaluation", "registering")
    name = names[min(int(m.get("ratchet_learner_stage", 0)), len(names) - 1)]
    if name != "PPO":
        return name
    return (
        f"PPO step {m.get('ratchet_learner_policy_steps', 0):.0f}, "
        f"reward {m.get('ratchet_learner_reward_mean', 0):+.2f}, "
        f"KL {m.get('ratchet_learner_kl_root_nats', 0):.1f} nats"
    )


def rolling(adapter: Adapter) -> str:
    return f"{adapter.name} is {adapter.state}" + (f": {adapter.reason}" if adapter.reason else "")


# the truth


async def measured(stage: Stage, registry: Registry, options: argparse.Namespace) -> Measured:
    """Replies of the stable adapter to held-out questions, judged by users that nobody has met."""
    table = registry.traffic()
    assert table is not None, "a ready service has a traffic table"
    questions = random.Random(options.seed).sample(helpdesk.questions("heldout"), options.questions)
    with doing(stage.console, f"measuring {table.stable} on {len(questions)} held-out questions"):
        replies = await measure(
            stage.address,
            stage.key,
            table.stable,
            questions,
            options.samples,
            options.seed,
            concurrency=GATHERING.parties * GATHERING.concurrency,
        )
    found = summary(table.stable, replies)
    stage.console.print(f"true utility of {table.stable} on held-out questions: {found.utility}")
    return found


def account(figures: Figures, reports: Sequence[Report], deployment: Deployment) -> None:
    """Every reply that arrived whole and every acknowledged signal, looked up in the log."""
    log = EmbeddedLog(deployment.log_path)
    try:
        promised = [(Topic.TURNS, f"turn-{i}") for r in reports for i in r.received]
        promised += [(Topic.SIGNALS, f"signal-{i}") for r in reports for i in r.acknowledged]
        figures.lost_events = sum(log.find(topic, event_id) is None for topic, event_id in promised)
    finally:
        log.close()
    figures.requests = sum(r.requests for r in reports)
    figures.replies_received = sum(len(r.received) for r in reports)
    figures.signals_acknowledged = sum(len(r.acknowledged) for r in reports)
    for report in reports:
        for kind, count in report.failures.items():
            figures.failed_requests[kind] = figures.failed_requests.get(kind, 0) + count


# what people see


@contextmanager
def doing(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is going on and for how long; `say` changes it. Plain without a terminal."""
    begun = time.monotonic()
    if not console.is_terminal:
        console.print(f"{what} …")
        yield lambda text: None
        return
    spinner = Spinner("dots", text=what)

    def say(text: str) -> None:
        spinner.update(text=f"{text}  [dim]{time.monotonic() - begun:.0f} s[/dim]")

    with Live(spinner, console=console, transient=True):
        yield say


def stay(address: str, key: str, config: Path, console: Console) -> None:
    """Up until Ctrl-C."""
    command = f"{Path(sys.executable).parent / 'ratchet'} --config {config}"
    console.print(
        f"\nchat    {address}/#key={key}\nmetrics {address}/metrics\nlook    {command} adapters list · "
        f"{command} data list · {command} learn status\nCtrl-C ends it",
        highlight=False,
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("ending")

"""`[learner]`, `[problems]`, `[eval]`, `[judge]`: how models are trained, checked, examined; who judges."""

from typing import Literal

import msgspec

from feedback.events import DIMENSIONS

Method = Literal["ppo", "rloo", "dpo", "kto", "sft", "best_of_n"]
"""How the policy is trained (docs/methods.md)."""

Tracker = Literal["tensorboard", "mlflow"]
"""Where a run's figures go beside the files of the run (docs/learning.md)."""


class Learner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[learner]`: the training process."""

    method: Method = "ppo"
    """How the policy is trained: `ppo`, `rloo`, `dpo`, `kto`, `sft` or `best_of_n` (docs/methods.md)."""
    sampler: Literal["engine", "local"] = "engine"
    """Where sampled replies come from: the serving engines, or the trainer's own copy of the weights."""
    min_new_weight: float = 100.0
    """A turn starts once grades and pairs of this much weight have arrived since the last snapshot; `inf`:
    by the clock alone."""
    every_s: float = 0.0
    """A turn also starts so long after the last one began, if anything at all is new; 0: no clock."""
    poll_s: float = 2.0
    """How often `learn serve` looks for new feedback."""
    trackers: list[Tracker] = msgspec.field(default_factory=list)
    """Where a run's figures go beside its folder: `tensorboard`, `mlflow` (docs/learning.md)."""
    seed: int = 0
    """Everything random in a run follows from this and the run's name."""
    rank: int = 16
    """LoRA rank of policy and reward adapter, where there is no stable adapter to go on from."""
    max_prompt_tokens: int = 512
    """Longer prompts are left out of PPO; the reward model keeps their last tokens."""
    max_reply_tokens: int = 64
    """Longest sampled reply."""
    temperature: float = 1.0
    """Sampling temperature, the same in sampler, policy and reference."""
    token_budget: int = 8192
    """Largest micro-batch in tokens, padding included: memory, not mathematics."""

    reward_lr: float = 2e-3
    """Peak learning rate of reward adapter and heads."""
    reward_epochs: int = 2
    """Passes over the training rows."""
    reward_batch_prompts: int = 8
    """Prompts per optimizer step; all rows of a prompt are in the same one."""
    reward_heads: int = 4
    """Ensemble heads over the one trunk, each blind to its own fold of the prompts."""
    reward_pooling: Literal["last", "mean"] = "last"
    """Hidden states that the heads score: the last token's, or the mean over the reply's tokens, which
    learns what a small trunk does not carry to the end (tone, hedging) from fewer rows."""
    reward_dimensions: dict[str, float] = {}
    """Heads of their own for `helpful`, `honest`, `harmless`, and what each counts beside the overall answer,
    which counts 1; 0: measured only. A dimension that too few rows tell apart counts nothing."""
    reward_uncertainty: float = 0.5
    """PPO's reward is the heads' mean minus this times their standard deviation."""
    reward_length_covariate: bool = False
    """Fit a length term beside the reward and drop it when scoring: removes a liking for long replies."""
    reward_warm_start: bool = False
    """Go on from the last run's reward model instead of fresh heads on the base: fewer epochs suffice. A
    snapshot of more than `reward_rows` always does."""
    reward_rows: int = 4096
    """Training rows (pairs and grades) that a turn reads at most: the new ones, and a draw of the older. So
    training costs the same however long the history."""
    root_samples: int = 128
    """Root-reference replies on which rewards are standardised to mean 0 and deviation 1."""

    policy_steps: int = 24
    """PPO steps per turn: sample, score, update."""
    policy_lr: float = 2e-3
    """Learning rate of the policy adapter, annealed linearly to 0; 1e-5 to 1e-4 suits billions of weights."""
    value_lr: float = 1e-2
    """Learning rate of the value head."""
    prompts_per_step: int = 32
    """Different prompts in each PPO step."""
    samples_per_prompt: int = 4
    """Replies to each of them."""
    epochs: int = 2
    """Passes over each step's samples."""
    group_baseline: bool = True
    """Take the mean score of the prompt's other replies from each score: less noise between prompts."""
    gae_lambda: float = 0.95
    """1: advantages are rewards-to-go less the value; below: later values stand in for part of them."""
    minibatches: int = 2
    """Optimizer steps per pass."""
    beta: float = 0.03
    """First KL coefficient: reward deviations per nat."""
    target_kl_nats: float = 15.0
    """KL per reply that a turn may add; β adapts towards it."""
    kl_budget_nats: float = 45.0
    """KL per reply from the root reference, over all turns together; the run stops there."""
    missing_eos_penalty: float = 1.0
    """Taken from the reward, in deviations, of a reply that hit `max_reply_tokens`."""
    checkpoint_every: int = 5
    """PPO steps between checkpoints."""

    fit_epochs: int = 2
    """Passes over the rows where the policy is fitted to data: dpo, kto, sft, best_of_n."""
    fit_batch_rows: int = 16
    """Rows per optimizer step there."""
    preference_beta: float = 0.1
    """β of dpo and kto: log-odds of preference per nat by which the policy leaves the root reference."""
    best_of: int = 16
    """best_of_n: replies sampled to each prompt; the one that scores highest is imitated."""

    eval_prompts: int = 64
    """Held-out prompts for the evaluation report, at most."""
    eval_samples: int = 4
    """Replies to each of them, per policy."""
    threads: int = 0
    """CPU threads for training; 0: PyTorch's choice."""
    metrics_port: int = 9102
    """Prometheus metrics of the learner; 0: off."""

    def __post_init__(self) -> None:
        if self.method == "rloo" and self.samples_per_prompt < 2:
            raise ValueError("rloo compares replies to one prompt: samples_per_prompt must be 2 or more")
        if self.method == "kto" and self.fit_batch_rows < 2:
            raise ValueError("kto compares rows of a batch: fit_batch_rows must be 2 or more")
        if unknown := sorted(self.reward_dimensions.keys() - set(DIMENSIONS)):
            raise ValueError(f"reward_dimensions: {unknown[0]!r} is none of {', '.join(DIMENSIONS)}")
        if min(self.reward_dimensions.values(), default=0.0) < 0.0:
            raise ValueError("reward_dimensions: a weight is below 0")
        if not (self.every_s >= 0 and self.min_new_weight > 0):
            raise ValueError("every_s must be 0 or more, and min_new_weight above 0 (inf: the clock alone)")
        if self.reward_rows < 8:
            raise ValueError(f"reward_rows {self.reward_rows} must be 8 or more")


class Eval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[eval]`: what a candidate is examined with before the gates."""

    shipped: Literal["auto", "general", "embedded", "none"] = "auto"
    """Probe set that ships with ratchet; auto: `embedded` for the embedded base model, else `general`."""
    probes: list[str] = []
    """Further probe sets, files of JSON Lines (docs/evaluation.md)."""
    probe_samples: int = 1
    """Replies to each probe, per policy."""
    judged_prompts: int = 32
    """Held-out prompts whose replies the judge of `[judge]` compares, where one is set; 0: none."""
    gold: str = ""
    """A scorer that knows the truth, as `module:function` of messages and reply (simulation); empty: none."""

    def __post_init__(self) -> None:
        if self.probe_samples < 1:
            raise ValueError(f"probe_samples {self.probe_samples} must be at least 1")


class Judge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[judge]`: AI feedback by written principles (`ratchet learn judge`)."""

    url: str = ""
    """Base URL of an OpenAI-compatible endpoint, such as `http://127.0.0.1:8001/v1`; empty: no judge."""
    model: str = ""
    """Name of the model to ask there."""
    api_key_env: str = "RATCHET_JUDGE_KEY"
    """Environment variable with the endpoint's key; no key is sent when it is not set."""
    constitution: str = ""
    """File of principles; empty: the one that ships with ratchet (`learner/constitution.toml`)."""
    max_pairs: int = 200
    """Pairs of replies that nobody has compared yet, judged per run at most."""
    max_gold_pairs: int = 50
    """Pairs compared by design or labelled, judged per run at most to measure the judge; judged first."""
    max_revisions: int = 20
    """Disliked replies that are criticised, revised and compared with their revision, per run at most."""
    max_concurrent: int = 4
    """Pairs in work at the same time; each asks one question after another."""
    timeout_s: float = 60.0
    """Longest silence of the judge."""
    answer_tokens: int = 8
    """Room for the letter; some hundreds where the model thinks aloud first."""
    revision_tokens: int = 512
    """Longest critique, and longest revision; a longer one is not used."""
    max_chars: int = 20_000
    """Characters of the conversation that the judge sees; what is older is left out."""
    metrics_port: int = 0
    """Prometheus metrics while it judges; 0: off."""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r} must begin with http:// or https://")


class Problems(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[problems]`: prompts whose replies a program can check (docs/verifiable-rewards.md)."""

    files: list[str] = []
    """Problem files, JSON Lines; none: only what users asked is learned from."""
    fraction: float = 0.25
    """Share of the prompts of ppo, rloo and best_of_n that are problems; the others are what users asked."""
    weights: dict[str, float] = {}
    """By kind of check (`answer`, `steps`, `json`, `tool`, `code`), what passing it is worth beyond a verdict
    of a half, in deviations of the learned reward; failing costs the same. 1 for those not named."""
    learned_weight: float = 1.0
    """What the learned reward counts on problems, beside the checks; 0: the checks alone."""
    heldout: float = 0.2
    """Share of the problems that is never trained on: the candidate is measured on them."""
    eval_problems: int = 64
    """Held-out problems for the evaluation report, at most."""
    run_code: bool = False
    """Allow `code` checks, which run programs that the model wrote (Linux, x86_64 or aarch64)."""
    cpu_s: int = 2
    """CPU seconds of such a program, with its tests."""
    memory_mb: int = 512
    """Its address space."""

    def __post_init__(self) -> None:
        if not (0.0 <= self.fraction <= 1.0 and 0.0 <= self.heldout < 1.0):
            raise ValueError(f"fraction {self.fraction} and heldout {self.heldout} must be shares of 1")
        if unknown := sorted(self.weights.keys() - {"answer", "steps", "json", "tool", "code"}):
            raise ValueError(f"weights: no check is of kind {unknown[0]!r}")
        if min(self.cpu_s, self.memory_mb) < 1:
            raise ValueError("cpu_s and memory_mb must be 1 or more")

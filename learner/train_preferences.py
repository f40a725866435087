"""DPO from pairs and KTO from unpaired grades, by TRL, on the trunk's own copy of the base weights.

The only file that imports TRL. TRL knows hard labels of one weight; ours are soft and weighted: each row is
repeated in proportion (`learner.resampling`), so that its loss is ours in expectation. It gets token ids, the
same ones that the reward model sees, and the root reference is the trunk with its adapters off.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from learner.batches import GradeRow, PairRow, Sample, prompt_weights
from learner.errors import GuardError, MissingExtra
from learner.imitation import FitMetrics
from learner.models import Role, Trunk
from learner.resampling import halves, systematic

TRL_NAME = "default"
"""What TRL insists that the adapter being trained is called."""

Observe = Callable[[FitMetrics, int], None]
"""Called after each optimizer step with its figures and the steps in all."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    lr: float
    beta: float = 0.1
    epochs: int = 2
    batch_rows: int = 16
    token_budget: int = 8192
    seed: int = 0


def require_trl(packages: Sequence[str] = ("trl", "datasets")) -> None:
    """Raises: MissingExtra."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f'dpo and kto need {missing[0]}, not installed: pip install "ratchet[trl]"')


def dpo(trunk: Trunk, pairs: Sequence[PairRow], settings: Settings, observe: Observe) -> None:
    """Trains the policy adapter on pairs. Its implicit reward is β·(log π − log π_root).

    At least one of them must prefer a reply (`preferring`). Raises: MissingExtra; GuardError.
    """
    require_trl()
    weights = prompt_weights(pairs)
    masses = halves([row.p for row in pairs], weights)
    drawn = systematic(masses, draws(len(pairs), settings), settings.seed)
    rows = [_pair_columns(pairs[i // 2], turned=bool(i % 2)) for i in drawn]
    with lent(trunk) as model:
        from trl import DPOConfig, DPOTrainer

        longest = max(max(row.chosen.length, row.rejected.length) for row in pairs)
        with TemporaryDirectory() as scratch:
            args = DPOConfig(**arguments(settings, 2 * longest, len(rows), Path(scratch)))
            sample = {"prompt": "a", "chosen": "b", "rejected": "c"}
            _train(DPOTrainer, args, model, trunk, rows, sample, observe)


def kto(trunk: Trunk, grades: Sequence[GradeRow], settings: Settings, observe: Observe) -> None:
    """Trains the policy adapter on unpaired grades; good and bad ones weigh the same in all.

    There must be some of each (`good_and_bad`). Raises: MissingExtra; GuardError.
    """
    require_trl()
    weights = prompt_weights(grades)
    masses = halves([row.p for row in grades], weights)
    drawn = systematic(masses, draws(len(grades), settings), settings.seed)
    liked = sum(i % 2 == 0 for i in drawn)
    rows = [_grade_columns(grades[i // 2].reply, label=i % 2 == 0) for i in drawn]
    with lent(trunk) as model:
        from trl import KTOConfig, KTOTrainer

        longest = max(row.length for row in grades)
        with TemporaryDirectory() as scratch:
            args = KTOConfig(
                **arguments(settings, 3 * longest, len(rows), Path(scratch)),
                desirable_weight=len(rows) / (2 * max(liked, 1)),
                undesirable_weight=len(rows) / (2 * max(len(rows) - liked, 1)),
            )
            mismatched(rows, args.per_device_train_batch_size)
            sample = {"prompt": "a", "completion": "b", "label": True}
            _train(KTOTrainer, args, model, trunk, rows, sample, observe)


def preferring(pairs: Sequence[PairRow]) -> int:
    """How many pairs say anything about which reply is better."""
    return sum(row.weight > 0 and row.p != 0.5 for row in pairs)


def good_and_bad(grades: Sequence[GradeRow]) -> tuple[int, int]:
    """How many grades of weight are on either side of ½."""
    said = [row.p for row in grades if row.weight > 0]
    return sum(p > 0.5 for p in said), sum(p < 0.5 for p in said)


def draws(rows: int, settings: Settings) -> int:
    """Rows in all: so many passes, rounded to whole optimizer steps."""
    return max(1, round(settings.epochs * rows / settings.batch_rows)) * settings.batch_rows


def mismatched(rows: list[dict[str, Any]], batch: int) -> None:
    """Gives each row the reply of the row before it in its batch: TRL estimates the KL on these."""
    for first in range(0, len(rows), batch):
        replies = [row["completion_ids"] for row in rows[first : first + batch]]
        for row, reply in zip(rows[first:], [replies[-1], *replies[:-1]], strict=False):
            row["KL_completion_ids"] = reply


def arguments(settings: Settings, row_tokens: int, rows: int, scratch: Path) -> dict[str, Any]:
    """Of TRL's configurations: our optimizer, nothing shuffled, saved, reported or printed by TRL."""
    micro = micro_rows(settings, row_tokens)
    return {
        "output_dir": str(scratch),
        "beta": settings.beta,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,  # its first step would have the learning rate 0
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": rows // settings.batch_rows,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_rows // micro,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "seed": settings.seed,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def micro_rows(settings: Settings, row_tokens: int) -> int:
    """The largest divisor of the batch, 2 at least, whose rows fit the token budget."""
    sizes = [n for n in range(settings.batch_rows, 1, -1) if settings.batch_rows % n == 0]
    return next((n for n in sizes if n * row_tokens <= settings.token_budget), (sizes or [1])[-1])


@contextmanager
def lent(trunk: Trunk) -> Iterator[Any]:
    """The trunk's model with the policy under TRL's name for it; what was trained becomes the policy.

    Raises: GuardError for weights that are not finite; then, and on any error, the policy is as before.
    """
    model, config = trunk.model, trunk.model.peft_config[Role.POLICY.value]
    weights, forward = trunk.weights(Role.POLICY), trunk.causal_lm.__dict__.get("forward")
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(TRL_NAME, config)
        _put(model, weights)
        model.set_adapter(TRL_NAME)
        try:
            yield model
            trained = _taken(model)
        finally:
            model.set_adapter(Role.POLICY.value)
            model.delete_adapter(TRL_NAME)
            _restore_forward(trunk.causal_lm, forward)
            model.eval()
    if not all(bool(tensor.isfinite().all()) for tensor in trained.values()):
        raise GuardError("training made weights that are not finite: lower [learner] policy_lr")
    trunk.set_weights(Role.POLICY, trained)


def _put(model: Any, weights: dict[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, weights, adapter_name=TRL_NAME)


def _taken(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=TRL_NAME)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _restore_forward(causal_lm: Any, forward: Any) -> None:
    """TRL puts a forward of its own on the instance and leaves it there."""
    causal_lm.__dict__.pop("forward", None)
    if forward is not None:
        causal_lm.forward = forward


def _train(
    trainer_class: Any,
    args: Any,
    model: Any,
    trunk: Trunk,
    rows: list[dict[str, Any]],
    sample: dict[str, Any],
    observe: Observe,
) -> None:
    """`sample` is a row of text for TRL to tokenise when it starts; `rows` are token ids already."""
    import huggingface_hub.constants
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback

    disable_progress_bars()  # a bar per preparation would tear our own
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports its use otherwise
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([sample]),
        processing_class=trunk.encoder.tokenizer,
        callbacks=[_observer(args, observe)],
    )
    trainer.remove_callback(PrinterCallback)
    model.delete_adapter("ref")  # a copy of where we start from; without it the reference is the trunk alone
    trainer.train_dataset = Dataset.from_list(rows)
    trainer.train()


def _observer(args: Any, observe: Observe) -> Any:
    from transformers import TrainerCallback

    class Observer(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                observe(metrics(logs, state.global_step - 1), state.max_steps)

    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps

    def metrics(logs: dict[str, float], step: int) -> FitMetrics:
        return FitMetrics(
            step=step,
            loss=logs["loss"],
            rows=rows,
            lr=logs.get("learning_rate", 0.0),
            margin=logs.get("rewards/margins", 0.0),
            kl=logs.get("kl", 0.0),
        )

    return Observer()


def _pair_columns(row: PairRow, *, turned: bool) -> dict[str, Any]:
    chosen, rejected = (row.rejected, row.chosen) if turned else (row.chosen, row.rejected)
    shorter = min(row.chosen.prompt.ids, row.rejected.prompt.ids, key=len)  # a longer reply cuts more of it
    return {
        "prompt_ids": list(shorter),
        "chosen_ids": list(chosen.ids),
        "rejected_ids": list(rejected.ids),
    }


def _grade_columns(reply: Sample, *, label: bool) -> dict[str, Any]:
    return {"prompt_ids": list(reply.prompt.ids), "completion_ids": list(reply.ids), "label": label}

"""TRL's side of `bench-learner`: its trainers as their documentation shows them, pausing after every step.

`python -m tests.benchmarks.learner_trl reward TASK` and `… policy TASK ADAPTER`, in the environment that
`bench_learner.peer_python` makes.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from tests.benchmarks.learner_task import Meter, Task, Turns, dtype, preload, start


class Pace(TrainerCallback):
    """Says what a step cost and waits for its turn."""

    def __init__(self, turns: Turns, meter: Meter) -> None:
        self.turns, self.meter = turns, meter
        self.began = 0.0
        self.figures: dict[str, float] = {}

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.turns.pause(ready=True)
        self.began = self.meter.now()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.turns.pause(step_s=self.meter.now() - self.began, **self.figures)
        self.began = self.meter.now()


def lora(task: Task, kind: str, **more: Any) -> LoraConfig:
    return LoraConfig(
        r=task.rank,
        lora_alpha=2 * task.rank,
        target_modules=task.targets,
        task_type=kind,
        lora_dropout=0.0,
        **more,
    )


def settings(task: Task, folder: Path) -> dict[str, Any]:
    """What all its trainers are told: nothing but training happens."""
    gpu = torch.cuda.is_available()
    return dict(
        output_dir=str(folder),
        bf16=gpu,
        use_cpu=not gpu,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        lr_scheduler_type="linear",
        adam_epsilon=1e-5,
        seed=task.seed,
    )


def scorer(folder: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=dtype())


def train_reward(task: Task, turns: Turns, folder: Path) -> None:
    from trl import RewardConfig, RewardTrainer

    preload()
    pace = Pace(turns, Meter())
    rows = {
        "chosen_ids": [prompt + chosen for prompt, chosen, _ in task.pairs],
        "rejected_ids": [prompt + rejected for prompt, _, rejected in task.pairs],
    }
    RewardTrainer(
        model=scorer(task.base),
        args=RewardConfig(
            **settings(task, folder),
            per_device_train_batch_size=task.pair_batch,
            num_train_epochs=1,
            learning_rate=task.reward_lr,
            max_length=None,
            logging_strategy="no",
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(task.base),
        peft_config=lora(task, "SEQ_CLS", modules_to_save=["score"]),
        callbacks=[pace],
    ).train()


def train_policy(task: Task, turns: Turns, folder: Path, adapter: Path) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    preload()
    pace = Pace(turns, Meter())
    sample, whiten, meter = ppo_trainer.batch_generation, ppo_trainer.masked_whiten, pace.meter
    marks: dict[str, float] = {}

    def sampling(*arguments: Any) -> Any:
        began = meter.now()
        drawn = sample(*arguments)
        pace.figures["sample_s"] = meter.now() - began
        return drawn

    def whitening(*arguments: Any) -> Any:
        """The last thing before the update's first pass."""
        white = whiten(*arguments)
        meter.watch()
        marks["update"] = meter.now()
        return white

    class Watched(PPOTrainer):  # type: ignore[misc]
        def log(self, metrics: dict[str, float], *arguments: Any) -> None:
            """The first thing after the update's last pass."""
            pace.figures["update_s"] = meter.now() - marks["update"]
            pace.figures["peak_bytes"] = meter.peak()
            pace.figures["score"] = metrics["objective/scores"]
            super().log(metrics, *arguments)

    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = sampling, whitening
    tokenizer = AutoTokenizer.from_pretrained(task.base, padding_side="left")
    prompts = [prompt for prompt in task.prompts for _ in range(task.replies_per_prompt)]
    trainer = Watched(
        args=PPOConfig(
            **settings(task, folder),
            per_device_train_batch_size=task.micro,
            gradient_accumulation_steps=task.batch // task.micro,
            num_mini_batches=1,
            num_ppo_epochs=task.epochs,
            total_episodes=task.batch * task.steps,
            local_rollout_forward_batch_size=task.batch,
            response_length=task.reply_tokens,
            stop_token_id=task.eos_id,
            temperature=1.0,
            kl_coef=task.beta,
            learning_rate=task.policy_lr,
            num_sample_generations=0,
            logging_steps=1,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(task.base, dtype=dtype()),
        ref_model=None,
        reward_model=scorer(task.reward),
        value_model=scorer(task.reward),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts[: task.batch]}),
        peft_config=lora(task, "CAUSAL_LM"),
        callbacks=[pace],
    )
    trainer.train()
    trainer.model.policy.save_pretrained(adapter)


def main(arguments: list[str]) -> None:
    what, task = start(arguments)
    turns = Turns()
    folder = Path(arguments[2]).parent / f"trl-{what}"
    if what == "reward":
        train_reward(task, turns, folder)
    else:
        train_policy(task, turns, folder, Path(arguments[3]))
    turns.say(done=True)


if __name__ == "__main__":
    main(sys.argv)

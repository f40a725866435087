"""Snapshots in other people's tools: `datasets` reads every table, TRL's trainers take a step on them."""

import importlib.util
from pathlib import Path

import pytest

from feedback import export, snapshots
from feedback.snapshots import TABLES
from tests.feedback.example import EVENTS, built

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None,
        reason="TRL and datasets are not installed: pip install with the `trl` extra",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of other people's packages
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> snapshots.Snapshot:
    folder = tmp_path_factory.mktemp("made")
    return snapshots.load(folder / "snapshots" / built(folder, EVENTS).name)


def read(file: Path):
    from datasets import load_dataset

    return load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(file.parent / "cache"))


@pytest.mark.parametrize("table", TABLES)
def test_datasets_reads_every_table(snapshot, table):
    """Without a loading script, a cast or a hub."""
    found = read(snapshot.path / f"{table}.parquet")
    assert len(found) == snapshot.manifest.rows[table] > 0
    assert set(found[0]["prompt"][0]) == {"role", "content"}


def test_trls_reward_trainer_takes_a_step_on_the_pairs(snapshot, tiny_base, tmp_path):
    """The columns are taken as they are; what TRL tokenises is the dialogue with its reply."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1)
    before = model.score.weight.detach().clone()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**one_step(tmp_path)),
        train_dataset=read(snapshot.path / "pairs.parquet"),
        processing_class=AutoTokenizer.from_pretrained(tiny_base),
    )
    assert 0.0 < trainer.train().training_loss < 5.0
    assert not before.equal(trainer.model.score.weight)
    pair = snapshot.pairs[0]
    told = trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"])
    assert pair.prompt[-1]["content"] in told and pair.chosen in told


def test_trls_dpo_trainer_takes_a_step_on_the_pairs(snapshot, tiny_base, tmp_path):
    """Prompt and replies are told apart: only the reply's tokens are trained on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    before = model.model.norm.weight.detach().clone()
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**one_step(tmp_path)),
        train_dataset=read(snapshot.path / "pairs.parquet"),
        processing_class=AutoTokenizer.from_pretrained(tiny_base),
    )
    # policy and reference are the same before the first step: -log σ(0) = 0.6931
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)
    assert not before.equal(trainer.model.model.norm.weight)
    row, pair = trainer.train_dataset[0], snapshot.pairs[0]
    decode = trainer.processing_class.decode
    assert decode(row["prompt_ids"]).endswith("<|assistant|>")
    assert decode(row["rejected_ids"]).startswith(pair.rejected)


@pytest.fixture(scope="module")
def exported(snapshot, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    export.export(snapshot.path, folder, "trl")
    return folder


@pytest.mark.parametrize("form", ["trl", "openrlhf", "jsonl"])
def test_datasets_reads_an_export_by_its_card(snapshot, tmp_path, form):
    """The card names every table and split, so that the folder alone is enough."""
    from datasets import load_dataset

    done = export.export(snapshot.path, tmp_path / "out", form)
    for file in done.files:
        found = load_dataset(
            str(done.folder), file.table, split=file.split, cache_dir=str(tmp_path / "cache")
        )
        assert len(found) == file.rows
        assert set(found.column_names) == set(export.columns_of(file.table, form))


@pytest.mark.parametrize(("trainer", "table"), [("SFT", "demonstrations"), ("KTO", "grades")])
def test_trls_other_trainers_take_a_step_on_the_export(exported, tiny_base, tmp_path, trainer, table):
    """What the card says each table is for."""
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    before = model.model.norm.weight.detach().clone()
    learner = getattr(trl, f"{trainer}Trainer")(
        model=model,
        args=getattr(trl, f"{trainer}Config")(**one_step(tmp_path)),
        train_dataset=read(exported / table / "train.parquet"),
        processing_class=AutoTokenizer.from_pretrained(tiny_base),
    )
    assert 0.0 < learner.train().training_loss < 20.0
    assert not before.equal(learner.model.model.norm.weight)


def one_step(folder: Path) -> dict[str, object]:
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        "max_length": 512,
    }

"""Reward models from a file of pairs, side by side on the same held-out conversations, none left out.

The trunk's reward model lies in `out` itself, where PPO takes it from; the text scorers in folders beside it.

    out/  adapter/  heads.safetensors  report.json  card.*  bag-of-words/  n-grams/  blend/  comparison.json
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from learner import blend, findings, model_card, pair_files, text_scorer, train_reward
from learner.batches import Prompt, RewardData, Sample
from learner.checkpoints import write_atomically
from learner.distributed import is_main
from learner.errors import DataError, ModelError
from learner.findings import Findings, Judged
from learner.measures import Floats, clustered_bootstrap
from learner.models import Role, Trunk, load_trunk
from learner.ngrams import Block
from learner.pair_files import FilePair
from learner.sampling import LocalSampler
from learner.train_reward import RewardModel, RewardStep
from learner.turn import Setting, reward_settings
from ops import store

TRUNK = "reward model"
BLEND = "blend"
TEXT: dict[str, tuple[Block, ...]] = {
    "bag of words": text_scorer.BAG_OF_WORDS,
    "n-grams": text_scorer.N_GRAMS,
}
BASELINE = "bag of words"
BLENDED = "n-grams"
"""What is blended with the trunk's reward model."""
INNER_FOLD = 0
"""Of the training conversations: what the blend's weights are fitted on."""
SCORER_FILE = "scorer.safetensors"
MAX_TOKENS = 128
"""Longest dialogue with its reply that the trunk sees: a training step costs what its tokens cost."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One scorer on the held-out pairs."""

    name: str
    findings: Findings
    gain: float
    """Accuracy less the baseline's on the same pairs, ties left out."""
    gain_low: float
    gain_high: float
    """95 %, from resampling conversations."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`comparison.json`: every scorer, the best first."""

    train_pairs: int
    max_tokens: int
    """Of a dialogue with its reply, as the trunk saw it."""
    blend: dict[str, float]
    """Weight of each scorer's log-odds in the blend."""
    results: tuple[Result, ...]


def train(
    setting: Setting,
    file: Path,
    out: Path,
    heldout_file: Path | None = None,
    max_tokens: int = MAX_TOKENS,
    epochs: int = 1,
) -> Comparison:
    """Trains each scorer on the file's training pairs, or on all of them where `heldout_file` is given.

    Raises: DataError naming row and column of a fault in either file; ModelError.
    """
    pairs, heldout = split(file, heldout_file)
    fitted = {name: _fit_text(setting, name, pairs) for name in TEXT}
    made = {name: found.scorer for name, found in fitted.items()}
    margins = {name: scorer.margins(heldout) for name, scorer in made.items()}
    weights = _blend_weights(setting, pairs, fitted[BLENDED], max_tokens, epochs)
    margins[TRUNK] = trunk_margins(_train_trunk(setting, pairs, heldout, out, max_tokens, epochs), heldout)
    margins[BLEND] = blend.margins(weights, margins)
    found = compare(margins, heldout, len(pairs), max_tokens, weights)
    if not is_main():
        return found
    for name, scorer in made.items():
        text_scorer.save(scorer, _folder(out, name) / SCORER_FILE)
    _write_cards(setting, found, out, f"{file.name}, SHA-256 {_digest(file)}", made, epochs)
    return found


def evaluate(setting: Setting, out: Path, file: Path) -> Comparison:
    """The scorers in `out` on every pair of another file; changes nothing in `out`.

    Raises: DataError, ModelError.
    """
    pairs = pair_files.read(file)
    margins = {name: text_scorer.load(_folder(out, name) / SCORER_FILE).margins(pairs) for name in TEXT}
    before = _read(out)
    learner = setting.learner
    trunk = load_trunk(setting.base_dir, rank=learner.rank, seed=learner.seed, max_tokens=before.max_tokens)
    margins[TRUNK] = trunk_margins(train_reward.load(trunk, out, learner.reward_uncertainty)[0], pairs)
    margins[BLEND] = blend.margins(before.blend, margins)
    return compare(margins, pairs, before.train_pairs, before.max_tokens, before.blend)


def split(file: Path, heldout_file: Path | None) -> tuple[list[FilePair], list[FilePair]]:
    """Training and held-out pairs. A conversation of the held-out file is never trained on.

    Raises: DataError when one of the two is empty."""
    read = pair_files.read(file)
    if heldout_file is None:
        pairs, heldout = [p for p in read if not p.heldout], [p for p in read if p.heldout]
    else:
        heldout = pair_files.read(heldout_file)
        unseen = {pair.opening for pair in heldout}
        pairs = [pair for pair in read if pair.opening not in unseen]
    if not pairs:
        raise DataError(f"{file} has no training pair: all are held out")
    if not heldout:
        raise DataError(f"{file} has no held-out pair: give more pairs, a column 'split', or --evaluate FILE")
    return pairs, heldout


def compare(
    margins: Mapping[str, Floats],
    heldout: Sequence[FilePair],
    train_pairs: int,
    max_tokens: int,
    weights: dict[str, float],
) -> Comparison:
    """Every scorer on the same pairs, in order of accuracy."""
    results = [_result(name, margin_B, margins[BASELINE], heldout) for name, margin_B in margins.items()]
    results.sort(key=lambda r: (-r.findings.accuracy.accuracy, r.name))
    return Comparison(train_pairs=train_pairs, max_tokens=max_tokens, blend=weights, results=tuple(results))


def trunk_margins(model: RewardModel, pairs: Sequence[FilePair]) -> Floats:
    """Mean margin of the heads on each pair, in log-odds."""
    rows = [pair_files.row(pair, model.trunk.encoder) for pair in pairs]
    return train_reward.pair_margins(model, rows)[0]


def table(found: Comparison) -> Table:
    """For people."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("scorer", "accuracy (95 %)", "less the bag of words’", "ECE", "Brier"):
        made.add_column(title, no_wrap=True)
    for r in found.results:
        gain = "" if r.name == BASELINE else f"{r.gain:+.3f} [{r.gain_low:+.3f}, {r.gain_high:+.3f}]"
        scaled = r.findings.scaled
        accuracy = model_card.interval(r.findings.accuracy)
        made.add_row(r.name, accuracy, gain, f"{scaled.error:.3f}", f"{scaled.brier:.3f}")
    rule = found.results[0].findings.shorter_is_better
    made.add_row("shorter reply", model_card.interval(rule), style="dim")
    return made


def summary(found: Comparison) -> str:
    """One line: the best of them, and what it was measured on."""
    best = found.results[0]
    return (
        f"held-out accuracy {model_card.interval(best.findings.accuracy)} by the {best.name}, the best of "
        f"{len(found.results)}, on {best.findings.accuracy.pairs} pairs; trained on {found.train_pairs}"
    )


def _result(name: str, margin_B: Floats, baseline_B: Floats, heldout: Sequence[FilePair]) -> Result:
    p_B = np.array([pair.p for pair in heldout])
    openings = [pair.opening for pair in heldout]
    judged = Judged(
        margin_B=margin_B,
        p_B=p_B,
        kinds=["file"] * len(heldout),
        conversations=openings,
        length_difference_B=np.array([float(len(p.chosen) - len(p.rejected)) for p in heldout]),
        unit="characters",
    )
    decided_B = judged.decided_B
    better_B = (margin_B > 0).astype(float) - (baseline_B > 0)
    clusters = [opening for opening, decided in zip(openings, decided_B, strict=True) if decided]
    gain = clustered_bootstrap(better_B[decided_B], clusters, np.random.default_rng(0))
    return Result(
        name=name,
        findings=findings.find(judged),
        gain=gain.value,
        gain_low=gain.low,
        gain_high=gain.high,
    )


def _fit_text(setting: Setting, name: str, pairs: Sequence[FilePair]) -> text_scorer.Fitted:
    def on_step(done: int, total: int) -> None:
        setting.progress(name, done, total, "penalty by cross-validation")

    return text_scorer.fit(pairs, TEXT[name], setting.learner.seed, on_step)


def _blend_weights(
    setting: Setting, pairs: Sequence[FilePair], text: text_scorer.Fitted, max_tokens: int, epochs: int
) -> dict[str, float]:
    """From one fold of the training conversations, which a first reward model and the n-grams did not see."""
    inner_B = text_scorer.folds(pairs, setting.learner.seed) == INNER_FOLD
    inner = [pair for pair, own in zip(pairs, inner_B, strict=True) if own]
    others = [pair for pair, own in zip(pairs, inner_B, strict=True) if not own]
    if not others:
        return {BLENDED: 1.0, TRUNK: 0.0}
    model, _, _ = _fit_trunk(setting, others, [], max_tokens, epochs, "reward model, inner fold")
    told = {BLENDED: text.out_of_fold_B[inner_B], TRUNK: trunk_margins(model, inner)}
    return blend.weights(told, np.array([p.p for p in inner]), np.array([p.weight for p in inner]))


def _train_trunk(
    setting: Setting,
    pairs: Sequence[FilePair],
    heldout: Sequence[FilePair],
    out: Path,
    max_tokens: int,
    epochs: int,
) -> RewardModel:
    """Fitted, standardised and saved."""
    model, data, losses = _fit_trunk(setting, pairs, heldout, max_tokens, epochs, TRUNK)
    root = _root_samples(setting, model.trunk, [row.chosen.prompt for row in data.pairs])
    train_reward.standardise(model, root)
    train_reward.save(model, train_reward.report(model, data, losses, root), out)
    return model


def _fit_trunk(
    setting: Setting,
    pairs: Sequence[FilePair],
    heldout: Sequence[FilePair],
    max_tokens: int,
    epochs: int,
    stage: str,
) -> tuple[RewardModel, RewardData, list[float]]:
    learner = setting.learner
    trunk = load_trunk(setting.base_dir, rank=learner.rank, seed=learner.seed, max_tokens=max_tokens)
    data = pair_files.reward_data(pairs, heldout, trunk.encoder)

    def on_step(figures: RewardStep, steps: int) -> None:
        setting.progress(stage, figures.step + 1, steps, f"loss {figures.loss:.3f}")

    model, losses = train_reward.train(trunk, data, trunk_settings(setting, epochs), on_step)
    return model, data, losses


def trunk_settings(setting: Setting, epochs: int) -> train_reward.Settings:
    return replace(reward_settings(setting.learner, setting.learner.seed), epochs=epochs)


def _root_samples(setting: Setting, trunk: Trunk, prompts: Sequence[Prompt]) -> list[Sample]:
    """Four replies of the base model to each of the first training prompts: what rewards are measured by."""
    learner = setting.learner
    return LocalSampler(trunk).sample(
        Role.ROOT,
        prompts[: max(1, learner.root_samples // 4)],
        n=4,
        temperature=learner.temperature,
        max_tokens=learner.max_reply_tokens,
        seed=learner.seed,
    )


def _write_cards(
    setting: Setting,
    found: Comparison,
    out: Path,
    data: str,
    text_scorers: Mapping[str, text_scorer.TextScorer],
    epochs: int,
) -> None:
    """A card per scorer, then `comparison.json`."""
    beside = [f"{r.name}: {model_card.interval(r.findings.accuracy)}" for r in found.results]
    notes = ["All scorers on the same held-out pairs: " + "; ".join(beside)]
    settings: dict[str, model_card.Settings] = {
        TRUNK: {**trunk_settings(setting, epochs).for_card(), "max_tokens": found.max_tokens},
        BLEND: {f"weight of the {name}": round(weight, 4) for name, weight in found.blend.items()},
        **{name: {"penalty": scorer.penalty} for name, scorer in text_scorers.items()},
    }
    for result in found.results:
        trunk = result.name == TRUNK
        origin = model_card.Origin(
            name=result.name,
            data=data,
            parents={"base model": store.base_digest(setting.base_dir)} if trunk else {},
            train_pairs=found.train_pairs,
            settings=settings[result.name],
        )
        model_card.write(model_card.card(origin, result.findings, notes), _folder(out, result.name))
    write_atomically(out / "comparison.json", msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def _read(out: Path) -> Comparison:
    """Raises: ModelError when the folder holds no scorers from a file of pairs."""
    try:
        return msgspec.json.decode((out / "comparison.json").read_bytes(), type=Comparison)
    except (OSError, msgspec.DecodeError) as e:
        raise ModelError(f"{out} holds no reward models from a file of pairs: {e}") from e


def _folder(out: Path, name: str) -> Path:
    return out if name == TRUNK else out / name.replace(" ", "-")


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()

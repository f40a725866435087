"""The card of a turn's reward model: its held-out pairs, by signal and by length in tokens."""

from pathlib import Path

import msgspec
import numpy as np

from learner import findings, model_card, train_reward
from learner.batches import PairRow, RewardData
from learner.distributed import is_main
from learner.findings import Findings, Judged, Share
from learner.train_reward import RewardModel, RewardReport, Settings


def measure(model: RewardModel, pairs: list[PairRow]) -> Findings:
    """Mean margin of the heads on each pair."""
    margin_B, p_B = train_reward.pair_margins(model, pairs)
    return findings.find(
        Judged(
            margin_B=margin_B,
            p_B=p_B,
            kinds=[str(pair.kind) for pair in pairs],
            conversations=[pair.digest for pair in pairs],
            length_difference_B=np.array([float(len(p.chosen.ids) - len(p.rejected.ids)) for p in pairs]),
            unit="tokens",
            dimensions=[dict(pair.dimensions) for pair in pairs],
            reward_B=train_reward.reward_margins(model, pairs) if model.heads.dimensions else None,
        )
    )


def write(
    model: RewardModel,
    data: RewardData,
    report: RewardReport,
    settings: Settings,
    folder: Path,
    *,
    run: str,
    snapshot: str,
    parents: dict[str, str],
    before: Findings | None = None,
) -> None:
    """The card beside the reward model. `before`: what the same pairs said of the model it went on from."""
    origin = model_card.Origin(
        name=f"reward model of {run}",
        data=snapshot,
        parents=parents,
        train_pairs=len(data.pairs),
        train_grades=len(data.grades),
        settings=settings.for_card(),
    )
    notes = [
        f"{report.grades} held-out grades: accuracy {report.grade_accuracy:.3f} "
        f"[{report.grade_accuracy_low:.3f}, {report.grade_accuracy_high:.3f}]",
        f"among the root reference's replies to one prompt, reward and length correlate by "
        f"{report.length_correlation:+.2f}, and the heads disagree by {report.disagreement:.2f} deviations",
    ]
    notes += [
        f"{name} counts {weight:g} beside the overall answer"
        + ("" if weight or not settings.dimensions[name] else ": too few rows tell it apart")
        for name, weight in report.dimension_weights.items()
    ]
    if before is not None:
        notes.append(
            f"the model that it went on from, on the same pairs: {model_card.interval(before.accuracy)}"
        )
    own = tuple(
        Share(name=name, pairs=n, accuracy=accuracy, low=low, high=high)
        for name, (accuracy, low, high, n) in report.accuracy_by_dimension.items()
    )
    found = msgspec.structs.replace(measure(model, data.heldout_pairs), by_own_head=own)
    made = model_card.card(origin, found, notes)
    if is_main():
        model_card.write(made, folder)

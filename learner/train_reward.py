"""The reward model: Bradley–Terry on pairs and cross-entropy on grades, one trunk, an ensemble of heads.

Scores are used only after `standardise`: in deviations of the root reference's replies, so that β and the
gates mean the same in every run. Reads no snapshot and samples nothing.

Legend: B rows or samples, K heads, H hidden size, L prompt and response token, C parts of a score: overall,
then each dimension (helpful, honest, harmless) that has heads of its own.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.advantages import conservative
from learner.batches import GradeRow, PairRow, RewardData, Sample, prompt_weights
from learner.distributed import add_up_gradients, is_main, shares, total
from learner.errors import DataError, ModelError
from learner.losses import grade_loss, preference_loss
from learner.measures import Interval, brier, calibration_error, wilson
from learner.models import Pooling, RewardHeads, Role, Trunk, export_adapter, load_adapter, pooled_states

LENGTH_SCALE = 32.0
"""Tokens of length difference that the length term counts as 1."""
WARM_UP_FRACTION = 0.1
MIN_DIMENSION_ROWS = 20
"""Training rows that must tell a dimension apart before it counts in the reward."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    lr: float = 2e-3
    epochs: int = 2
    batch_prompts: int = 8
    heads: int = 4
    pooling: Pooling = "last"
    rank: int = 16
    dimensions: Mapping[str, float] = field(default_factory=dict)
    """Weight of each dimension beside the overall answer's 1."""
    uncertainty: float = 0.5
    length_covariate: bool = False
    token_budget: int = 8192
    seed: int = 0

    def for_card(self) -> dict[str, str | int | float | bool]:
        """By name, as a card shows them."""
        weights = ", ".join(f"{name} {weight:g}" for name, weight in sorted(self.dimensions.items()))
        return {**asdict(self), "dimensions": weights or "none"}


class RewardReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a reward model is worth, on held-out rows only. Intervals are 95 % (Wilson)."""

    pairs: int
    accuracy: float
    """Share of held-out pairs (ties left out) whose likelier better reply scores higher."""
    accuracy_low: float
    accuracy_high: float
    grades: int
    grade_accuracy: float
    """Share of held-out grades on whose side of ½ the model is."""
    grade_accuracy_low: float
    grade_accuracy_high: float
    accuracy_by_kind: dict[str, tuple[float, int]]
    """Accuracy and number of pairs for each signal kind."""
    accuracy_by_dimension: dict[str, tuple[float, float, float, int]] = {}
    """Of each dimension's own heads: accuracy, its interval, and the held-out pairs and ratings behind it."""
    dimension_weights: dict[str, float] = {}
    """What each dimension counts in the reward, overall being 1; 0 where too few rows told it apart."""
    calibration_error: float
    """Of pair probabilities, 15 bins of equal mass."""
    brier: float
    length_correlation: float = 0.0
    """Of reward and length among the root reference's replies to one prompt."""
    disagreement: float = 0.0
    """Mean deviation between heads on those replies, in deviations of the reward."""
    train_pairs: int = 0
    train_grades: int = 0
    first_loss: float = 0.0
    """nats; ln 2 = 0.693 from a model that knows nothing."""
    last_loss: float = 0.0


class RewardStep(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step of a reward model, as a line of `reward.jsonl`; figures are from before the step."""

    step: int
    loss: float
    """nats."""
    accuracy: float
    """Share of the step's training rows on whose side of ½ the heads are, ties left out."""
    lr: float
    grad_norm: float
    """Before clipping."""


class RewardModel:
    """The trunk's reward adapter with its heads: scores samples."""

    def __init__(
        self, trunk: Trunk, heads: RewardHeads, uncertainty: float, token_budget: int = 8192
    ) -> None:
        self.trunk = trunk
        self.heads = heads
        self.uncertainty = uncertainty
        self.token_budget = token_budget

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Conservative scores_B: what PPO maximises."""
        return conservative(self.scores(samples), self.uncertainty)

    def scores(self, samples: Sequence[Sample]) -> Tensor:
        """Standardised scores_BK of every head."""
        return self.heads.standardised(self.heads.combined(self.parts(samples)))

    def raw(self, samples: Sequence[Sample]) -> Tensor:
        """scores_BK of the overall part on the Bradley–Terry scale: differences are log-odds."""
        return self.parts(samples)[:, 0]

    def parts(self, samples: Sequence[Sample]) -> Tensor:
        """Raw scores_BCK, each part on a Bradley–Terry scale of its own."""
        self.trunk.model.eval()
        scores_BCK = torch.zeros(len(samples), *self.heads.bias_CK.shape)
        with torch.no_grad(), self.trunk.acting(Role.REWARD):
            for share in shares([s.length for s in samples], self.token_budget):
                found_BCK = self.differentiable([samples[i] for i in share.rows])
                scores_BCK[share.rows] += share.weight * found_BCK.cpu()
        return total(scores_BCK)

    def differentiable(self, samples: Sequence[Sample]) -> Tensor:
        """Raw scores_BCK with gradient; the reward adapter must act. Equal samples are computed once."""
        unique = list(dict.fromkeys(samples))
        place = {sample: i for i, sample in enumerate(unique)}
        pooled_UH = pooled_states(*self.trunk.hidden(unique), self.heads.pooling)
        return self.heads.parts(pooled_UH)[[place[s] for s in samples]]


def train(
    trunk: Trunk,
    data: RewardData,
    settings: Settings,
    on_step: Callable[[RewardStep, int], None] = lambda figures, steps: None,
    earlier: Path | None = None,
) -> tuple[RewardModel, list[float]]:
    """Fits reward adapter and heads; every optimizer step sees all rows of its prompts.

    Args: on_step, called after each step with its figures and the steps in all; earlier, folder of a reward
    model to go on from; without one, a fresh adapter and fresh heads.
    Returns: the model, not yet standardised, and the loss of each step (nats).
    Raises: DataError when there is no row to learn from; ModelError for an `earlier` that does not fit.
    """
    weighted = weigh(data)
    if not weighted:
        raise DataError("the snapshot has no training pair or grade of positive weight")
    model = begin(trunk, settings) if earlier is None else load(trunk, earlier, settings.uncertainty)[0]
    model.token_budget = settings.token_budget
    if model.heads.dimensions:
        counted = [1.0, *counted_dimensions(data, settings.dimensions).values()]
        model.heads.part_weight_C = torch.tensor(counted, device=trunk.device)
    parameters = [*trunk.parameters(Role.REWARD), *model.heads.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, eps=1e-5)
    batches = [b for epoch in range(settings.epochs) for b in prompt_batches(weighted, settings, epoch)]
    losses: list[float] = []
    with trunk.acting(Role.REWARD):
        for step, batch in enumerate(batches):
            lr = settings.lr * rate(step, len(batches))
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            loss, accuracy = backward(model, batch, settings)
            add_up_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if bool(norm.isfinite()):
                optimizer.step()
            losses.append(loss)
            figures = RewardStep(step=step, loss=loss, accuracy=accuracy, lr=lr, grad_norm=float(norm))
            on_step(figures, len(batches))
    return model, losses


def begin(trunk: Trunk, settings: Settings) -> RewardModel:
    """A fresh reward adapter, which changes nothing yet, and heads drawn from the seed."""
    trunk.add(Role.REWARD, settings.rank, settings.seed)
    heads = RewardHeads(
        trunk.hidden_size, settings.heads, settings.seed, settings.pooling, sorted(settings.dimensions)
    )
    return RewardModel(trunk, heads.to(trunk.device), settings.uncertainty, settings.token_budget)


def counted_dimensions(data: RewardData, wanted: Mapping[str, float]) -> dict[str, float]:
    """By name, the weight that a dimension gets: 0 where too few training rows tell it apart."""
    rows: list[PairRow | GradeRow] = [*data.pairs, *data.grades]
    told = Counter(name for row in rows if row.weight > 0 for name, _ in row.dimensions)
    return {name: wanted[name] if told[name] >= MIN_DIMENSION_ROWS else 0.0 for name in sorted(wanted)}


@dataclass(frozen=True)
class Weighted:
    """A row with its weight after the cap per prompt."""

    row: PairRow | GradeRow
    weight: float


def weigh(data: RewardData) -> dict[str, list[Weighted]]:
    """Training rows by prompt. Pairs and grades of one prompt weigh at most 1 each; weightless rows go."""
    rows: dict[str, list[Weighted]] = defaultdict(list)
    for pair, weight in zip(data.pairs, prompt_weights(data.pairs), strict=True):
        rows[pair.digest].append(Weighted(pair, weight))
    for grade, weight in zip(data.grades, prompt_weights(data.grades), strict=True):
        rows[grade.digest].append(Weighted(grade, weight))
    kept = {digest: [w for w in found if w.weight > 0] for digest, found in rows.items()}
    return {digest: found for digest, found in kept.items() if found}


def prompt_batches(
    weighted: dict[str, list[Weighted]], settings: Settings, epoch: int
) -> list[list[Weighted]]:
    """One epoch: prompts in an order that follows from seed and epoch, `batch_prompts` at a time."""
    digests = sorted(weighted)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = [digests[i] for i in torch.randperm(len(digests), generator=generator).tolist()]
    size = settings.batch_prompts
    return [[w for d in order[i : i + size] for w in weighted[d]] for i in range(0, len(order), size)]


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then linearly to 0."""
    warm_up = max(1, round(WARM_UP_FRACTION * steps))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def backward(model: RewardModel, batch: Sequence[Weighted], settings: Settings) -> tuple[float, float]:
    """This rank's part of the gradients of the batch's mean loss.

    Returns: that loss (nats) and the share of decided rows on whose side of ½ the heads are, of all ranks.
    """
    seen_BK = torch.stack([head_weights(w, settings.heads) for w in batch])
    denominator = seen_BK.sum().clamp(min=1e-8)
    sums = torch.zeros(2, dtype=torch.float64)
    for share in shares([w.row.length for w in batch], settings.token_budget):
        rows = [batch[i].row for i in share.rows]
        row_BK, odds_BK = row_losses(model, rows, seen_BK[share.rows], settings.length_covariate)
        loss = share.weight * row_BK.sum() / denominator
        loss.backward()  # type: ignore[no-untyped-call]
        sums += torch.stack([loss.detach().cpu(), share.weight * right(odds_BK, rows).sum()]).double()
    loss_sum, right_sum = total(sums).tolist()
    return loss_sum, right_sum / max(1, sum(w.row.p != 0.5 for w in batch))


def right(odds_BK: Tensor, rows: Sequence[PairRow | GradeRow]) -> Tensor:
    """right_B: whether the heads' mean log-odds are on the label's side of ½; False for ties."""
    p_B = torch.tensor([row.p for row in rows])
    return ((odds_BK.cpu().mean(dim=1) > 0) == (p_B > 0.5)) & (p_B != 0.5)


def head_weights(weighted: Weighted, heads: int) -> Tensor:
    """weight_K of a row. Each head is blind to its own fold of the prompts: heads differ in what they saw."""
    weight_K = torch.full((heads,), weighted.weight)
    if heads > 1:
        fold = int.from_bytes(blake2b(weighted.row.digest.encode(), digest_size=4).digest(), "big") % heads
        weight_K[fold] = 0.0
    return weight_K


def row_losses(
    model: RewardModel, rows: Sequence[PairRow | GradeRow], weight_BK: Tensor, length_term: bool
) -> tuple[Tensor, Tensor]:
    """loss_BK of pairs and grades side by side, chosen and rejected in one forward pass; and odds_BK without
    gradient: each head's log-odds that `chosen` is the better one, that a graded reply is good.

    The loss is summed over the parts of the score: a dimension that a row does not tell apart has none there.
    The odds are of the overall part.
    """
    samples = [s for row in rows for s in _samples(row)]
    scores_SCK = model.differentiable(samples)
    device = scores_SCK.device
    if length_term:
        length_S = torch.tensor([len(s.ids) / LENGTH_SCALE for s in samples], device=device)
        scores_SCK = scores_SCK + length_S[:, None, None] * model.heads.length_CK
    first_B = torch.tensor([0, *(len(_samples(row)) for row in rows[:-1])]).cumsum(0)
    pair_B = torch.tensor([isinstance(row, PairRow) for row in rows], device=device)
    own_BCK, other_BCK = scores_SCK[first_B], scores_SCK[(first_B + 1).clamp(max=len(samples) - 1)]
    loss_BK = torch.zeros_like(own_BCK[:, 0])
    for c, name in enumerate(("", *model.heads.dimensions)):
        said = [dict(row.dimensions).get(name) if name else row.p for row in rows]
        p_B = torch.tensor([0.5 if p is None else p for p in said], device=device)
        told_B1 = torch.tensor([[float(p is not None)] for p in said], device=device)
        weights_BK = weight_BK.to(device) * told_B1
        loss_BK = loss_BK + torch.where(
            pair_B[:, None],
            preference_loss(own_BCK[:, c] - other_BCK[:, c], p_B, weights_BK),
            grade_loss(own_BCK[:, c], model.heads.bias_CK[c], p_B, weights_BK),
        )
    overall_BK = own_BCK[:, 0]
    odds_BK = torch.where(pair_B[:, None], overall_BK - other_BCK[:, 0], overall_BK + model.heads.bias_CK[0])
    return loss_BK, odds_BK.detach()


def _samples(row: PairRow | GradeRow) -> tuple[Sample, ...]:
    return (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.reply,)


def standardise(model: RewardModel, root_samples: Sequence[Sample]) -> None:
    """Each head to mean 0 and deviation 1 on the root reference's replies: its parts first, so that their
    weights are in one unit, then what they make together. Stored with the heads."""
    heads = model.heads
    parts_BCK = model.parts(root_samples).to(heads.mean_K.device)
    if heads.dimensions:
        heads.part_mean_CK, heads.part_deviation_CK = _scale(parts_BCK)
    heads.mean_K, heads.deviation_K = _scale(heads.combined(parts_BCK))


def _scale(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the first axis."""
    return scores.mean(dim=0), scores.std(dim=0, correction=0).clamp(min=1e-6)


def report(
    model: RewardModel, data: RewardData, losses: Sequence[float], root_samples: Sequence[Sample]
) -> RewardReport:
    """Accuracy with intervals, calibration, and what the reward owes to length."""
    margin_B, p_B = pair_margins(model, data.heldout_pairs)
    reward_B = reward_margins(model, data.heldout_pairs) if model.heads.dimensions else margin_B
    right_B = (reward_B > 0) == (p_B > 0.5)
    decided_B = p_B != 0.5
    kinds = np.array([pair.kind for pair in data.heldout_pairs])
    accuracy = wilson(float(right_B[decided_B].sum()), int(decided_B.sum()))
    graded = grade_accuracy(model, data.heldout_grades)
    probability_B = 1.0 / (1.0 + np.exp(-margin_B))
    flip_B = np.arange(len(p_B)) % 2 == 1  # `chosen` is always the likelier one: show both sides
    probability_B, p_B = np.where(flip_B, 1 - probability_B, probability_B), np.where(flip_B, 1 - p_B, p_B)
    return RewardReport(
        pairs=int(decided_B.sum()),
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        grades=len(data.heldout_grades),
        grade_accuracy=graded.value,
        grade_accuracy_low=graded.low,
        grade_accuracy_high=graded.high,
        accuracy_by_kind={
            str(k): (float(right_B[(kinds == k) & decided_B].mean()), int(((kinds == k) & decided_B).sum()))
            for k in sorted(set(kinds[decided_B]))
        },
        accuracy_by_dimension={
            name: (*dimension_accuracy(model, data, name), len(_told_apart(data, name)))
            for name in model.heads.dimensions
        },
        dimension_weights=weights_of(model),
        calibration_error=calibration_error(probability_B, p_B),
        brier=brier(probability_B, p_B),
        length_correlation=length_correlation(model, root_samples) if root_samples else 0.0,
        disagreement=float(model.scores(root_samples).std(1, correction=0).mean()) if root_samples else 0.0,
        train_pairs=len(data.pairs),
        train_grades=len(data.grades),
        first_loss=losses[0],
        last_loss=float(np.mean(losses[-10:])),
    )


def pair_margins(model: RewardModel, pairs: Sequence[PairRow]) -> tuple[np.ndarray, np.ndarray]:
    """Mean raw margin over the heads and soft label of each pair."""
    if not pairs:
        return np.zeros(0), np.zeros(0)
    raw_BK = model.raw([s for pair in pairs for s in _samples(pair)])
    margin_B = (raw_BK[0::2] - raw_BK[1::2]).mean(dim=1).double().numpy()
    return margin_B, np.array([pair.p for pair in pairs])


def reward_margins(model: RewardModel, pairs: Sequence[PairRow]) -> np.ndarray:
    """margin_B of what PPO maximises, overall and dimensions together, mean over the heads; no log-odds."""
    if not (pairs and model.heads.dimensions):
        return pair_margins(model, pairs)[0]
    scores_BK = model.heads.combined(model.parts([s for pair in pairs for s in _samples(pair)]))
    return (scores_BK[0::2] - scores_BK[1::2]).mean(dim=1).double().numpy()


def weights_of(model: RewardModel) -> dict[str, float]:
    """What each dimension counts in the reward."""
    heads = model.heads
    return (
        dict(zip(heads.dimensions, heads.part_weight_C[1:].tolist(), strict=True)) if heads.dimensions else {}
    )


def _told_apart(data: RewardData, name: str) -> list[PairRow | GradeRow]:
    """Held-out rows that take a side on the dimension."""
    rows: list[PairRow | GradeRow] = [*data.heldout_pairs, *data.heldout_grades]
    return [row for row in rows if dict(row.dimensions).get(name, 0.5) != 0.5]


def dimension_accuracy(model: RewardModel, data: RewardData, name: str) -> Interval:
    """How often the dimension's own heads take the side of the held-out pairs and ratings that take one."""
    c = 1 + model.heads.dimensions.index(name)
    rows = _told_apart(data, name)
    if not rows:
        return wilson(0, 0)
    bias = float(model.heads.bias_CK[c].detach().mean())
    own_S = model.parts([s for row in rows for s in _samples(row)])[:, c].mean(dim=1).tolist()
    right = 0
    for row in rows:
        own = own_S.pop(0)
        lean = own - own_S.pop(0) if isinstance(row, PairRow) else own + bias
        right += (lean > 0) == (dict(row.dimensions)[name] > 0.5)
    return wilson(right, len(rows))


def grade_accuracy(model: RewardModel, grades: Sequence[GradeRow]) -> Interval:
    if not grades:
        return wilson(0, 0)
    raw_BK = model.raw([g.reply for g in grades])
    good_B = (raw_BK + model.heads.bias_K.detach().cpu()).mean(dim=1).numpy() > 0
    return wilson(float((good_B == np.array([g.p > 0.5 for g in grades])).sum()), len(grades))


def length_correlation(model: RewardModel, samples: Sequence[Sample]) -> float:
    """Correlation of reward and length, both centred per prompt; 0 where nothing varies."""
    scores_B = model(samples).double().numpy()
    lengths_B = np.array([float(len(s.ids)) for s in samples])
    for digest in {s.prompt.digest for s in samples}:
        own_B = np.array([s.prompt.digest == digest for s in samples])
        scores_B[own_B] -= scores_B[own_B].mean()
        lengths_B[own_B] -= lengths_B[own_B].mean()
    size = float(np.sqrt((scores_B**2).sum() * (lengths_B**2).sum()))
    return float((scores_B * lengths_B).sum()) / size if size > 0 else 0.0


def save(model: RewardModel, found: RewardReport, out_dir: Path) -> Path:
    """Adapter, heads and report to `out_dir`; `report.json` is written last, all by the main process."""
    if not is_main():
        return out_dir
    export_adapter(model.trunk, Role.REWARD, out_dir / "adapter")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.heads.state_dict().items()}
    said = {
        "uncertainty": repr(model.uncertainty),
        "pooling": model.heads.pooling,
        "dimensions": " ".join(model.heads.dimensions),
    }
    save_file(state, out_dir / "heads.safetensors", said)
    (out_dir / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return out_dir


def load(trunk: Trunk, reward_dir: Path, uncertainty: float) -> tuple[RewardModel, RewardReport]:
    """Raises: ModelError when the folder holds no reward model for this trunk."""
    try:
        state = load_file(reward_dir / "heads.safetensors")
        found = msgspec.json.decode((reward_dir / "report.json").read_bytes(), type=RewardReport)
        with safe_open(reward_dir / "heads.safetensors", "pt") as file:
            said = file.metadata() or {}
        pooling = msgspec.convert(said.get("pooling", "last"), Pooling)
        dimensions = said.get("dimensions", "").split()
        heads = RewardHeads(trunk.hidden_size, len(state["bias_K"]), 0, pooling, dimensions)
        heads.load_state_dict(state)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{reward_dir} holds no reward model for this base: {e}") from e
    load_adapter(trunk, Role.REWARD, reward_dir / "adapter")
    return RewardModel(trunk, heads.to(trunk.device), uncertainty), found

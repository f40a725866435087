"""Linear Bradley–Terry on n-grams of the replies: the baseline that any larger reward model has to beat.

    r(reply) = Σ_f w_f x_f      minimise over w: −Σ_pairs weight·[p log σ(Δ) + (1 − p) log σ(−Δ)] + ½λ‖w‖²

Convex, so the same pairs give the same scorer. Looks at replies only, never at the prompt.
Legend: B pairs, F columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from learner.errors import DataError, ModelError
from learner.measures import Floats
from learner.ngrams import Block, Rows, Space, learn_space
from learner.pair_files import FilePair

BAG_OF_WORDS: tuple[Block, ...] = ("words",)
N_GRAMS: tuple[Block, ...] = ("words", "word pairs", "characters")
PENALTIES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""λ to choose from, for differences of mean square length 1."""
FOLDS = 5
STEPS = 200
"""Of the optimizer, at most."""


@dataclass(frozen=True)
class TextScorer:
    space: Space
    weight_F: Floats
    """In log-odds: differences of scores are those of one reply being the better one."""
    penalty: float

    def scores(self, replies: Sequence[str]) -> Floats:
        return self.space.rows(replies).times(self.weight_F)

    def margins(self, pairs: Sequence[FilePair]) -> Floats:
        """Score of each pair's `chosen` less that of its `rejected`."""
        scores = self.scores(_replies(pairs))
        return scores[0::2] - scores[1::2]


@dataclass(frozen=True)
class Fitted:
    scorer: TextScorer
    out_of_fold_B: Floats
    """Margins of the training pairs, each from a fit that saw nothing of its conversation."""


def fit(
    pairs: Sequence[FilePair],
    blocks: tuple[Block, ...],
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Fitted:
    """The scorer under the λ whose cross-validated log loss is least; `on_step` after each one tried.

    Raises: DataError when no pair has weight and a preference.
    """
    p_B, weight_B = np.array([p.p for p in pairs]), np.array([p.weight for p in pairs])
    if not (weight_B * (p_B - 0.5)).any():
        raise DataError("no training pair says which reply is better (p above 0.5, weight above 0)")
    space = learn_space(_replies(pairs), blocks)
    rows = space.rows(_replies(pairs)).differences()
    scale = float(np.sqrt(max(len(pairs), 1) / max((rows.values_N**2).sum(), 1e-12)))
    rows = Rows(rows.rows_N, rows.columns_N, rows.values_N * scale, rows.count)
    fold_B = folds(pairs, seed)
    tried: dict[float, Floats] = {}
    for penalty in PENALTIES:
        tried[penalty] = _out_of_fold(rows, p_B, weight_B, fold_B, penalty)
        on_step(len(tried), len(PENALTIES))
    best = min(PENALTIES, key=lambda λ: (log_loss(tried[λ], p_B, weight_B), λ))
    weight_F = solve(rows, p_B, weight_B, best, len(space.rarity_F)) * scale
    return Fitted(TextScorer(space, weight_F, best), tried[best])


def folds(pairs: Sequence[FilePair], seed: int, count: int = FOLDS) -> NDArray[np.int64]:
    """fold_B: pairs of one conversation, or of one that begins with the same words, share a fold."""
    openings = sorted({pair.opening for pair in pairs})
    order = np.random.default_rng(seed).permutation(len(openings))
    fold = {opening: int(place) % count for opening, place in zip(openings, order, strict=True)}
    return np.array([fold[pair.opening] for pair in pairs])


def log_loss(margin_B: Floats, p_B: Floats, weight_B: Floats) -> float:
    """Mean cross-entropy of soft labels and margins, in nats."""
    each_B = p_B * np.logaddexp(0, -margin_B) + (1 - p_B) * np.logaddexp(0, margin_B)
    return float((weight_B * each_B).sum() / max(weight_B.sum(), 1e-12))


def save(scorer: TextScorer, path: Path) -> None:
    """Weights and rarities by hashed n-gram; no text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"rarity": scorer.space.rarity_F, "weight": scorer.weight_F}
    said = {"blocks": msgspec.json.encode(scorer.space.blocks).decode(), "penalty": repr(scorer.penalty)}
    save_file({name: x.astype(np.float32) for name, x in state.items()}, path, said)


def load(path: Path) -> TextScorer:
    """Raises: ModelError when the file holds no text scorer."""
    try:
        state = {name: x.astype(np.float64) for name, x in load_file(path).items()}
        with safe_open(path, "np") as file:
            said = file.metadata() or {}
        blocks = msgspec.json.decode(said["blocks"], type=tuple[Block, ...])
        return TextScorer(Space(blocks, state["rarity"]), state["weight"], float(said["penalty"]))
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise ModelError(f"{path} holds no text scorer: {e}") from e


def _replies(pairs: Sequence[FilePair]) -> list[str]:
    return [text for pair in pairs for text in (pair.chosen, pair.rejected)]


def _out_of_fold(
    rows: Rows, p_B: Floats, weight_B: Floats, fold_B: NDArray[np.int64], penalty: float
) -> Floats:
    margin_B = np.zeros(rows.count)
    columns = int(rows.columns_N.max(initial=0)) + 1
    for fold in range(int(fold_B.max()) + 1):
        seen_B = fold_B != fold
        weight_F = solve(rows.only(seen_B), p_B[seen_B], weight_B[seen_B], penalty, columns)
        margin_B[~seen_B] = rows.only(~seen_B).times(weight_F)
    return margin_B


def solve(rows: Rows, p_B: Floats, weight_B: Floats, penalty: float, columns: int) -> Floats:
    """weight_F of the least penalised loss, by L-BFGS over the columns that occur."""
    used, place_N = np.unique(rows.columns_N, return_inverse=True)
    rows = Rows(rows.rows_N, place_N, rows.values_N, rows.count)
    w = torch.zeros(len(used), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [w], max_iter=STEPS, tolerance_grad=1e-5, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        w_F = w.detach().numpy()
        margin_B = rows.times(w_F)
        slope_B = weight_B * (1 / (1 + np.exp(-margin_B)) - p_B)
        w.grad = torch.from_numpy(rows.transposed_times(slope_B, len(used)) + penalty * w_F)
        return log_loss(margin_B, p_B, weight_B) * float(weight_B.sum()) + 0.5 * penalty * float(w_F @ w_F)

    search.step(loss)  # type: ignore[no-untyped-call]
    weight_F = np.zeros(columns)
    weight_F[used] = w.detach().numpy()
    return weight_F

"""Soft labels and weights for trainers that know neither: rows repeated in proportion to them. Pure."""

from collections.abc import Sequence

import torch


def systematic(masses: Sequence[float], draws: int, seed: int) -> list[int]:
    """Indices drawn in proportion to `masses` with as little chance as can be, in shuffled order.

        c_i = ⌊n·M_i + u⌋ − ⌊n·M_{i−1} + u⌋        M_i = Σ_{j ≤ i} m_j / Σ m        u ~ U[0, 1)

    The expectation of each count is exactly n·m_i/Σm, and every run of neighbours is drawn within one of its
    own expectation: two halves that lie side by side share theirs.
    Args: masses ≥ 0, at least one above; draws = n.   Source: arXiv:cs/0507025 (systematic resampling).
    """
    generator = torch.Generator().manual_seed(seed)
    mass = torch.tensor(masses, dtype=torch.float64)
    first = torch.rand(1, generator=generator, dtype=torch.float64)
    upto = torch.floor(draws * mass.cumsum(0) / mass.sum() + first).long()
    upto[mass.nonzero()[-1, 0] :] = draws  # whatever rounding made of the last one
    drawn = torch.repeat_interleave(
        torch.arange(len(masses)), torch.diff(upto, prepend=torch.zeros(1).long())
    )
    return [int(i) for i in drawn[torch.randperm(len(drawn), generator=generator)]]


def halves(p: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Masses of the two hard rows that each soft one is: w·p as it stands at 2i, w·(1 − p) turned at 2i + 1.

    −w·[p·ℓ(Δ) + (1 − p)·ℓ(−Δ)]  =  w·p copies of ℓ(Δ)  and  w·(1 − p) copies of ℓ(−Δ)
    """
    return [mass for q, w in zip(p, weights, strict=True) for mass in (w * q, w * (1.0 - q))]

"""Replies as hashed n-grams: words, pairs of words and runs of characters. Knows no preference.

Hashing keeps the texts themselves out of every file that is written from here. Pure, NumPy only.
Legend: R replies, N nonzero entries, F columns.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.measures import Floats

Block = Literal["words", "word pairs", "characters"]

COLUMNS = 2**17
"""Per block; thousands of pairs have a few ten thousand n-grams, so few of them meet."""
RUN = 4
"""Characters in a run, within a word and the blanks around it."""
RARE = 2
"""N-grams of fewer replies than this are left out."""

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and signs."""
    return _TOKEN.findall(text.lower())


def word_pairs(text: str) -> list[str]:
    """Neighbouring words, the reply's start and end among them."""
    said = ["<", *words(text), ">"]
    return [f"{one} {other}" for one, other in pairwise(said)]


def characters(text: str) -> list[str]:
    """Runs of `RUN` characters within each word and the blanks around it."""
    spaced = (f" {word} " for word in text.lower().split())
    return [word[i : i + RUN] for word in spaced for i in range(max(1, len(word) - RUN + 1))]


GRAMS: dict[Block, Callable[[str], list[str]]] = {
    "words": words,
    "word pairs": word_pairs,
    "characters": characters,
}


@dataclass(frozen=True)
class Rows:
    """A sparse matrix of R rows: entry n is `values_N[n]` at (`rows_N[n]`, `columns_N[n]`)."""

    rows_N: NDArray[np.int64]
    columns_N: NDArray[np.int64]
    values_N: Floats
    count: int

    def times(self, weight_F: Floats) -> Floats:
        """The matrix times a column: one number per row."""
        product_R = np.bincount(self.rows_N, self.values_N * weight_F[self.columns_N], self.count)
        return product_R.astype(np.float64)

    def transposed_times(self, x_R: Floats, columns: int) -> Floats:
        """The transposed matrix times a column: one number per column."""
        product_F = np.bincount(self.columns_N, self.values_N * x_R[self.rows_N], columns)
        return product_F.astype(np.float64)

    def differences(self) -> "Rows":
        """Rows 0, 2, 4, … less rows 1, 3, 5, …: what tells the replies of each pair apart."""
        sign_N = np.where(self.rows_N % 2 == 0, 1.0, -1.0)
        return Rows(self.rows_N // 2, self.columns_N, self.values_N * sign_N, self.count // 2)

    def only(self, kept_R: NDArray[np.bool_]) -> "Rows":
        """The rows that are kept, renumbered."""
        place_R = np.cumsum(kept_R) - 1
        own_N = kept_R[self.rows_N]
        return Rows(
            place_R[self.rows_N[own_N]], self.columns_N[own_N], self.values_N[own_N], int(kept_R.sum())
        )


@dataclass(frozen=True)
class Space:
    """Which n-grams are looked at, and how much each counts: its rarity, log(replies / replies with it)."""

    blocks: tuple[Block, ...]
    rarity_F: Floats
    """`COLUMNS` for each block in turn; 0 for what was not seen, or seldom."""

    def rows(self, replies: Sequence[str]) -> Rows:
        """Each block of a reply has length 1/√blocks, whatever the reply's own length."""
        rows_N, columns_N = _entries(replies, self.blocks)
        values_N = self.rarity_F[columns_N]
        part_N = rows_N * len(self.blocks) + columns_N // COLUMNS
        squares = np.bincount(part_N, values_N**2, len(replies) * len(self.blocks))
        norm_N = np.sqrt(np.maximum(squares, 1e-12) * len(self.blocks))[part_N]
        return Rows(rows_N, columns_N, values_N / norm_N, len(replies))


def learn_space(replies: Sequence[str], blocks: tuple[Block, ...]) -> Space:
    """The n-grams of these replies, `RARE` ones left out."""
    _, columns_N = _entries(replies, blocks)
    seen_F = np.bincount(columns_N, minlength=COLUMNS * len(blocks))
    rarity_F = np.where(seen_F >= RARE, np.log(max(2, len(replies)) / np.maximum(seen_F, 1)), 0.0)
    return Space(blocks, rarity_F)


def _entries(
    replies: Sequence[str], blocks: tuple[Block, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of every n-gram, each once a reply, in order of row and column."""
    found = [(row, column) for row, text in enumerate(replies) for column in sorted(_columns(text, blocks))]
    rows_N, columns_N = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return rows_N, columns_N


def _columns(text: str, blocks: tuple[Block, ...]) -> set[int]:
    return {column for n, block in enumerate(blocks) for column in _hashed(GRAMS[block](text), n * COLUMNS)}


def _hashed(grams: Sequence[str], first: int) -> Iterator[int]:
    return (first + crc32(gram.encode()) % COLUMNS for gram in grams)

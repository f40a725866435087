"""Samples packed into shared rows, each prompt computed once for all its replies: the same states, cheaper.

A row holds several prompts, each followed by replies to it. Positions go on from the prompt's end in every
reply, and a token attends to its own reply and its own prompt only, so that each sample's hidden states are
those of a row of its own. A step's samples share their prompts, and pairs both sides: half the tokens remain.

Legend: P packed rows, M column of a packed row, B samples, L prompt and response token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from learner.batches import Prompt, Sample


class Packing(NamedTuple):
    """What the trunk computes in the place of a batch, and where the batch's tokens are in it."""

    ids_PM: Tensor
    positions_PM: Tensor
    mask_P1MM: Tensor
    """Whether the token in the row may attend to the one in the column."""
    place_BL: Tensor
    """Index of each token of the batch among the packed ones, row after row; padding points at the first."""


@dataclass
class _Piece:
    """A prompt and replies to it that stay together."""

    prompt: Prompt
    samples: list[int]
    length: int


@dataclass
class _Row:
    length: int = 0
    pieces: list[_Piece] = field(default_factory=list)


def pack(samples: Sequence[Sample], capacity: int) -> Packing:
    """Samples in rows of at most `capacity` tokens, or of the longest sample's length where that is more."""
    capacity = max(capacity, *(s.length for s in samples))
    rows = _rows(_pieces(samples, capacity), capacity)
    width = max(row.length for row in rows)
    ids_PM = torch.zeros(len(rows), width, dtype=torch.long)
    positions_PM, prompt_PM, reply_PM = ids_PM.clone(), ids_PM - 1, ids_PM.clone()
    place_BL = torch.zeros(len(samples), max(s.length for s in samples), dtype=torch.long)
    for p, row in enumerate(rows):
        at = 0
        for piece in row.pieces:
            begin, size = at, len(piece.prompt.ids)
            prompt_PM[p, begin : begin + piece.length] = begin
            ids_PM[p, begin : begin + size] = torch.tensor(piece.prompt.ids)
            positions_PM[p, begin : begin + size] = torch.arange(size)
            at += size
            for b in piece.samples:
                reply = samples[b].ids
                end = at + len(reply)
                ids_PM[p, at:end] = torch.tensor(reply)
                positions_PM[p, at:end] = torch.arange(size, size + len(reply))
                reply_PM[p, at:end] = at
                place_BL[b, :size] = torch.arange(p * width + begin, p * width + begin + size)
                place_BL[b, size : size + len(reply)] = torch.arange(p * width + at, p * width + end)
                at = end
    return Packing(ids_PM, positions_PM, _mask(prompt_PM, reply_PM), place_BL)


def _pieces(samples: Sequence[Sample], capacity: int) -> list[_Piece]:
    """Replies by prompt; a prompt with too many for one row comes again."""
    open_pieces: dict[Prompt, _Piece] = {}
    pieces: list[_Piece] = []
    for b, sample in enumerate(samples):
        piece = open_pieces.get(sample.prompt)
        if piece is None or piece.length + len(sample.ids) > capacity:
            piece = open_pieces[sample.prompt] = _Piece(sample.prompt, [], len(sample.prompt.ids))
            pieces.append(piece)
        piece.samples.append(b)
        piece.length += len(sample.ids)
    return pieces


def _rows(pieces: Sequence[_Piece], capacity: int) -> list[_Row]:
    """First fit, the longest first."""
    rows: list[_Row] = []
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        row = next((r for r in rows if r.length + piece.length <= capacity), None)
        if row is None:
            row = _Row()
            rows.append(row)
        row.pieces.append(piece)
        row.length += piece.length
    return rows


def _mask(prompt_PM: Tensor, reply_PM: Tensor) -> Tensor:
    """mask_P1MM: nothing ahead, and of the same prompt's tokens the prompt's own and the same reply's."""
    column_M = torch.arange(prompt_PM.shape[1])
    behind_MM = column_M[:, None] >= column_M[None, :]
    same_prompt_PMM = prompt_PM[:, :, None] == prompt_PM[:, None, :]
    visible_PMM = (reply_PM[:, None, :] == 0) | (reply_PM[:, :, None] == reply_PM[:, None, :])
    mask_PMM = behind_MM & same_prompt_PMM & visible_PMM
    return mask_PMM[:, None]

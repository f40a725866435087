"""How far the reward ensemble disagrees about pairs in the review queue: people are asked about those first.

Legend: B pairs, K heads.
"""

import sqlalchemy as sa
import torch
from torch import Tensor

from feedback import database, review_queue, store
from learner.batches import Encoder, Sample
from learner.distributed import is_main
from learner.train_reward import RewardModel


def record(model: RewardModel, encoder: Encoder, state: sa.Engine, run: str) -> int:
    """Score the pairs that wait, in the place of what earlier runs said of theirs; returns how many.

    Raises: StateUnavailable, DataError.
    """
    waiting = review_queue.unanswered(state)
    samples: list[Sample] = []
    for _, one, other in waiting:
        prompt = encoder.prompt(one.digest, one.prompt)
        samples += [encoder.reply(prompt, one.reply), encoder.reply(prompt, other.reply)]
    found_B = between_heads(model.raw(samples)).tolist() if samples else []
    names = [item_id for item_id, _, _ in waiting]
    if not is_main():
        return len(names)
    with database.writing(state) as tx:
        store.replace_disagreements(tx, run, dict(zip(names, found_B, strict=True)))
    return len(names)


def between_heads(scores_2BK: Tensor) -> Tensor:
    """disagreement_B, 0..1: twice the deviation between heads of P(the first reply is better).

    0 where all heads say the same, 1 where half are sure of the one reply and half of the other.
    Args: scores_2BK, raw; the two replies of a pair one after the other. Source: arXiv:1706.03741, 2.2.4.
    """
    first_BK = torch.sigmoid(scores_2BK[0::2] - scores_2BK[1::2])
    return 2.0 * first_BK.std(dim=1, correction=0)

"""Which tokens share a row, and what each of them sees; every number worked out by hand."""

import pytest

from learner.batches import Prompt, Sample
from learner.packing import pack

P, Q = Prompt("p", (1, 2)), Prompt("q", (3,))
SAMPLES = [Sample(P, (10, 11)), Sample(Q, (12,)), Sample(P, (13,))]


def test_a_prompt_is_there_once_and_every_reply_goes_on_from_its_end() -> None:
    """One row: prompt p, its two replies, prompt q, its reply."""
    packed = pack(SAMPLES, capacity=7)
    assert packed.ids_PM.tolist() == [[1, 2, 10, 11, 13, 3, 12]]
    assert packed.positions_PM.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert packed.place_BL.tolist() == [[0, 1, 2, 3], [5, 6, 0, 0], [0, 1, 4, 0]]


def test_a_token_sees_its_prompt_and_its_own_reply_up_to_itself() -> None:
    """Rows look at columns: 13 sees p but not 10 and 11; q sees nothing of p."""
    assert pack(SAMPLES, capacity=7).mask_P1MM[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_what_does_not_fit_begins_another_row_with_its_prompt() -> None:
    """Four tokens a row: p and its first reply; p again and the second, where there is no room for q."""
    packed = pack(SAMPLES, capacity=4)
    assert packed.ids_PM.tolist() == [[1, 2, 10, 11], [1, 2, 13, 0], [3, 12, 0, 0]]
    assert packed.place_BL.tolist() == [[0, 1, 2, 3], [8, 9, 0, 0], [4, 5, 6, 0]]
    assert packed.mask_P1MM[:, 0].diagonal(dim1=1, dim2=2).all()  # padding sees itself: no row is empty


@pytest.mark.parametrize("capacity", [1, 3])
def test_the_longest_sample_always_fits(capacity: int) -> None:
    """A capacity below it is raised to it."""
    assert pack(SAMPLES, capacity).ids_PM.shape == (3, 4)

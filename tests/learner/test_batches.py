"""Batches, encoders, pair files: masks from lengths, ids as engines render them, holes refused by name."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner import pair_files
from learner.batches import (
    GradeRow,
    PairRow,
    Prompt,
    Sample,
    collate,
    length_mask,
    micro_batches,
    padded,
    prompt_weights,
    response_mask,
)
from learner.errors import DataError
from learner.models import Trunk


def sample(prompt: str, *ids: int) -> Sample:
    return Sample(Prompt(prompt, (1, 2)), ids)


def test_collate_pads_on_the_right_and_keeps_lengths() -> None:
    batch = collate([Sample(Prompt("a", (1, 2, 3)), (4,)), Sample(Prompt("b", (5,)), (0, 0))], pad_id=0)
    assert batch.ids_BL.tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert batch.prompt_B.tolist() == [3, 1]
    assert batch.response_B.tolist() == [1, 2]


def test_masks_come_from_lengths_not_from_pad_ids() -> None:
    """A sampled 0 is a token; a padded 0 is not."""
    assert response_mask([sample("a", 0, 0), sample("b", 0)]).tolist() == [[True, True], [True, False]]
    assert length_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]


def test_padded_rows() -> None:
    assert padded([[1.0], [2.0, 3.0]]).tolist() == [[1.0, 0.0], [2.0, 3.0]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_micro_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int) -> None:
    """Every row once; rows × longest row within the budget unless one row alone exceeds it."""
    groups = micro_batches(lengths, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= budget for g in groups)


def test_a_prompt_weighs_at_most_one() -> None:
    """Three rows of weight 1 share 1; a lone row of weight 0.2 keeps it; twice a row is weight two of it."""
    rows = [GradeRow(sample("a", 3), 1.0), GradeRow(sample("a", 4), 1.0), GradeRow(sample("a", 5), 0.0)]
    assert prompt_weights([*rows, GradeRow(sample("b", 3), 0.9, 0.2)]) == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 0.2]
    )
    pairs = [PairRow(sample("a", 3), sample("a", 4), 1.0, w) for w in (3.0, 1.0)]
    assert prompt_weights(pairs) == [0.75, 0.25]


def test_a_reply_as_text_ends_like_a_sampled_one(trunk: Trunk) -> None:
    """Prompt by the chat template with the generation prompt; reply tokens; the end-of-text id."""
    encoder = trunk.encoder
    prompt = encoder.prompt("d", [{"role": "user", "content": "Hi"}])
    reply = encoder.reply(prompt, "Yes.")
    whole = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}], tokenize=False
    )
    assert encoder.tokenizer.decode([*prompt.ids, *reply.ids]) == whole
    assert reply.ids[-1] == encoder.eos_ids[0]
    assert encoder.text(reply) == "Yes."


def test_a_long_prompt_loses_its_beginning(trunk: Trunk) -> None:
    """The end of a dialogue says what is asked; prompt and reply together stay within the limit of 256."""
    prompt = trunk.encoder.prompt("d", [{"role": "user", "content": "x" * 400 + "end"}])
    reply = trunk.encoder.reply(prompt, "ok")
    assert reply.length == 256
    assert trunk.encoder.tokenizer.decode(list(reply.prompt.ids)).startswith("x")
    assert reply.prompt.ids == prompt.ids[-len(reply.prompt.ids) :]


GOOD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "chosen": "Hello!",
    "rejected": "What?",
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


def test_pairs_are_read_from_json_lines_gzip_and_parquet(tmp_path: Path) -> None:
    """The same rows in three formats, replies as text or as TRL's messages, give the same pairs."""
    plain = write(tmp_path / "a.jsonl", GOOD, "", {**GOOD, "p": 0.8, "weight": 2.0, "split": "heldout"})
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    trl = [
        {
            "prompt": GOOD["messages"],
            "chosen": [{"role": "assistant", "content": "Hello!"}],
            "rejected": [{"role": "assistant", "content": "What?"}],
            "p": p,
            "weight": w,
            "split": s,
        }
        for p, w, s in [(None, None, None), (0.8, 2.0, "heldout")]
    ]
    pq.write_table(pa.Table.from_pylist(trl), tmp_path / "a.parquet")
    found = pair_files.read(plain)
    assert [p.p for p in found] == [1.0, 0.8]
    assert [p.weight for p in found] == [1.0, 2.0]
    assert found[1].heldout
    assert pair_files.read(zipped) == found
    assert pair_files.read(tmp_path / "a.parquet") == found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "rejected": None}, r"line 2, column 'rejected': missing"),
        ({**GOOD, "messages": []}, r"line 2, column 'messages': missing or empty"),
        ({**GOOD, "messages": [{"role": "user"}]}, r"line 2, column 'messages': a message needs"),
        ({k: v for k, v in GOOD.items() if k != "messages"}, r"line 2, column 'prompt': missing"),
        ({**GOOD, "p": 0.2}, r"line 2, column 'p': 0.2 is no number from 0.5 to 1"),
        ({**GOOD, "weight": "much"}, r"line 2, column 'weight'"),
        ({**GOOD, "weight": float("nan")}, r"line 2, column 'weight': nan"),
        ({**GOOD, "split": "test"}, r"line 2, column 'split': 'test'"),
        ([1], r"line 2: a pair is an object"),
        ("{oops", r"line 2: no JSON"),
    ],
)
def test_a_hole_is_refused_with_its_line_and_column(tmp_path: Path, row: Any, message: str) -> None:
    """Whoever made the file can go straight to the fault."""
    with pytest.raises(DataError, match=message):
        pair_files.read(write(tmp_path / "a.jsonl", GOOD, row))


def test_a_line_is_counted_as_an_editor_counts_it(tmp_path: Path) -> None:
    """Empty lines are skipped, and counted."""
    with pytest.raises(DataError, match=r"line 3, column 'chosen'"):
        pair_files.read(write(tmp_path / "a.jsonl", GOOD, "", {**GOOD, "chosen": 1}))


def test_stages_of_one_conversation_are_held_out_together(tmp_path: Path) -> None:
    """A later stage repeats the earlier ones: told apart, training would have seen held-out words."""
    stages = [
        [{"role": "user", "content": f"{i}"}, *([{"role": "assistant", "content": "a"}] * n)]
        for i in range(50)
        for n in range(3)
    ]
    found = pair_files.read(write(tmp_path / "a.jsonl", *({**GOOD, "messages": m} for m in stages)))
    heldout = {pair.opening for pair in found if pair.heldout}
    assert heldout and heldout.isdisjoint(pair.opening for pair in found if not pair.heldout)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.jsonl", None),
        ("bad.parquet", b"PAR1nothing"),
        ("bad.jsonl.gz", b"x"),
        ("cut.jsonl.gz", gzip.compress(b"\n" * 99, mtime=0)[:-9]),
    ],
)
def test_an_unreadable_file_is_a_data_error(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        pair_files.read(tmp_path / name)


def test_an_empty_file_holds_no_pair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pair"):
        pair_files.read(write(tmp_path / "a.jsonl"))


def test_the_heldout_split_follows_from_how_a_conversation_begins(tmp_path: Path) -> None:
    """About a fifth, the same in every file that has the conversation."""
    rows = [{**GOOD, "messages": [{"role": "user", "content": str(i)}]} for i in range(300)]
    whole = pair_files.read(write(tmp_path / "a.jsonl", *rows))
    half = pair_files.read(write(tmp_path / "b.jsonl", *rows[150:]))
    assert [p.heldout for p in whole[150:]] == [p.heldout for p in half]
    assert 40 <= sum(p.heldout for p in whole) <= 80

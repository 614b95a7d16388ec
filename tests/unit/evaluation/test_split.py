"""One split over several students: the share of each must not show in the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from tiny_encoders import ragged_batch, take_rows
from torch import Tensor

from distill_dist.evaluation.metrics import task_summed, values_of
from distill_dist.evaluation.saliency import correlations
from distill_dist.evaluation.split import SplitScorer, loyalty
from distill_dist.records import Batch, SignalSpec, TeacherSignal

LENGTHS = (9, 3, 7, 12, 5, 8, 4)
WHOLE = ragged_batch(LENGTHS)
FORMS = ("sl_pearson_norm", "sl_spearman_norm", "sl_pearson_dot", "sl_spearman_dot")
LABELS = WHOLE.labels_B.numpy().astype(np.int32)


class Known:
    """A model whose answer for a row is a function of the row's number."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits_NC = torch.randn(len(LENGTHS), 3, generator=generator)
        self.norms_NL = torch.rand(len(LENGTHS), max(LENGTHS), generator=generator)
        self.units_NLH = torch.randn(len(LENGTHS), max(LENGTHS), 4, generator=generator)
        self.embedding_NLH = torch.randn(len(LENGTHS), max(LENGTHS), 4, generator=generator)
        self.asked: list[SignalSpec] = []
        self.answered = 0

    def signals(
        self,
        items: Sequence[Batch],
        batches_of: Callable[[Batch], Sequence[Batch]],
        spec: SignalSpec,
        *,
        ahead: int,
    ) -> Iterator[tuple[Batch, tuple[TeacherSignal, ...]]]:
        self.asked.append(spec)
        for item in items:
            yield item, tuple(self._answer(batch, spec) for batch in batches_of(item))

    def embed(self, batch: Batch) -> Tensor:
        return self.embedding_NLH[batch.ids_B, : batch.input_ids_BL.shape[1]]

    def _answer(self, batch: Batch, spec: SignalSpec) -> TeacherSignal:
        self.answered += 1
        width = batch.input_ids_BL.shape[1]
        if not spec.embedding_gradient:
            return TeacherSignal(self.logits_NC[batch.ids_B])
        return TeacherSignal(
            self.logits_NC[batch.ids_B],
            embedding_gradient_BLVH=self.units_NLH[batch.ids_B, :width, None],
            embedding_gradient_norm_BLV=self.norms_NL[batch.ids_B, :width, None],
        )


SHARES = {
    1: [[[0, 1, 2], [3, 4], [5, 6]]],
    2: [[[0, 2], [4, 6]], [[1, 3, 5]]],
    3: [[[6, 0]], [[5, 1, 3], [2, 4]], []],  # more students than batches
}


# Some ranks run fillers, so that all run as many batches; -1 - row stands for a filler copy of a row.
FILLED = [[[0, 2], [-4]], [[1, 3, 5], [4, 6]], [[-4], [-4]]]


def on_every_rank(shares: list[list[list[int]]], use: Callable[[SplitScorer], Any]) -> list[Any]:
    """``use(scorer)`` on every rank, twice: what the others add is known after the first round."""
    sums: list[list[Tensor]] = []
    for share in shares:
        sent: list[Tensor] = []

        def record(tensor: Tensor, sent: list[Tensor] = sent) -> Tensor:
            sent.append(tensor.clone())
            return tensor

        use(scorer(share, record))
        sums.append(sent)
    return [use(scorer(share, _adder(sums))) for share in shares]


def _adder(sums: list[list[Tensor]]) -> Callable[[Tensor], Tensor]:
    calls = iter(range(len(sums[0])))

    def add(tensor: Tensor) -> Tensor:
        call = next(calls)
        return tensor.copy_(torch.stack([sent[call] for sent in sums]).sum(dim=0))

    return add


def scorer(share: list[list[int]], sum_: Callable[[Tensor], Tensor]) -> SplitScorer:
    return SplitScorer(
        labels_N=LABELS,
        batches=tuple(batch_of(rows) for rows in share),
        num_classes=3,
        metric="matthews",
        sum_=sum_,
        device=torch.device("cpu"),
        ahead=2,
    )


def batch_of(rows: list[int]) -> Batch:
    if rows[0] >= 0:
        return take_rows(WHOLE, rows)
    return replace(take_rows(WHOLE, [-1 - rows[0]]), is_real_B=torch.zeros(1, dtype=torch.bool))


@pytest.mark.parametrize("students", SHARES)
def test_logits_of_the_whole_split_in_row_order_on_every_rank(students: int) -> None:
    model = Known(0)
    for found in on_every_rank(SHARES[students], lambda s: s.logits_NC(model)):
        assert np.array_equal(found, model.logits_NC.double().numpy())
    assert set(model.asked) == {SignalSpec()}  # logits alone: no backward for a score


@pytest.mark.parametrize("students", SHARES)
def test_metrics_are_those_of_the_whole_split(students: int) -> None:
    model = Known(0)
    expected = values_of(task_summed(model.logits_NC.numpy(), LABELS, metric="matthews"))
    assert expected.keys() == {"accuracy", "loss", "ece", "matthews"}
    assert 0 < expected["accuracy"] < 1
    for found in on_every_rank(SHARES[students], lambda s: s.metrics(s.logits_NC(model))):
        assert found == pytest.approx(expected, rel=1e-12)


def test_the_share_of_the_most_frequent_class() -> None:
    whole = scorer(SHARES[1][0], lambda tensor: tensor)
    assert replace(whole, labels_N=np.array([2, 0, 2, 1], np.int32)).most_frequent_share == 0.5
    same = np.tile([0.0, 1.0, 0.0], (len(LABELS), 1))
    always_one = replace(whole, labels_N=np.ones(len(LABELS), np.int32), metric="accuracy")
    assert always_one.metrics(same)["accuracy"] == always_one.most_frequent_share == 1.0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_the_tasks_own_metric_is_among_them(metric: str) -> None:
    """The best epoch is chosen by it."""
    whole = replace(scorer(SHARES[1][0], lambda tensor: tensor), metric=metric)
    assert metric in whole.metrics(Known(0).logits_NC.double().numpy())


@pytest.mark.parametrize("students", SHARES)
def test_saliency_loyalty_is_the_mean_over_all_rows(students: int) -> None:
    student, teacher = Known(0), Known(1)
    mask_NL = WHOLE.attention_mask_BL.bool().numpy()
    per_row = correlations(student.norms_NL.numpy(), teacher.norms_NL.numpy(), mask_NL, of="norm")
    per_row = per_row["sl_spearman_norm"]
    assert not np.isnan(per_row).any()
    for found in on_every_rank(SHARES[students], lambda s: s.saliency_loyalty(student, teacher)):
        assert found == pytest.approx(sum(per_row) / len(per_row), rel=1e-12)


@pytest.mark.parametrize("shares", [*SHARES.values(), FILLED], ids=["1", "2", "3", "filled"])
def test_saliency_of_every_row_in_four_forms(shares: list[list[list[int]]]) -> None:
    """Row by row against scipy, whoever computed the row; one has no order and is no number."""
    student, teacher = Known(0), Known(1)
    teacher.norms_NL[4] = 1.0
    teacher.units_NLH[4] = teacher.embedding_NLH[4] = 1.0
    expected = {name: np.full(len(LENGTHS), np.nan) for name in FORMS}
    for row, length in enumerate(LENGTHS):
        saliency = {
            "norm": [model.norms_NL[row, :length].numpy() for model in (student, teacher)],
            "dot": [
                (model.norms_NL * (model.units_NLH * model.embedding_NLH).sum(-1))[row, :length].numpy()
                for model in (student, teacher)
            ],
        }
        for name in FORMS:
            _, kind, of = name.split("_")
            if row != 4:
                expected[name][row] = {"pearson": pearsonr, "spearman": spearmanr}[kind](
                    *saliency[of]
                ).statistic
    for found in on_every_rank(
        shares, lambda s: s.saliency_rows(student, teacher, embeds=(student.embed, teacher.embed))
    ):
        assert found.keys() == set(FORMS)
        for name, values in expected.items():
            # norms and products are fp32 numbers, correlations of them float64
            np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    assert not np.allclose(expected["sl_spearman_norm"], expected["sl_spearman_dot"], equal_nan=True)


def test_saliency_loyalty_of_nothing_is_not_a_number() -> None:
    """No row with an order of tokens: there is no mean, and 0 would be a claim."""
    student = Known(0)
    student.norms_NL.fill_(1.0)
    assert math.isnan(scorer(SHARES[1][0], lambda tensor: tensor).saliency_loyalty(student, Known(1)))


def test_fillers_count_for_nothing() -> None:
    """Row 3 is real on one rank and stands for nothing on two others: every number as without fillers."""
    shares = [share for rank in FILLED for share in rank]
    assert len({len(rank) for rank in FILLED}) == 1
    assert sorted(row for rows in shares for row in rows if row >= 0) == list(range(len(LENGTHS)))
    student, teacher = Known(0), Known(1)
    whole, filled = (on_every_rank(layout, use_both(student, teacher)) for layout in (SHARES[1], FILLED))
    assert len(filled) == 3
    for logits_NC, saliency in filled:
        assert np.array_equal(logits_NC, student.logits_NC.double().numpy())
        assert saliency == pytest.approx(whole[0][1], rel=1e-12)


def use_both(student: Known, teacher: Known) -> Callable[[SplitScorer], tuple[Any, float]]:
    return lambda scorer: (scorer.logits_NC(student), scorer.saliency_loyalty(student, teacher))


def test_a_rank_of_fillers_alone_asks_as_often_and_adds_zeros() -> None:
    model, sent = Known(0), []

    def record(tensor: Tensor) -> Tensor:
        sent.append(tensor.clone())
        return tensor

    alone = scorer(FILLED[2], record)
    alone.logits_NC(model)
    assert math.isnan(alone.saliency_loyalty(model, Known(1)))
    assert model.answered == 4
    assert all((tensor == 0).all() for tensor in sent)


def test_loyalty_names() -> None:
    z = Known(0).logits_NC.double().numpy()
    assert loyalty(z, z) == {"ll": 1.0, "pl": pytest.approx(1.0, abs=1e-7)}
    assert loyalty(z, -z)["ll"] < 1.0

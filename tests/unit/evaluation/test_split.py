"""One split over several students: the share of each must not show in the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import ragged_batch, take_rows
from torch import Tensor

from distill_dist.evaluation.metrics import task_metrics
from distill_dist.evaluation.saliency import spearman_per_row
from distill_dist.evaluation.split import SplitScorer, loyalty
from distill_dist.records import Batch, SignalSpec, TeacherSignal

LENGTHS = (9, 3, 7, 12, 5, 8, 4)
WHOLE = ragged_batch(LENGTHS)
LABELS = WHOLE.labels_B.numpy().astype(np.int32)


class Known:
    """A model whose answer for a row is a function of the row's number."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits_NC = torch.randn(len(LENGTHS), 3, generator=generator)
        self.norms_NL = torch.rand(len(LENGTHS), max(LENGTHS), generator=generator)
        self.asked: list[SignalSpec] = []

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

    def _answer(self, batch: Batch, spec: SignalSpec) -> TeacherSignal:
        width = batch.input_ids_BL.shape[1]
        norms = self.norms_NL[batch.ids_B, :width] if spec.embedding_gradient else None
        return TeacherSignal(self.logits_NC[batch.ids_B], embedding_gradient_norm_BL=norms)


SHARES = {
    1: [[[0, 1, 2], [3, 4], [5, 6]]],
    2: [[[0, 2], [4, 6]], [[1, 3, 5]]],
    3: [[[6, 0]], [[5, 1, 3], [2, 4]], []],  # more students than batches
}


def on_every_rank(students: int, use: Callable[[SplitScorer], Any]) -> list[Any]:
    """``use(scorer)`` on every rank, twice: what the others add is known after the first round."""
    sums: list[list[Tensor]] = []
    for rank in range(students):
        sent: list[Tensor] = []

        def record(tensor: Tensor, sent: list[Tensor] = sent) -> Tensor:
            sent.append(tensor.clone())
            return tensor

        use(scorer(SHARES[students][rank], record))
        sums.append(sent)
    return [use(scorer(share, _adder(sums))) for share in SHARES[students]]


def _adder(sums: list[list[Tensor]]) -> Callable[[Tensor], Tensor]:
    calls = iter(range(len(sums[0])))

    def add(tensor: Tensor) -> Tensor:
        call = next(calls)
        return tensor.copy_(torch.stack([sent[call] for sent in sums]).sum(dim=0))

    return add


def scorer(share: list[list[int]], sum_: Callable[[Tensor], Tensor]) -> SplitScorer:
    return SplitScorer(
        labels_N=LABELS,
        batches=tuple(take_rows(WHOLE, rows) for rows in share),
        num_classes=3,
        with_f1=False,
        sum_=sum_,
        device=torch.device("cpu"),
        ahead=2,
    )


@pytest.mark.parametrize("students", SHARES)
def test_logits_of_the_whole_split_in_row_order_on_every_rank(students: int) -> None:
    model = Known(0)
    for found in on_every_rank(students, lambda s: s.logits_NC(model)):
        assert np.array_equal(found, model.logits_NC.double().numpy())
    assert set(model.asked) == {SignalSpec()}  # logits alone: no backward for a score


@pytest.mark.parametrize("students", SHARES)
def test_metrics_are_those_of_the_whole_split(students: int) -> None:
    model = Known(0)
    expected = task_metrics(model.logits_NC.numpy(), LABELS, with_f1=False)
    assert 0 < expected["accuracy"] < 1
    for found in on_every_rank(students, lambda s: s.metrics(s.logits_NC(model))):
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("students", SHARES)
def test_saliency_loyalty_is_the_mean_over_all_rows(students: int) -> None:
    student, teacher = Known(0), Known(1)
    per_row = spearman_per_row(student.norms_NL, teacher.norms_NL, WHOLE.attention_mask_BL)
    assert len(per_row) == len(LENGTHS)
    for found in on_every_rank(students, lambda s: s.saliency_loyalty(student, teacher)):
        assert found == pytest.approx(sum(per_row) / len(per_row), rel=1e-12)


def test_saliency_loyalty_of_nothing_is_not_a_number() -> None:
    """No row with an order of tokens: there is no mean, and 0 would be a claim."""
    student = Known(0)
    student.norms_NL.fill_(1.0)
    assert math.isnan(scorer(SHARES[1][0], lambda tensor: tensor).saliency_loyalty(student, Known(1)))


def test_loyalty_names() -> None:
    z = Known(0).logits_NC.double().numpy()
    assert loyalty(z, z) == {"ll": 1.0, "pl": pytest.approx(1.0, abs=1e-7)}
    assert loyalty(z, -z)["ll"] < 1.0

"""The benchmark of the gradient routes on a student of milliseconds: its figures mean what they say."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from distill_dist.bench.distillation_cases import Case, Setting, Shape, make_setting
from distill_dist.bench.gradients import (
    BASELINE,
    ROUTES,
    WAYS,
    measure_gradients,
    relative_errors,
    saved_bytes,
    student_step,
    table,
)
from distill_dist.bench.saved_bytes import SavedBytes
from distill_dist.bench.sst2_lengths import ROWS_OF_LENGTH, SHORTEST, batch_lengths

TINY = Shape(
    4, 2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=1100, batch=9, rounds=2
)
ALIGNED_WAYS = {"double_backward", "double_backward_math", "central_difference", "central_difference_batched"}


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting(TINY, device=torch.device("cpu"), count=3, seed=0)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    said: list[str] = []
    result = measure_gradients({"tiny": TINY}, device="cpu", rounds=None, progress=said.append)
    assert said[-1].startswith("tiny: ")
    return result


def test_the_result_has_the_promised_keys(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(ROUTES) == ALIGNED_WAYS
    tiny = found["shapes"]["tiny"]
    for key in ("gkd_cls_over_kd", "memory_over_kd"):
        assert found[key] == tiny[key]
        assert set(found[key]) == ALIGNED_WAYS | {"alignment_off"}
        assert all(value > 0 for value in found[key].values())
    assert set(found["relative_error"]) == set(tiny["relative_error_aligned"]) == ALIGNED_WAYS
    assert found["threads"] == torch.get_num_threads()
    assert {"device", "clock", "versions", "shape"} <= found.keys()
    assert len(tiny["tokens_per_batch"]) == TINY.rounds  # rounds=None: as the shape says
    low, high = tiny["quartiles"]["double_backward"]
    assert 0 < low <= tiny["gkd_cls_over_kd"]["double_backward"] <= high


def test_the_table_names_every_way(found: dict[str, Any]) -> None:
    text = table(found)
    assert all(way in text for way in WAYS if way != BASELINE)
    assert "bar" not in text  # the bars are the MiniLM student's


def test_double_backward_is_exact_and_a_difference_is_close(setting: Setting) -> None:
    steps = {way: student_step(setting, WAYS[way]) for way in ROUTES}
    errors = relative_errors(steps, setting.cases[1].first(4))
    for way in ("double_backward", "double_backward_math"):
        assert max(errors[way]) < 1e-4  # fp32 rounds at 6e-8
    for way in ("central_difference", "central_difference_batched"):
        # O(step²) at the default step of 5e-3, times a curvature of the order of 100; and not exact.
        assert 1e-7 < errors[way][1] < 5e-3


def test_a_wrong_gradient_is_seen(setting: Setting) -> None:
    """A step of 1 leaves the neighbourhood: the error is of the aligned terms' own size."""
    good = student_step(setting, WAYS["central_difference"])
    far = replace(good, route=replace(good.route, step=1.0))
    errors = relative_errors({"central_difference": far}, setting.cases[1])["central_difference"]
    assert min(errors) > 0.01
    assert (
        errors[1]
        > 100 * relative_errors({"central_difference": good}, setting.cases[1])["central_difference"][1]
    )


def test_saved_bytes_counts_a_known_graph_exactly() -> None:
    weight = torch.ones(5, 7, requires_grad=True)
    x = torch.ones(3, 5, requires_grad=True)
    with SavedBytes([weight]) as saved:
        product = x @ weight  # keeps x and the excluded weight
        assert saved.live == x.numel() * 4
        root = product.exp()  # keeps its result
        square = root * root  # the same storage twice more
        assert saved.live == saved.peak == (x.numel() + root.numel()) * 4
        square.sum().backward()  # type: ignore[no-untyped-call]
        del product, root, square
        assert saved.live == 0
        (x.detach().requires_grad_() * 2.0).sum()  # a constant factor needs nothing
        assert saved.peak == (15 + 21) * 4
    y = torch.ones(1000, requires_grad=True).exp()
    assert y.requires_grad
    assert saved.peak == (15 + 21) * 4  # outside the block nothing counts


def test_saved_bytes_counts_what_is_held_at_one_time() -> None:
    x = torch.ones(100, requires_grad=True)
    with SavedBytes() as saved:
        for _ in range(3):
            x.exp().sum().backward()  # type: ignore[no-untyped-call]
        one = saved.peak
        both = x.exp().sum() + x.sin().sum()
    assert one == 400
    assert saved.peak == 800  # exp's result; sin keeps x
    del both
    assert saved.live == 0


def test_saved_bytes_differentiates_twice() -> None:
    x = torch.full((4,), 2.0, requires_grad=True)
    with SavedBytes():
        (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert curvature.tolist() == [12.0] * 4


def test_more_is_kept_where_more_is_differentiated(setting: Setting) -> None:
    saved = {way: saved_bytes(student_step(setting, WAYS[way]), WAYS[way], setting.cases[1]) for way in WAYS}
    assert saved["double_backward"] > 1.5 * saved[BASELINE]
    assert saved["central_difference"] > 2 * saved[BASELINE]  # x, x + εv and x − εv


def test_every_way_is_the_step_that_it_is_called(setting: Setting) -> None:
    names = {way: set(student_step(setting, WAYS[way]).objective.weights) for way in WAYS}
    assert names[BASELINE] == {"cross_entropy", "distillation"}
    assert names["alignment_off"] == {*names[BASELINE], "patience"}
    for way in ROUTES:
        assert names[way] == {*names["alignment_off"], "gradient_embedding", "gradient_cls"}
    assert not student_step(setting, WAYS["central_difference_batched"]).route.keeps_graph


def test_the_student_is_cut_from_its_teacher_and_frozen_where_it_should_be(setting: Setting) -> None:
    frozen = [name for name, p in setting.student.model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(".embeddings." in name for name in frozen)
    assert setting.student.model.training
    assert all(module.p == 0 for module in setting.student.model.modules() if hasattr(module, "p"))
    assert setting.objective.teacher_layers == (2,)


def test_the_first_rows_of_a_case_keep_their_signal(setting: Setting) -> None:
    case: Case = setting.cases[2]
    cut = case.first(4)
    assert len(cut.batch.labels_B) == cut.counts.sequences == 4
    assert cut.counts.tokens == int(case.batch.attention_mask_BL[:4].sum())
    for field in fields(case.signal):
        whole, part = getattr(case.signal, field.name), getattr(cut.signal, field.name)
        assert (whole is None) == (part is None)
        assert whole is None or torch.equal(part, whole[:4])


def test_batches_are_as_long_as_sst2s() -> None:
    lengths = batch_lengths(64, rows=32, seed=0)
    assert sum(ROWS_OF_LENGTH) == 67_349
    mean = float(np.dot(np.arange(len(ROWS_OF_LENGTH)) + SHORTEST, ROWS_OF_LENGTH)) / sum(ROWS_OF_LENGTH)
    assert mean == pytest.approx(13.32, abs=0.005)
    drawn = np.concatenate(lengths)
    # 2,048 draws of standard deviation 9.3: the mean's is 0.2
    assert drawn.mean() == pytest.approx(mean, abs=0.8)
    sums = [int(lengths_B.sum()) for lengths_B in lengths]
    assert sums == sorted(sums)
    widest = np.array([lengths_B.max() for lengths_B in lengths])
    assert drawn.sum() / (widest * 32).sum() > 0.95  # grouped by length, as the loader does
    few = np.concatenate(batch_lengths(4, rows=32, seed=0))
    assert few.mean() == pytest.approx(drawn.mean(), rel=0.15)
    assert not np.array_equal(drawn, np.concatenate(batch_lengths(64, rows=32, seed=1)))

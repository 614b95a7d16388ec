"""What gives a teacher away that is not what it was."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from tiny_encoders import ragged_batch

from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.sanity import TOLERANCE, Probe, difference, drift, fault
from distill_dist.teacher.wire import Request, pack_request
from teacher.service_cases import PROBE, WireTypes, computer

LOGITS = [[2.0, -1.0, 0.5], [0.25, 4.0, -3.0]]
SANE = Probe(LOGITS, [[1.0, 0.5], [8.0, 0.0]])


def test_a_real_teacher_is_sane_and_says_the_same_again() -> None:
    compute = computer()
    first, again = compute.probe(PROBE), compute.probe(PROBE)
    assert fault(first) is None
    assert first == again
    assert len(first.logits) == len(first.saliency) == 3
    assert Probe(**json.loads(json.dumps(asdict(first)))) == first


def test_other_weights_are_a_drift() -> None:
    compute = computer()
    first = compute.probe(PROBE)
    layer = compute._parts.layers[0]
    weight = next(parameter for parameter in layer.parameters() if parameter.ndim == 2)
    with torch.no_grad():
        weight[0, 0] += 8.0
    assert "differ by" in str(drift(first, compute.probe(PROBE)))


@pytest.mark.parametrize("change", [TOLERANCE / 2, -TOLERANCE / 2, 2 * TOLERANCE, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["logits", "saliency"])
def test_what_is_more_than_rounding_is_a_drift(field: str, change: float) -> None:
    values = [list(row) for row in getattr(SANE, field)]
    largest = max(abs(value) for row in values for value in row)
    values[0][1] += change * largest
    found = drift(SANE, replace(SANE, **{field: values}))
    assert (found is None) == (abs(change) < TOLERANCE)
    assert found is None or ("logits" if field == "logits" else "gradients") in found


def test_a_difference_is_the_largest_of_either_kind() -> None:
    other = replace(SANE, logits=[[2.0, -1.0, 0.5], [0.25, 3.0, -3.0]], saliency=[[1.0, 0.5], [8.0, 4.0]])
    assert difference(SANE, other) == 0.5
    assert difference(SANE, replace(SANE, logits=other.logits)) == 0.25
    bare = replace(SANE, saliency=[])
    assert difference(bare, bare) == 0.0


def test_rows_of_a_probe_in_another_order_and_width() -> None:
    assert SANE.take([1, 0], width=1) == Probe([LOGITS[1], LOGITS[0]], [[8.0], [1.0]])
    assert replace(SANE, saliency=[]).take([1], width=1) == Probe([LOGITS[1]], [])


def test_answers_of_other_shapes_are_no_answers() -> None:
    assert "other shapes" in str(drift(SANE, replace(SANE, logits=LOGITS[:1])))
    assert "other shapes" in str(drift(SANE, replace(SANE, saliency=[])))
    without = replace(SANE, saliency=[])
    assert drift(without, without) is None


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        ([[math.nan, 1.0]], "not finite"),
        ([[math.inf, 1.0]], "not finite"),
        ([[0.0, 0.0], [0.0, 1e-7]], "same logit"),
        ([[1e3, 1e3 + 1e-3], [-1e3, -1e3]], "same logit"),
    ],
)
def test_who_says_nothing_cannot_teach(logits: list[list[float]], words: str) -> None:
    assert words in str(fault(Probe(logits, [])))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_who_has_no_gradients_cannot_teach(norm: float) -> None:
    assert "gradients are not finite" in str(fault(replace(SANE, saliency=[[1.0, 0.5], [norm]])))


@pytest.mark.parametrize("logits", [[[0.0, 1e-4]], [[0.0, 0.0], [0.1, 0.0]]])
def test_who_tells_one_row_apart_can_teach(logits: list[list[float]]) -> None:
    assert fault(Probe(logits, [])) is None


def test_the_wire_s_cost_is_measured_on_the_probe() -> None:
    plain, small = (
        computer(WireTypes(embedding_gradients=kind)).wire_report(PROBE) for kind in ("fp32", "int8")
    )
    assert abs(plain["embedding_gradient"]) < 1e-12
    assert 1e-6 < small["embedding_gradient"] < 1e-3
    assert set(small) == {"cls_states", "cls_gradients", "embedding_gradient"}


def test_the_probe_does_not_depend_on_its_padding() -> None:
    wide = pack_request(ragged_batch((5, 9, 3, 12), seed=4), labels=False)
    short = wide.take([0])
    assert short.input_ids_BL.shape == (1, 5)
    compute = computer()
    assert compute.probe(short).logits[0] == compute.probe(wide).logits[0]


def test_on_a_cpu_no_row_feels_the_others() -> None:
    compute = computer()
    assert compute.row_difference(PROBE) == compute.row_difference(PROBE.take([0])) == 0.0
    assert compute.introduce(PROBE)["row_difference"] == 0.0


def test_what_the_rows_beside_a_row_change_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose products depend on the batch, in both kinds of numbers."""
    compute, plain = computer(), RowComputer.probe
    expected = {"logits": 0.25, "saliency": 0.5}
    for name, share in expected.items():

        def felt(self: RowComputer, rows: Request, name: str = name, share: float = share) -> Probe:
            found = plain(self, rows)
            if len(rows.lengths_B) == len(PROBE.lengths_B):
                return found
            largest = max(abs(value) for row in getattr(plain(self, PROBE), name) for value in row)
            values = [[value + share * largest for value in row] for row in getattr(found, name)]
            return replace(found, **{name: values})

        monkeypatch.setattr(RowComputer, "probe", felt)
        assert compute.row_difference(PROBE) >= share
        assert compute.row_difference(PROBE) < 10 * share

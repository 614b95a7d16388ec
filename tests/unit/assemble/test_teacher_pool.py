"""Which teachers go together with a student and with each other, and what is said of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from config.trees import good_with
from teacher.service_cases import PROBE, teacher_parts

from assemble.test_objective_of_run import TEACHER, student
from distill_dist.assemble.models import TeacherShape
from distill_dist.assemble.pool_report import PoolReport, means_since
from distill_dist.assemble.teacher_pool import build_teachers, check_pool_fits, joined, report_of
from distill_dist.config.pool import naming_the_model
from distill_dist.config.schema_teacher import PooledTeacher
from distill_dist.errors import UserError
from distill_dist.objectives.conflict import COSINE, DISAGREEMENT
from distill_dist.objectives.objective import teacher_tag
from distill_dist.teacher.pool import TeacherPool
from distill_dist.teacher.row_keys import teacher_fingerprint
from distill_dist.telemetry import Totals

TWO = (PooledTeacher("teacher", 3.0), PooledTeacher("other", 1.0))
DEEP = replace(TEACHER, layers=18)
WIDE = replace(TEACHER, hidden_size=32)  # an ELECTRA: the same embedding
OTHER_EMBEDDING = replace(TEACHER, embedding_size=32)
MEAN_POOLED = replace(TEACHER, pools_cls=False)


def check(values: dict[str, Any], second: TeacherShape) -> None:
    check_pool_fits(good_with({"teachers": TWO, **values}), student(), (TEACHER, second))


@pytest.mark.parametrize("combine", ["average", "best", "separate"])
@pytest.mark.parametrize(
    ("values", "second", "words"),
    [
        ({}, WIDE, ["teachers[1] is 32 wide", "teachers[0] 16"]),
        ({}, DEEP, ["[3, 6, 9, 12, 15]", "[2, 4, 6, 8, 10]", "objective.teacher_layers"]),
        ({"method": "pkd"}, DEEP, ["teachers[1]"]),
        ({"method": "gkd", "evaluate.saliency": True}, OTHER_EMBEDDING, ["evaluate.saliency", "[16, 32]"]),
        ({"method": "gkd"}, OTHER_EMBEDDING, ["teachers[1]: ", "embeddings"]),
        ({"method": "kd", "weight.noise": 1.0}, OTHER_EMBEDDING, ["teachers[1]: "]),
        (
            {"method": "kd", "evaluate.saliency": True},
            OTHER_EMBEDDING,
            ["evaluate.saliency=true, but", "leave it away"],
        ),
        ({}, MEAN_POOLED, ["teachers[1]: the teacher's classifier reads the mean"]),
    ],
)
def test_what_cannot_be_joined(
    combine: str, values: dict[str, Any], second: TeacherShape, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        check({"teacher.combine": combine, **values}, second)
    for word in words:
        assert word in str(caught.value)
    check({"teacher.combine": combine, **values}, TEACHER)


@pytest.mark.parametrize(
    ("values", "second"),
    [
        ({"method": "gkd"}, WIDE),
        ({"method": "gkd"}, DEEP),
        ({"method": "kd"}, WIDE),
        ({"method": "kd"}, OTHER_EMBEDDING),
        ({"method": "kd", "evaluate.saliency": False}, OTHER_EMBEDDING),
        ({"method": "kd", "weight.attribution": 1.0}, OTHER_EMBEDDING),
        ({"objective.teacher_layers": (2, 4), "objective.student_layers": (1, 2)}, DEEP),
        ({"method": "gkd_cls", "alignment.positions": "embedding", "weight.patience": 0.0}, WIDE),
    ],
)
def test_what_can(values: dict[str, Any], second: TeacherShape) -> None:
    check(values, second)


def test_one_teacher_is_not_joined() -> None:
    alone: Any = SimpleNamespace()
    assert joined(good_with({}), [alone]) is alone
    assert joined(good_with({"teachers": TWO[:1]}), [alone]) is alone
    assert report_of(good_with({}), alone, alone) is None
    pool = joined(good_with({"teachers": TWO}), [alone, alone])
    assert isinstance(pool, TeacherPool)
    check_pool_fits(good_with({}), student(), (TEACHER,))


def test_messages_name_the_model_where_there_are_several() -> None:
    def fail(values: dict[str, Any], said: bool = False) -> str:
        error = UserError("no such folder")
        error.said = said
        with pytest.raises(UserError) as caught, naming_the_model(good_with(values), 1):
            raise error
        return str(caught.value)

    assert fail({"teachers": TWO}) == "teachers[1]: no such folder"
    assert fail({}) == "no such folder"
    # another rank has said it already, in its own words
    assert fail({"teachers": TWO}, said=True) == "no such folder"


def test_means_are_of_what_came_since() -> None:
    before = {DISAGREEMENT: (3.0, 10.0), COSINE: (2.0, 4.0)}
    now = {DISAGREEMENT: (4.0, 20.0), COSINE: (2.0, 4.0)}
    assert means_since(before, now) == {DISAGREEMENT: pytest.approx(0.1)}
    assert means_since({}, now) == {DISAGREEMENT: 0.2, COSINE: 0.5}
    assert means_since({}, {}) == {}


def test_each_epoch_has_its_line_and_the_run_its_mean(caplog: pytest.LogCaptureFixture) -> None:
    totals = Totals()
    telemetry: Any = SimpleNamespace(totals=totals)
    pool: Any = SimpleNamespace()
    report = PoolReport(pool, TWO, "average", telemetry)
    assert report.conflict() is None
    with caplog.at_level(logging.INFO, logger="distill_dist"):
        report.end_epoch(0)
        totals.measures |= {DISAGREEMENT: (5.0, 50.0), COSINE: (20.0, 40.0)}
        report.end_epoch(10)
        totals.measures |= {DISAGREEMENT: (20.0, 100.0), COSINE: (10.0, 80.0)}
        report.end_epoch(20)
    assert [record.getMessage() for record in caplog.records] == [
        "step 10: conflict: the teachers' labels differ on 10.0 % of rows, the cosine of their gradients is 0.50",
        "step 20: conflict: the teachers' labels differ on 30.0 % of rows, the cosine of their gradients is -0.25",
    ]
    assert report.conflict() == {"label_disagreement": 0.2, "gradient_cosine": 0.125}


def test_separate_terms_have_a_line_of_each_teachers_own(caplog: pytest.LogCaptureFixture) -> None:
    totals = Totals()
    telemetry: Any = SimpleNamespace(totals=totals)
    unused: Any = None
    report = PoolReport(unused, TWO, "separate", telemetry)
    terms = {"distillation": ((3.0, 10.0), (5.0, 10.0)), "gradient_embedding": ((1.0, 70.0), (2.0, 70.0))}
    totals.measures |= {DISAGREEMENT: (1.0, 10.0)}
    totals.measures |= {
        teacher_tag(name, n): each for name, pair in terms.items() for n, each in enumerate(pair)
    }
    with caplog.at_level(logging.INFO, logger="distill_dist"):
        report.end_epoch(10)
    assert caplog.messages[1:] == ["step 10: distillation: 0.3 from teachers[0], 0.5 from teachers[1]"]
    assert report.conflict() == {"label_disagreement": 0.1}, "the summary's conflict is no loss"


def test_each_model_has_its_own_figures() -> None:
    logits = [np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]), np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])]
    members: Any = [SimpleNamespace(describe=lambda n=n: {"parameters": n}) for n in (7, 8)]
    pool: Any = SimpleNamespace(members=members)
    scorer: Any = SimpleNamespace(
        logits_NC=lambda member: logits[members.index(member)],
        metrics=lambda logits_NC: {"accuracy": float((logits_NC.argmax(axis=1) == 0).mean())},
    )
    unused: Any = None
    found = PoolReport(pool, TWO, "best", unused).members(scorer)
    told = PoolReport(pool, TWO, "best", unused).members(
        scorer, ({"bytes_per_row": 5.0}, {"bytes_per_row": 6.0})
    )
    assert [model["wire_report"]["bytes_per_row"] for model in told["models"]] == [5.0, 6.0]
    assert found == {
        "combine": "best",
        "label_disagreement": 0.5,
        "models": [
            {"path": "teacher", "weight": 3.0, "parameters": 7, "accuracy": 0.5},
            {"path": "other", "weight": 1.0, "parameters": 8, "accuracy": 0.5},
        ],
    }


@pytest.mark.parametrize(("value", "words"), [(0.0, "same logit"), (float("nan"), "not finite"), (None, "")])
def test_a_teacher_in_process_that_says_nothing_is_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, value: float | None, words: str
) -> None:
    parts = teacher_parts()
    if value is not None:
        with torch.no_grad():
            for weight in parts.model.classifier.parameters():  # type: ignore[union-attr]
                weight.fill_(value)
    monkeypatch.setattr("distill_dist.assemble.teacher_pool.build_teacher", lambda *_: parts)
    monkeypatch.setattr("distill_dist.assemble.teacher_worker.probe_rows", lambda config: PROBE)
    config = good_with({"teacher.path": "teacher", "teachers": ()})
    manifest = cast(Any, SimpleNamespace(read_by_teacher=SimpleNamespace(tokenizer="t")))
    if value is None:
        (found,) = build_teachers(config, manifest, torch.device("cpu"))
        assert found.parts is parts
        assert found.identity.fingerprint == teacher_fingerprint(parts, tokenizer="t")
        assert len(found.identity.probe.logits) == 3
        return
    with pytest.raises(UserError, match=f"nobody can learn from the teacher: .*{words}"):
        build_teachers(config, manifest, torch.device("cpu"))

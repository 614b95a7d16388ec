"""Which evaluations count as done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_dist.hub import weights_digest
from distill_dist.study.evaluations import Asked, digest_of

ASKED = Asked(("dev", "held_out"), 9)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an evaluation of two rows of two splits."""
    for name in ("run", "teacher"):
        model = tmp_path / name / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(name.encode())
    run = tmp_path / "run"
    (run / "predictions").mkdir()
    for split in ASKED.splits:
        (run / "predictions" / f"{split}.tsv").write_text("row\tlabel\n0\t1\n1\t0\n")
    summary = {"teacher": {"accuracy": 0.9}, "loyalty": {"ll": 0.9, "sl_spearman_norm": 0.8}}
    (run / "summary.json").write_text(json.dumps(summary))
    digest_of.cache_clear()
    write(run, evaluation(tmp_path))
    return run


def evaluation(folder: Path, **more: Any) -> dict[str, Any]:
    teacher = str(folder / "teacher" / "model")
    return {
        "models": {
            "student": {"sha256": weights_digest(folder / "run" / "model")},
            "teachers": [{"path": teacher, "sha256": weights_digest(Path(teacher))}],
        },
        "settings": {"saliency_rows": 9},
        "splits": {split: {"rows": 2} for split in ASKED.splits},
        "predictions": {split: {"file": f"predictions/{split}.tsv"} for split in ASKED.splits},
        **more,
    }


def write(run: Path, content: dict[str, Any]) -> None:
    (run / "evaluation.json").write_text(json.dumps(content))


def test_a_whole_one_counts(run: Path) -> None:
    assert ASKED.is_answered(run)
    assert Asked(("dev",), 9).is_answered(run)


@pytest.mark.parametrize(
    ("summary", "has_saliency"),
    [
        ({"teacher": {}, "loyalty": {"sl_spearman_norm": 0.5}}, True),
        ({"teacher": {}, "loyalty": {}}, True),  # the run did not measure it
        ({"teacher": {}, "loyalty": {"sl_spearman_norm": None}}, False),  # a decoder teacher, say
        ({"teacher": None, "loyalty": {}}, False),
    ],
)
def test_saliency_is_asked_of_runs_that_have_it(
    run: Path, tmp_path: Path, summary: dict[str, Any], has_saliency: bool
) -> None:
    (run / "summary.json").write_text(json.dumps(summary))
    assert ("--saliency" in ASKED.options(run)) is has_saliency
    assert ASKED.is_answered(run) is has_saliency, "of nine rows"
    write(run, evaluation(tmp_path, settings={}))
    assert ASKED.is_answered(run) is not has_saliency


def test_a_teacher_of_the_hub_is_looked_for_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluation(tmp_path)
    places = {"org/name": found["models"]["teachers"][0]["path"]}
    found["models"]["teachers"][0]["path"] = "org/name"
    write(run, found)
    assert not ASKED.is_answered(run), "nobody knows it"
    digest_of.cache_clear()
    monkeypatch.setattr("distill_dist.study.evaluations.locate", lambda path, *, what: places[path])
    assert ASKED.is_answered(run)


def test_what_is_missing_or_of_others_does_not(run: Path, tmp_path: Path) -> None:
    assert not Asked(("dev", "tune"), 9).is_answered(run)
    assert not Asked(("dev",), 8).is_answered(run)
    write(run, evaluation(tmp_path, splits={"dev": {"rows": 3}, "held_out": {"rows": 2}}))
    assert not ASKED.is_answered(run)


@pytest.mark.parametrize("harm", ["row\tlabel\n0\t1\n", "row\tlabel\n0\t1\n1\t", None])
def test_cut_or_lost_predictions_do_not(run: Path, harm: str | None) -> None:
    path = run / "predictions" / "held_out.tsv"
    path.unlink() if harm is None else path.write_text(harm)
    assert not ASKED.is_answered(run)


@pytest.mark.parametrize("model", ["run", "teacher"])
def test_other_weights_do_not(run: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / model / "model" / "model.safetensors").write_bytes(b"others")
    digest_of.cache_clear()
    assert not ASKED.is_answered(run)

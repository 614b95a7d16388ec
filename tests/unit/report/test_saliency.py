"""Examples are read, coloured and joined to words; files of another kind are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_dist.report.run_record import RunRecord, read_run
from distill_dist.report.saliency import Examples, read_examples
from distill_dist.run_folder import BEST
from report.run_cases import saliency


def read(folder: Path, content: Any) -> tuple[Examples | None, RunRecord]:
    (folder / "state.json").write_text('{"state": "done"}')
    (folder / "saliency.json").write_text(content if isinstance(content, str) else json.dumps(content))
    run = read_run(folder)
    return read_examples(run), run


def test_colours_follow_the_rows_own_scale(tmp_path: Path) -> None:
    found, run = read(tmp_path, saliency())
    assert run.problems == []
    assert found is not None
    first = found.found[0]
    teacher, student = first.views
    assert (first.label, teacher.predicted, student.predicted) == ("negative", "negative", "positive")
    assert student.probability == 0.8
    assert [token.text for token in student.strength][:4] == ["[CLS]", "a", "dull", "ish"]
    assert [token.joined for token in student.strength][:4] == [False, False, False, True]
    opacity = [float(token.colour.rsplit(",", 1)[1].rstrip(")")) for token in student.strength]
    assert opacity == [0.02, 0.05, 0.7, 0.23, 0.12, 0.0]
    # against the prediction in another colour than for it
    signed = [token.colour.rsplit(",", 1)[0] for token in student.signed]
    assert signed[2] == student.strength[2].colour.rsplit(",", 1)[0]
    assert signed[3] != signed[2]


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_pieces_of_other_tokenizers(tmp_path: Path, mark: str) -> None:
    content = saliency()
    content["rows"] = content["rows"][:1]
    content["rows"][0]["tokens"] = ["<s>", "The", f"{mark}dull", "ness", f"{mark}of", "</s>"]
    found, _ = read(tmp_path, content)
    assert found is not None
    shown = found.found[0].views[0].strength
    assert [token.text for token in shown] == ["<s>", "The", "dull", "ness", "of", "</s>"]
    assert [token.joined for token in shown] == [False, True, False, True, False, False]


def harmed(**more: Any) -> dict[str, Any]:
    content = saliency()
    content["rows"][0]["student"] = {**content["rows"][0]["student"], **more}
    return content


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        {"format": 2},
        {"format": 1, "rows": [{}]},
        harmed(norm=[1.0]),
        harmed(norm=[float("nan")] * 6),
        harmed(probabilities=[]),
        harmed(probabilities=[0.1, 0.1, 0.8]),  # of a class without a name
    ],
)
def test_damage_is_named(tmp_path: Path, content: Any) -> None:
    found, run = read(tmp_path, content)
    assert found is None
    assert len(run.problems) == 1
    assert "saliency.json" in run.problems[0]


def test_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"state": "done"}')
    assert read_examples(read_run(tmp_path)) is None


def test_examples_of_another_model_are_not_the_runs(tmp_path: Path) -> None:
    """The run went on, say, and found a better epoch."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / BEST).write_text('{"sha256": "new"}')
    assert read(tmp_path, {**saliency(), "asked": {"model": "new"}})[0] is not None
    found, run = read(tmp_path, {**saliency(), "asked": {"model": "old"}})
    assert found is None
    assert run.problems[0].startswith("saliency.json is of another model than the run's own")

"""An encoder learns from a decoder that reads other tokens: in process, from a teacher rank and from a cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import DEV_ROWS, TRAIN_ROWS, corpus, last_json, launch, prepare_corpus, running, start_ranks, trace
from tiny_decoders import save_decoder

from e2e.test_teacher_cache import counters_of

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class DecoderWorld:
    """A corpus prepared for both, the same for the student alone, and the decoder."""

    prepared: Path
    plain: Path
    decoder: Path

    def arguments(self, run_dir: Path, *more: str) -> list[str]:
        """50 steps of plain distillation, in the order that the teacher's confidence says."""
        return [
            "method=kd",
            f"run_dir={run_dir}",
            *corpus(self.prepared),
            f"data.teacher_tokenizer={self.decoder}",
            "data.teacher_max_length=96",
            "student.shape.hidden_size=32",
            "student.shape.num_hidden_layers=2",
            "student.shape.num_attention_heads=4",
            "student.shape.intermediate_size=64",
            f"teacher.path={self.decoder}",
            "teacher.patience_s=15",
            "batch.size=8",
            "batch.micro_tokens=64",
            "curriculum.order=easy_to_hard",
            "curriculum.source=teacher",
            "train.learning_rate=1e-3",
            "train.epochs=1",
            "train.log_every=5",
            "train.trace=true",
            "cluster.device=cpu",
            "cluster.threads=1",
            *more,
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> DecoderWorld:
    """About 10 s, once."""
    folder = tmp_path_factory.mktemp("decoder")
    decoder = save_decoder(folder / "decoder", "llama")
    own = (f"data.teacher_tokenizer={decoder}", "data.teacher_max_length=96")
    prepared = prepare_corpus(folder / "both", *own)
    return DecoderWorld(prepared, prepare_corpus(folder / "plain"), decoder)


def test_the_same_losses_from_every_place_that_teaches(world: DecoderWorld, tmp_path: Path) -> None:
    alone = launch("train.py", world.arguments(tmp_path / "alone"), logs=tmp_path / "logs-alone")
    assert alone.processes[0].returncode == 0, alone.text()
    expected, summary = trace(tmp_path / "alone"), last_json(alone.stdout())
    assert len(expected) == summary["steps"] == TRAIN_ROWS // 8
    assert summary["loyalty"]["sl_spearman_norm"] is None
    assert "saliency loyalty is not measured: the teacher reads other tokens" in alone.stderr()

    cached = (f"teacher.cache_dir={tmp_path}/cache", "cluster.teachers=1")
    fill = launch(
        "cache_teacher.py", world.arguments(tmp_path / "cached", *cached), logs=tmp_path / "logs-fill"
    )
    assert fill.processes[0].returncode == 0, fill.text()
    found = last_json(fill.stdout())
    # train for the objective and again for the order, which asks the same; dev
    assert found["rows"] == 2 * TRAIN_ROWS + DEV_ROWS
    assert TRAIN_ROWS <= found["cached"] < TRAIN_ROWS + 10, "a few texts stand twice"

    for name, more in (("remote", ("cluster.teachers=1",)), ("cached", cached)):
        arguments = world.arguments(tmp_path / name, *more)
        with running(start_ranks(arguments, size=2, logs=tmp_path / f"logs-{name}")) as ranks:
            assert ranks.wait() == [0, 0], ranks.text()
        assert trace(tmp_path / name) == expected, name
        there = last_json(ranks.stdout(0))
        for key in ("student", "loyalty", "splits", "best_step"):
            assert there[key] == summary[key], (name, key)
        assert there["teacher"]["loss"] == summary["teacher"]["loss"], name
    here = world.arguments(tmp_path / "here", cached[0])
    done = launch("train.py", here, logs=tmp_path / "logs-here")
    assert done.processes[0].returncode == 0, done.text()
    assert trace(tmp_path / "here") == expected, "in process, out of the cache"
    computed = {name: counters_of(tmp_path / name, 1)["computed_rows"] for name in ("remote", "cached")}
    assert computed["remote"] > TRAIN_ROWS
    assert computed["cached"] == 0

    scored = launch("evaluate.py", ["--run", f"{tmp_path}/alone"], logs=tmp_path / "logs-evaluate")
    assert scored.processes[0].returncode == 0, scored.text()
    again = last_json(scored.stdout())
    assert again["teacher"]["accuracy"] == pytest.approx(summary["teacher"]["accuracy"])
    assert again["loyalty"] == pytest.approx({key: summary["loyalty"][key] for key in ("ll", "pl")})


@pytest.mark.parametrize(
    "kind", ["gradients", "not prepared", "no tokenizer of its own", "cut from its teacher"]
)
def test_what_cannot_work_is_refused_in_one_message(world: DecoderWorld, tmp_path: Path, kind: str) -> None:
    changed, words = {
        "gradients": (["method=gkd"], ["method = 'gkd'", "only logits can be learned", "take kd"]),
        "not prepared": (
            [f"data.prepared={world.plain}"],
            ["data.teacher_tokenizer=", "holds the student's tokens alone", "--replace"],
        ),
        "no tokenizer of its own": (
            [f"data.prepared={world.plain}", 'data.teacher_tokenizer=""', "data.teacher_max_length=null"],
            ["teacher.path=", "has another vocabulary", "or name it in data.teacher_tokenizer"],
        ),
        "cut from its teacher": (
            ["student.path=${teacher.path}"],
            ["student.path = ", "a student cut from its teacher reads its tokens"],
        ),
    }[kind]
    done = launch("train.py", world.arguments(tmp_path / "run", *changed), logs=tmp_path / "logs")
    assert done.processes[0].returncode == 2, done.text()
    assert "Traceback" not in done.stderr()
    assert done.stderr().count("error: ") == 1, done.text()
    for word in words:
        assert word in done.stderr(), done.text()

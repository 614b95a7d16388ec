"""What is said of two models on prepared rows; and models that do not fit them: one message each, whoever asks."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from tiny_encoders import tiny_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distill_dist.assemble.evaluation_files import evaluated_folder, write_evaluation
from distill_dist.assemble.models import check_tokenizer, teacher_shape
from distill_dist.assemble.score import Asked, Scored, check_splits, score, vocabulary
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import PooledTeacher, TeacherConfig, WireConfig
from distill_dist.data.manifest import load_manifest
from distill_dist.data.prepare import prepare
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.evaluation.predictions import read_predictions
from distill_dist.models.build import random_student
from distill_dist.teacher.row_computer import RowComputer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A corpus of a few rows, prepared."""
    prepared = tmp_path_factory.mktemp("world") / "prepared"
    rows = ["data.synthetic.train_rows=20", "data.synthetic.dev_rows=10", "data.synthetic.max_steps=1"]
    arguments = ["data.source=synthetic_nli", f"data.prepared={prepared}", "cluster.device=cpu", *rows]
    found = load_config(None, arguments, need="prepare")
    prepare(found.data, progress=False)
    return found


def model_of(folder: Path, **more: Any) -> Path:
    """A classifier over the three classes, without a tokenizer."""
    tiny_encoder(dtype=torch.float32, **more).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A student and a teacher that fit the corpus."""
    manifest, found = load_manifest(Path(config.data.prepared)), []
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.3}
    for seed, name in enumerate(("student", "teacher")):
        path = tmp_path_factory.mktemp("models") / name
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = random_student(
                {"model_type": "bert", "num_hidden_layers": 2, **shape},
                vocab_size=manifest.vocab_size,
                pad_token_id=manifest.pad_token_id,
                labels=manifest.labels,
            )
        model.save_pretrained(path)
        found.append(str(path))
    return found[0], found[1]


@pytest.fixture(scope="module")
def scored(config: RunConfig, pair: tuple[str, str]) -> Scored:
    asked = Asked(*pair, saliency=True, consistency=True, rate=0.3, resamples=200)
    return score(config, asked)


def test_every_number_and_its_interval(scored: Scored) -> None:
    record = scored.record
    json.dumps(record, allow_nan=False)
    assert (record["split"], record["rows"], list(record["splits"])) == ("dev", 10, ["dev"])
    dev = record["splits"]["dev"]
    names = {"entailment", "neutral", "contradiction"}
    forms = {f"sl_{kind}_{of}" for kind in ("pearson", "spearman") for of in ("norm", "dot")}
    expected = {
        "student": {"accuracy", "loss", "ece"},
        "teacher": {"accuracy", "loss", "ece"},
        "loyalty": {"ll", "pl", *forms},
        "per_class": {"student", "teacher"},
        "consistency": {"delete", "replace"},
    }
    for section, keys in expected.items():
        assert dev[section].keys() == dev["intervals"][section].keys() == keys, section
        assert record[section] == dev[section]
    assert dev["per_class"]["student"].keys() == names
    assert dev["support"].keys() == names
    assert dev["consistency"]["delete"].keys() == {"student_keeps", "teacher_keeps", "agreement", "closeness"}
    for value, (low, high) in zip(numbers(dev), numbers(dev["intervals"]), strict=True):
        assert low <= high
        assert np.isfinite(value)
    low, high = dev["intervals"]["loyalty"]["pl"]
    assert low < dev["loyalty"]["pl"] < high
    assert record["settings"] == {
        "intervals": "percentile", "confidence": 0.95, "resamples": 200, "seed": 0, "rate": 0.3
    }  # fmt: skip


def numbers(tree: dict[str, Any]) -> list[Any]:
    """The leaves of the metrics' sections, in order."""
    sections = [tree[name] for name in ("student", "teacher", "per_class", "loyalty", "consistency")]
    found: list[Any] = []
    while sections:
        first = sections.pop(0)
        if isinstance(first, dict):
            sections = [*first.values(), *sections]
        else:
            found.append(first)
    return found


def test_the_numbers_follow_from_the_predictions(scored: Scored, tmp_path: Path) -> None:
    """The files hold all that a report needs: the record's numbers come out of them again."""
    with evaluated_folder(tmp_path / "run"):
        record = write_evaluation(tmp_path / "run", scored)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == record
    entry = record["predictions"]["dev"]
    path = tmp_path / "run" / entry["file"]
    assert (entry["file"], entry["sha256"]) == ("predictions/dev.tsv", sha256_file(path))
    found = read_predictions(path)
    predicted = found.student_NC.argmax(axis=1)
    assert found.teacher_NC is not None
    assert record["student"]["accuracy"] == accuracy_score(found.labels_N, predicted)
    assert record["loyalty"]["ll"] == (predicted == found.teacher_NC.argmax(axis=1)).mean()
    precision, recall, f1, support = precision_recall_fscore_support(
        found.labels_N, predicted, labels=[0, 1, 2], zero_division=0.0
    )
    for number, name in enumerate(("entailment", "neutral", "contradiction")):
        measures = record["per_class"]["student"][name]
        assert [measures["precision"], measures["recall"], measures["f1"]] == pytest.approx(
            [precision[number], recall[number], f1[number]]
        )
        assert record["support"][name] == support[number]
    for name, values_N in found.more.items():
        assert record["loyalty"][name] == pytest.approx(np.nanmean(values_N), rel=1e-12), name
    assert len(found.more) == 4


def test_a_model_is_loyal_to_itself_and_consistent_with_it(config: RunConfig, pair: tuple[str, str]) -> None:
    student, _ = pair
    found = score(config, Asked(student, student, saliency=True, consistency=True, resamples=10)).record
    assert found["loyalty"] == pytest.approx(dict.fromkeys(found["loyalty"], 1.0), abs=1e-7)
    for kind in found["consistency"].values():
        assert (kind["agreement"], kind["closeness"]) == (1.0, pytest.approx(1.0, abs=1e-7))
        assert kind["student_keeps"] == kind["teacher_keeps"]


def test_perturbed_rows_are_other_rows(scored: Scored) -> None:
    """Random weights heed every token, so some labels move; the more the more is touched."""
    kept = [scored.record["consistency"][kind]["student_keeps"] for kind in ("delete", "replace")]
    assert 0 < min(kept) <= max(kept) <= 1.0
    assert min(kept) < 1.0
    assert scored.record["consistency"]["delete"] != scored.record["consistency"]["replace"]


def test_a_runs_teacher_that_is_gone_is_told_and_one_that_was_asked_for_is_an_error(
    config: RunConfig, pair: tuple[str, str], tmp_path: Path
) -> None:
    gone = replace(config, teacher=TeacherConfig(path=str(tmp_path / "gone" / "model")))
    found = score(gone, Asked(pair[0], resamples=10)).record
    assert "there is no such folder" in found["teacher_missing"]
    assert "teacher" not in found
    assert "loyalty" not in found
    assert found["models"]["teachers"] == []
    with pytest.raises(UserError, match=r"--saliency compares with a teacher: .*no such folder"):
        score(gone, Asked(pair[0], saliency=True))
    with pytest.raises(UserError, match="there is no such folder"):
        score(gone, Asked(pair[0], str(tmp_path / "gone" / "model")))


def test_several_teachers_have_no_embedding_in_common(config: RunConfig, pair: tuple[str, str]) -> None:
    pool = replace(config, teachers=(PooledTeacher(pair[0], 2.0), PooledTeacher(pair[1], 1.0)))
    found = score(pool, Asked(pair[0], saliency=True, resamples=10)).record
    assert found["loyalty"].keys() == {"ll", "pl", "sl_pearson_norm", "sl_spearman_norm"}
    assert [each["weight"] for each in found["models"]["teachers"]] == pytest.approx([2 / 3, 1 / 3])
    alone = score(config, Asked(pair[0], pair[1], resamples=10)).record
    assert found["teacher"]["loss"] != alone["teacher"]["loss"]


def test_gradients_of_different_widths_are_not_joined(
    config: RunConfig, pair: tuple[str, str], tmp_path: Path
) -> None:
    manifest = load_manifest(Path(config.data.prepared))
    with torch.random.fork_rng():
        shape = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
        random_student(
            shape, vocab_size=manifest.vocab_size, pad_token_id=0, labels=manifest.labels
        ).save_pretrained(tmp_path / "wide")
    pool = replace(config, teachers=(PooledTeacher(pair[1], 1.0), PooledTeacher(f"{tmp_path}/wide", 1.0)))
    with pytest.raises(UserError, match=r"--saliency: the teachers' embeddings are \[16, 32\] wide"):
        score(pool, Asked(pair[0], saliency=True))
    assert "loyalty" in score(pool, Asked(pair[0], resamples=10)).record


def test_splits_are_those_asked_for(config: RunConfig, pair: tuple[str, str]) -> None:
    found = score(config, Asked(pair[0], splits=("train", "dev"), resamples=10))
    assert list(found.record["splits"]) == list(found.predictions) == ["train", "dev"]
    assert (found.record["split"], found.record["rows"]) == ("train", 20)
    with pytest.raises(UserError, match="has no split 'test'; it has train, dev"):
        score(config, Asked(pair[0], splits=("test",)))


def test_words_that_may_replace_others(config: RunConfig, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(config.data.prepared) / "tokenizer")
    tokenizer.add_tokens(["[unused7]", "new"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    special, words = vocabulary(tmp_path)
    names = tokenizer.convert_ids_to_tokens
    assert {"[PAD]", "[CLS]", "[SEP]"} <= set(names(special.tolist()))
    assert "[UNK]" not in names(special.tolist())
    found = names(words.tolist())
    assert "new" in found
    # but for what frames texts, the unknown word and the unused one
    assert len(found) == len(tokenizer) - len(special) - 2
    assert not {"[UNK]", "[unused7]", "[CLS]"} & set(found)


def test_a_model_of_a_smaller_vocabulary_is_refused(config: RunConfig, tmp_path: Path) -> None:
    """Its embedding would fail at the first row that it has no place for."""
    path = model_of(tmp_path / "small")
    with pytest.raises(UserError, match=rf"student='{path}' embeds 40 tokens"):
        score(config, Asked(student=str(path)))


def test_the_student_is_not_called_a_teacher(config: RunConfig, tmp_path: Path) -> None:
    path = model_of(tmp_path / "two", classes=2)
    with pytest.raises(UserError, match=rf"^the student at '{path}' knows the classes"):
        score(config, Asked(student=str(path)))


def test_no_silent_cpu(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = replace(config, cluster=replace(config.cluster, device="cuda"))
    with pytest.raises(UserError, match=r"cluster\.device=cuda"):
        score(asked, Asked(student="anything"))


@pytest.mark.parametrize("content", ["{", "", "[]", "{}", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_named(config: RunConfig, tmp_path: Path, content: str) -> None:
    path = model_of(tmp_path / "model")
    (path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"no tokenizer could be loaded from '{path}': \S"):
        check_tokenizer(str(path), Path(config.data.prepared), what="student")


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_tokenizer_of_prepared_data_that_is_gone_or_damaged(
    config: RunConfig, pair: tuple[str, str], tmp_path: Path, content: str | None
) -> None:
    prepared = shutil.copytree(config.data.prepared, tmp_path / "prepared")
    place = prepared / "tokenizer"
    if content is None:
        shutil.rmtree(place)
    else:
        (place / "tokenizer.json").write_text(content)
    damaged = replace(config, data=replace(config.data, prepared=str(prepared)))
    student = shutil.copytree(pair[0], tmp_path / "student")
    shutil.copytree(Path(config.data.prepared) / "tokenizer", student, dirs_exist_ok=True)
    with pytest.raises(UserError, match=f"{re.escape(str(place))}.*prepare the data again"):
        score(damaged, Asked(student=str(student)))
    with pytest.raises(UserError, match=f"{re.escape(str(place))}.*prepare the data again"):
        vocabulary(prepared)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_diverged_has_no_score(
    config: RunConfig, pair: tuple[str, str], tmp_path: Path, value: float
) -> None:
    path = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(pair[0])
    with torch.no_grad():
        model.classifier.bias[0] = value
    model.save_pretrained(path)
    with pytest.raises(UserError, match=r"the student's logits are not finite for \d+ of \d+ rows"):
        score(config, Asked(student=str(path)))


def test_with_nothing_but_train_there_is_nothing_to_score(config: RunConfig, tmp_path: Path) -> None:
    prepared = shutil.copytree(config.data.prepared, tmp_path / "prepared")
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["splits"] = {"train": manifest["splits"]["train"]}
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    alone = replace(config, data=replace(config.data, prepared=str(prepared)))
    with pytest.raises(UserError, match="has no split but train"):
        check_splits(alone, Asked(student="x"))


@pytest.mark.parametrize("content", ["{", "null", '{"model_type": "bert", "hidden_size": "x"}'])
def test_a_damaged_teacher_configuration_is_named(config: RunConfig, tmp_path: Path, content: str) -> None:
    path = model_of(tmp_path / "model")
    (path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"no model could be loaded from '{path}': \S"):
        teacher_shape(replace(config, teacher=TeacherConfig(path=str(path))))


def test_saliency_of_some_rows_is_theirs_among_all(
    config: RunConfig, pair: tuple[str, str], scored: Scored
) -> None:
    some = score(config, Asked(*pair, saliency=True, saliency_rows=4, resamples=10))
    assert some.record["settings"]["saliency_rows"] == 4
    for name, values_N in some.predictions["dev"].more.items():
        expected = scored.predictions["dev"].more[name]
        assert np.flatnonzero(~np.isnan(values_N)).tolist() == [0, 3, 6, 9]
        # other batches, so other sums: fp32 gradients agree to about 1e-6, and their ranks but for ties
        np.testing.assert_allclose(values_N[[0, 3, 6, 9]], expected[[0, 3, 6, 9]], atol=1e-3)
        assert some.record["loyalty"][name] == pytest.approx(np.nanmean(values_N))


def test_a_runs_teacher_is_read_from_its_cache_and_says_the_same(
    config: RunConfig, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair
    (tmp_path / "cache").mkdir()
    kept = replace(config, teacher=TeacherConfig(path=teacher, cache_dir=str(tmp_path / "cache")))
    asked = Asked(student, saliency=True, resamples=10)
    first = score(kept, asked)
    expected = score(config, replace(asked, teacher=teacher))
    for name, values_N in first.predictions["dev"].more.items():
        # filled up to other rows, so other sums
        np.testing.assert_allclose(values_N, expected.predictions["dev"].more[name], atol=1e-3)

    def never(*args: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(RowComputer, "__call__", never)
    again = score(kept, asked)
    assert again.record == first.record
    lossy = replace(kept, teacher=replace(kept.teacher, wire=WireConfig(embedding_gradients="int8")))
    assert score(lossy, asked).record["loyalty"] == expected.record["loyalty"]

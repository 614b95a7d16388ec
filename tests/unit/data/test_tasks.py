from __future__ import annotations

import pytest

from distill_dist.config.schema import DataConfig
from distill_dist.data.tasks import TASKS, Layout, choose_layout, require_layout, resolve_task
from distill_dist.errors import UserError


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        ("cola", ["sentence", "label", "idx"], ("sentence", "label")),
        ("sst2", ["sentence", "label"], ("sentence", "label")),
        ("qqp", ["id", "question1", "question2", "is_duplicate"], ("question1", "question2", "is_duplicate")),
        ("qqp", ["question1", "question2", "label", "idx"], ("question1", "question2", "label")),
        ("mnli", ["index", "sentence1", "sentence2", "gold_label"], ("sentence1", "sentence2", "gold_label")),
        ("mnli", ["premise", "hypothesis", "label", "idx"], ("premise", "hypothesis", "label")),
        ("qnli", ["index", "question", "sentence", "label"], ("question", "sentence", "label")),
    ],
)
def test_each_task_knows_the_hubs_and_the_official_columns(task, columns, expected):
    assert require_layout(TASKS[task].layouts, columns, "file").columns == expected


def test_class_numbers_and_metrics_are_glues():
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert TASKS["qqp"].labels == ("not_duplicate", "duplicate")
    assert TASKS["sst2"].labels == ("negative", "positive")
    assert TASKS["cola"].labels == ("unacceptable", "acceptable")
    assert {name for name, task in TASKS.items() if task.metric == "f1"} == {"qqp"}
    assert {name for name, task in TASKS.items() if task.metric == "matthews"} == {"cola"}


def test_a_missing_column_is_named_with_those_there():
    with pytest.raises(
        UserError, match=r"train.tsv:1: missing column: needs 'sentence', 'label'; has 'text'"
    ):
        require_layout(TASKS["sst2"].layouts, ["text"], "train.tsv:1")


def test_the_users_names_replace_the_tasks():
    config = DataConfig(task="mnli", text_columns=("a", "b"), label_column="y", labels=("e", "n", "c"))
    task = resolve_task(config)
    assert task.layouts == (Layout(("a", "b"), "y"),)
    assert task.labels == ("e", "n", "c")
    assert choose_layout(task.layouts, TASKS["mnli"].layouts[0].columns) is None


def test_one_overridden_name_leaves_the_others():
    task = resolve_task(DataConfig(task="mnli", label_column="y"))
    assert [layout.columns for layout in task.layouts] == [
        ("premise", "hypothesis", "y"),
        ("sentence1", "sentence2", "y"),
    ]


def test_custom_names_what_it_needs():
    with pytest.raises(UserError, match=r"needs data.text_columns, data.labels"):
        resolve_task(DataConfig(task="custom", label_column="y"))


@pytest.mark.parametrize("labels", [("one",), ("a", "a")])
def test_classes_are_at_least_two_and_distinct(labels):
    with pytest.raises(UserError, match="at least two different"):
        resolve_task(DataConfig(task="sst2", labels=labels))


def test_f1_takes_two_classes():
    assert resolve_task(DataConfig(task="qqp", labels=("no", "yes"))).metric == "f1"
    with pytest.raises(UserError, match="F1, which needs two"):
        resolve_task(DataConfig(task="qqp", labels=("no", "yes", "perhaps")))


def test_blanks_around_a_class_name():
    with pytest.raises(UserError, match=r"\['neg', 'pos '\]: a name has blanks"):
        resolve_task(DataConfig(task="sst2", labels=("neg", "pos ")))


def test_the_label_is_no_text():
    task = resolve_task(DataConfig(task="qqp", text_columns=("label",)))
    assert [layout.columns for layout in task.layouts] == [("label", "is_duplicate")]
    with pytest.raises(UserError, match="label_column 'a' is one of the text columns"):
        resolve_task(DataConfig(task="qqp", text_columns=("a", "b"), label_column="a"))


def test_three_texts_are_refused():
    with pytest.raises(UserError, match="one or two texts"):
        resolve_task(DataConfig(task="sst2", text_columns=("a", "b", "c")))


def test_the_generated_corpus_is_mnlis_shape_and_takes_no_names():
    task = resolve_task(DataConfig(source="synthetic_nli"))
    assert task.labels == TASKS["mnli"].labels
    with pytest.raises(UserError, match=r"data\.labels has no meaning"):
        resolve_task(DataConfig(source="synthetic_nli", labels=("a", "b", "c")))
    with pytest.raises(UserError, match="sst2 does not fit"):
        resolve_task(DataConfig(source="synthetic_nli", task="sst2"))
    with pytest.raises(UserError, match=r"data\.source_column has no meaning"):
        resolve_task(DataConfig(source="synthetic_nli", source_column="origin"))


def test_the_column_of_sources_is_one_that_a_row_must_have():
    task = resolve_task(DataConfig(task="mnli", source_column="genre"))
    assert [layout.columns for layout in task.layouts] == [
        ("premise", "hypothesis", "label", "genre"),
        ("sentence1", "sentence2", "gold_label", "genre"),
    ]
    with pytest.raises(UserError, match=r"missing column: .*'genre'; has .* and data\.source_column"):
        require_layout(task.layouts, TASKS["mnli"].layouts[0].columns, "train.tsv:1")


@pytest.mark.parametrize("column", ["label", "sentence"])
def test_the_column_of_sources_is_none_of_the_others(column):
    with pytest.raises(UserError, match=rf"data\.source_column '{column}' .* name another"):
        resolve_task(DataConfig(task="sst2", source_column=column))

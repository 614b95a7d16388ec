from __future__ import annotations

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_dist.data.rows import RawRow
from distill_dist.data.tables import open_hub, open_parquet
from distill_dist.data.tasks import TASKS, Layout
from distill_dist.errors import UserError

LAYOUTS = (Layout(("text",), "label"),)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def read(opened):
    total, rows = opened
    rows = list(rows)
    assert total == len(rows)
    return rows


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_counts_rows_from_one_and_reads_every_kind_of_string(tmp_path, kind):
    texts = pa.array(["a", "b", None]).cast(kind)
    pq.write_table(pa.table({"label": [1, 0, None], "text": texts}), tmp_path / "x.parquet", row_group_size=2)
    rows = read(open_parquet(tmp_path / "x.parquet", LAYOUTS))
    assert rows == [RawRow(1, (b"a",), 1), RawRow(2, (b"b",), 0), RawRow(3, (None,), None)]


def test_parquet_with_broken_utf8_gives_the_row_to_be_refused(tmp_path):
    broken = pa.array([b"ok", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": broken, "label": ["x", "y"]}), tmp_path / "x.parquet")
    rows = read(open_parquet(tmp_path / "x.parquet", LAYOUTS))
    assert rows[1] == RawRow(2, (b"caf\xe9",), "y")


def test_parquet_keeps_the_names_that_its_numbers_have_in_the_file(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    dataset.to_parquet(tmp_path / "x.parquet")
    assert [row.label for row in read(open_parquet(tmp_path / "x.parquet", LAYOUTS))] == ["yes", "no", -1]


def test_parquet_without_the_column_or_no_parquet(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x.parquet: missing column: needs 'text', 'label'; has 'text'"):
        open_parquet(tmp_path / "x.parquet", LAYOUTS)
    (tmp_path / "y.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"y.parquet: not a parquet file"):
        open_parquet(tmp_path / "y.parquet", LAYOUTS)


def test_parquet_with_a_column_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([1])], ["text", "text", "label"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x.parquet: two columns are called 'text'"):
        open_parquet(tmp_path / "x.parquet", LAYOUTS)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "\xff",
        '{"info": 3}',
        '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}',
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1]}}}}',
    ],
)
def test_parquet_whose_class_names_cannot_be_read(tmp_path, text):
    table = pa.table({"text": ["a"], "label": [1]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": text.encode("latin-1")}), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match=r"x.parquet: its metadata `huggingface`"):
        open_parquet(tmp_path / "x.parquet", LAYOUTS)


@pytest.mark.parametrize("text", ["{}", '{"info": {"features": {"label": [{"_type": "Value"}]}}}'])
def test_parquet_whose_metadata_names_no_classes(tmp_path, text):
    table = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata({"huggingface": text})
    pq.write_table(table, tmp_path / "x.parquet")
    assert read(open_parquet(tmp_path / "x.parquet", LAYOUTS)) == [RawRow(1, (b"a",), 1)]


@pytest.fixture
def glue(tmp_path):
    """A folder in the layout of nyu-mll/glue: configurations in the README, parquet files, class names."""
    folder = tmp_path / "glue"
    (folder / "mnli").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: mnli\n  data_files:\n"
        "  - {split: train, path: mnli/train-*}\n"
        "  - {split: validation_matched, path: mnli/validation_matched-*}\n"
        "- config_name: other\n  data_files:\n  - {split: train, path: mnli/train-*}\n---\n"
    )
    names = ["contradiction", "entailment", "neutral"]  # not our order
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "idx": datasets.Value("int32"),
        }
    )
    for split, label in (("train", 0), ("validation_matched", 2)):
        rows = {"premise": [f"p {split}"], "hypothesis": ["h"], "label": [label], "idx": [0]}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        dataset.to_parquet(folder / "mnli" / f"{split}-00000-of-00001.parquet")
    return folder


def test_hub_layout_by_configuration_and_split(glue):
    layouts = TASKS["mnli"].layouts
    train = read(open_hub(str(glue), "mnli", "train", "", layouts))
    dev = read(open_hub(str(glue), "mnli", "validation_matched", "", layouts))
    assert train == [RawRow(1, (b"p train", b"h"), "contradiction")]
    assert dev == [RawRow(1, (b"p validation_matched", b"h"), "neutral")]


@pytest.mark.parametrize(("name", "split"), [("mnli", "test"), ("cola", "train"), ("", "train")])
def test_hub_wrong_names_are_one_message(glue, name, split):
    with pytest.raises(UserError, match=rf"data.path '.*glue'.*split '{split}' cannot be loaded: "):
        open_hub(str(glue), name, split, "", TASKS["mnli"].layouts)


def test_hub_layout_of_plain_files(tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\na,x\n")
    (folder / "validation.csv").write_text("text,label\nb,y\n")
    assert read(open_hub(str(folder), "", "validation", "", LAYOUTS)) == [RawRow(1, (b"b",), "y")]


@pytest.mark.parametrize(
    "opener", [open_parquet, lambda path, layouts: open_hub(str(path), "", "train", "", layouts)]
)
def test_sources_of_tables_have_the_files_own_names(tmp_path, opener):
    features = datasets.Features(
        {
            "from": datasets.ClassLabel(names=["web", "books"]),
            "label": datasets.Value("string"),
            "text": datasets.Value("string"),
        }
    )
    dataset = datasets.Dataset.from_dict(
        {"text": ["a", "b"], "label": ["x", "y"], "from": [1, 0]}, features=features
    )
    path = tmp_path / "train.parquet"
    dataset.to_parquet(path)
    rows = read(opener(path if opener is open_parquet else tmp_path, (Layout(("text",), "label", "from"),)))
    assert rows == [RawRow(1, (b"a",), "x", source=("books",)), RawRow(2, (b"b",), "y", source=("web",))]


def test_parquet_without_the_column_of_sources(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"needs 'text', 'label', 'from'; .*data\.source_column"):
        open_parquet(tmp_path / "x.parquet", (Layout(("text",), "label", "from"),))

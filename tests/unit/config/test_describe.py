"""The reference comes from the schema's docstrings and is current."""

from __future__ import annotations

from pathlib import Path

from distill_dist.config.check import RANGES
from distill_dist.config.describe import describe, field_docs, help_text
from distill_dist.config.fields import nearest_key, schema_fields, schema_sections

REPOSITORY = Path(__file__).parents[3]


def test_every_field_and_every_section_has_a_docstring() -> None:
    undocumented = set(schema_fields()) - set(field_docs())
    # sections that are fields of DataConfig or StudentConfig are described by their class
    assert undocumented == set()
    for prefix, cls in schema_sections().items():
        assert cls.__doc__, prefix
        assert not cls.__doc__.startswith(f"{cls.__name__}("), f"{prefix}: dataclass's own signature"


def test_a_docstring_belongs_to_the_field_above_it() -> None:
    docs = field_docs()
    assert docs["batch.size"].startswith("Rows of a global batch")
    assert docs["data.synthetic.seed"] != docs["seed"]
    assert "\n" not in "".join(docs.values())


def test_reference_on_disk_is_current() -> None:
    path = REPOSITORY / "configs" / "README.md"
    remedy = "run: python -m distill_dist.config.describe > configs/README.md"
    assert path.read_text(encoding="utf-8") == describe(), remedy


def test_help_and_reference_name_every_field_with_its_docstring() -> None:
    page, text = describe(), " ".join(help_text().split())
    for key, doc in field_docs().items():
        assert f"| `{key}` |" in page
        assert doc.replace("|", "\\|") in page
        assert f" {key}=" in text
        assert doc in text
        if key in RANGES:
            assert RANGES[key].words in page


def test_allowed_names_stand_in_the_reference() -> None:
    page = describe()
    for field in schema_fields().values():
        assert all(name in page for name in field.allowed)


def test_nearest_key() -> None:
    assert nearest_key("batch.siz") == "batch.size"
    assert nearest_key("trian") == "train"
    assert nearest_key("train.lr") == "train.learning_rate"
    assert nearest_key("tau") is None
    assert nearest_key("dta.max_lenght") == "data.max_length"
    assert nearest_key("lease_s") == "teacher.lease_s"

"""Text of a run breaks nothing of a page, and tells no place of the machine."""

from __future__ import annotations

import pytest

from distill_dist.export.markdown import block, code, hide_places, one_line, table

HOSTILE = (
    "a|b",
    "`x`",
    "``",
    "---\n# h",
    "<b>&amp;",
    "a\\|b",
    "*_[x](y)",
    " ",
    "",
    "\u2028x\x00\x1b[31m",
    "x" * 300,
)


@pytest.mark.parametrize("text", HOSTILE)
def test_code_has_no_line_and_no_cell_of_its_own(text: str) -> None:
    found = code(text)
    assert found.isprintable()
    assert "|" not in found
    if found.startswith("<code>"):
        inside = found.removeprefix("<code>").removesuffix("</code>")
        assert not set(inside) & set("<>`\\|*_[]")
    else:
        assert found.count("`") == 2, "what has backticks of its own is written by entities"
    assert len(table(("a", "b"), [(found, "1")]).splitlines()[2].split("|")) == 4


def test_a_block_ends_where_it_should() -> None:
    found = block("```\n````\nx", "sh").splitlines()
    assert (found[0], found[-1]) == ("`````sh", "`````")
    assert one_line("a\r\n b\t\x07c") == "a b c"


def test_a_cell_that_was_not_escaped_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        table(("a",), [("x|y",)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/user/work/runs/x/model", "…/x/model"),
        ("/home/user", "…"),
        ("/data", "…/data"),
        ("--config=file:///home/bob/k.yaml", "--config=…/k.yaml"),
        ("label=at:/home/bob/x", "label=at:…/x"),
        ("data.splits={train:/home/bob/secret/t.jsonl}", "data.splits={train:…/secret/t.jsonl}"),
        ("/home/user/model", "…/model"),
        ("/home/a n/b c/d", "…/b c/d"),
        ("/srv/start/configs/a.yaml", "configs/a.yaml"),
        ("data.path=/home/user/rows and more/x", "data.path=…/rows and more/x"),
        ("teachers=[{path: /home/user/b/c, x: 2}, {path: /srv/start/t}]", "teachers=[{path: …/b/c, x: 2}, {path: t}]"),
        ("runs/x/model", "runs/x/model"),
        ("pkg://package/folder", "pkg://package/folder"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("train.learning_rate=1e-4", "train.learning_rate=1e-4"),
        ("and/or", "and/or"),
    ],
)  # fmt: skip
def test_places(text: str, expected: str) -> None:
    assert hide_places(text, folder="/srv/start") == expected

from __future__ import annotations

import pytest

from distill_dist.data.rows import BadRow, RawRow
from distill_dist.data.tasks import Layout
from distill_dist.data.text_files import read_csv, read_jsonl, read_tsv
from distill_dist.errors import UserError

SINGLE = (Layout(("text",), "label"),)
PAIR = (Layout(("one", "two"), "label"),)


@pytest.fixture
def rows(tmp_path):
    """Rows that a reader finds in these bytes."""

    def read(reader, content: bytes, layouts=SINGLE):
        path = tmp_path / "rows.txt"
        path.write_bytes(content)
        return list(reader(path, layouts))

    return read


def kinds(rows):
    return [(row.line, row.kind if isinstance(row, BadRow) else row.texts) for row in rows]


def test_tsv_takes_quotes_literally_and_breaks_lines_only_at_newlines(rows):
    content = 'id\ttext\tlabel\n1\t"a\t0\n2\tb \u2028 c\x0b"\t1\r\n\n'.encode()
    assert rows(read_tsv, content) == [RawRow(2, ('"a',), "0"), RawRow(3, ('b \u2028 c\x0b"',), "1")]


def test_tsv_bad_rows_keep_their_lines(rows):
    content = b"text\tlabel\ngood\t0\none field\n\ncaf\xe9\t0\na\tb\t0\ngood\t1\n"
    found = kinds(rows(read_tsv, content))
    assert found == [
        (2, ("good",)),
        (3, "wrong number of fields"),
        (5, "broken utf-8"),
        (6, "wrong number of fields"),
        (7, ("good",)),
    ]


def test_tsv_without_final_newline_and_with_byte_order_mark(rows):
    assert kinds(rows(read_tsv, b"\xef\xbb\xbftext\tlabel\na\t0")) == [(2, ("a",))]


def test_columns_are_found_by_name_whatever_their_order(rows):
    assert rows(read_tsv, b"label\ttwo\tone\nL\tB\tA\n", PAIR) == [RawRow(2, ("A", "B"), "L")]


def test_csv_reads_quoted_fields_over_several_lines(rows):
    content = b'text,label\n"a, ""b""\nsecond line",0\n\nplain,1\n'
    assert rows(read_csv, content) == [RawRow(2, ('a, "b"\nsecond line',), "0"), RawRow(5, ("plain",), "1")]


def test_csv_bad_rows(rows):
    content = b'text,label\ngood,0\na,b,c\n"x"y,0\ncaf\xe9,0\ngood,1\n'
    read = rows(read_csv, content)
    assert kinds(read)[:3] == [(2, ("good",)), (3, "wrong number of fields"), (4, "broken csv")]
    assert read[3].line == 5  # the broken byte comes through as a mark that check_row refuses
    with pytest.raises(UnicodeEncodeError):
        read[3].texts[0].encode()
    assert kinds(read)[4:] == [(6, ("good",))]


@pytest.mark.parametrize(
    ("tail", "last"),
    [
        (b"good,1\ngood,1\n", 5),  # to the end of the file
        (b"", 3),  # the last line alone
        (b'good,1\n"quoted",1\ngood,1\n', 5),  # to the next quote
        (b"good,1\n" * 30_000, 0),  # beyond csv's longest field, 131,072 characters
    ],
)
def test_csv_lines_inside_a_stray_quote_are_never_one_bad_row(rows, tail, last):
    with pytest.raises(UserError, match=rf"rows.txt:3: a quote opens .* up to line {last or ''}"):
        rows(read_csv, b'text,label\ngood,0\n"stray,0\n' + tail)


def test_jsonl(rows):
    content = (
        b'{"text": "a", "label": 1}\n\n[1]\n{"text": "a"\n{"text": "a"}\n'
        b'{"text": "caf\xe9", "label": 1}\n{"label": "x", "text": "b"}'
    )
    found = rows(read_jsonl, content)
    assert found[0] == RawRow(1, ("a",), 1)
    assert kinds(found)[1:] == [
        (3, "broken json"),
        (4, "broken json"),
        (5, "missing column"),
        (6, "broken utf-8"),
        (7, ("b",)),
    ]
    assert "needs 'text', 'label'; has 'text'" in found[3].reason


def test_jsonl_keys_that_stand_twice_and_endless_numbers_are_bad_rows(rows):
    content = b'{"text": "a", "text": "b", "label": 1}\n{"text": "a", "label": %s}\n' % (b"1" * 5000)
    found = rows(read_jsonl, content)
    assert kinds(found) == [(1, "broken json"), (2, "broken json")]
    assert "'text' stands twice" in found[0].reason


@pytest.mark.parametrize(("reader", "comma"), [(read_tsv, b"\t"), (read_csv, b",")])
def test_a_column_that_stands_twice_is_refused_where_it_is_read(rows, reader, comma):
    good = rows(reader, b"id,id,text,label\n1,2,a,0\n".replace(b",", comma))
    assert good == [RawRow(2, ("a",), "0")]
    with pytest.raises(UserError, match=r"rows.txt:1: two columns are called 'text'"):
        rows(reader, b"text,text,label\na,b,0\n".replace(b",", comma))


def test_jsonl_nested_beyond_the_parser_is_a_bad_row(rows):
    assert kinds(rows(read_jsonl, b"[" * 100_000 + b"\n")) == [(1, "broken json")]


@pytest.mark.parametrize("reader", [read_tsv, read_csv])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no header"),
        (b"\n\n", "no header"),
        (b"caf\xe9\n", "not UTF-8"),
        (b"texts\nx\n", "missing column: needs 'text', 'label'; has 'texts'"),
    ],
)
def test_a_header_that_will_not_do_is_an_error_at_once(rows, reader, content, message):
    with pytest.raises(UserError, match=rf"rows.txt:1: .*{message}"):
        rows(reader, content)


FROM = (Layout(("text",), "label", "from"),)


def test_every_reader_takes_the_column_of_sources(rows):
    assert rows(read_tsv, b"from\ttext\tlabel\nweb\ta\t0\n", FROM) == [
        RawRow(2, ("a",), "0", source=("web",))
    ]
    assert rows(read_csv, b"from,text,label\nweb,a,0\n", FROM) == [RawRow(2, ("a",), "0", source=("web",))]
    content = b'{"text": "a", "label": 1, "from": 3}\n{"text": "a", "label": 1}\n'
    found = rows(read_jsonl, content, FROM)
    assert found[0] == RawRow(1, ("a",), 1, source=(3,))
    assert (found[1].kind, "'from'" in found[1].reason) == ("missing column", True)
    with pytest.raises(UserError, match=r"rows.txt:1: missing column: .*'from'; has .*data\.source_column"):
        rows(read_tsv, b"text\tlabel\na\t0\n", FROM)

"""The zip for the GLUE server: what it holds, and that the check sees every way to get it wrong."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny import environment

from distill_dist.errors import UserError
from distill_dist.evaluation.submission import (
    SERVER_FILES,
    check_place,
    check_submission,
    server_labels,
    write_submission,
)

SST2 = ["0", "1", "1"] * 607
QNLI = ["entailment", "not_entailment", "entailment"] * 1821


def good(path: Path) -> dict[str, str]:
    """Writes SST-2's file; its text."""
    assert len(SST2) == 1821
    write_submission(path, {"SST-2": SST2})
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def put(path: Path, files: dict[str, str]) -> list[str]:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return check_submission(path)


def test_the_servers_names_header_and_rows(tmp_path: Path) -> None:
    files = good(tmp_path / "glue.zip")
    assert list(files) == ["SST-2.tsv"]
    lines = files["SST-2.tsv"].split("\n")
    assert lines[:3] == ["index\tprediction", "0\t0", "1\t1"]
    assert lines[-2:] == ["1820\t1", ""]
    assert put(tmp_path / "again.zip", files) == []


def test_task_by_task_and_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "glue.zip"
    missing = write_submission(path, {"SST-2": SST2})
    assert missing == [f"{name}.tsv" for name in SERVER_FILES if name not in ("SST-2", "AX")]
    assert write_submission(path, {"QNLI": QNLI}) == [name for name in missing if name != "QNLI.tsv"]
    with zipfile.ZipFile(path) as file:
        assert file.namelist() == ["QNLI.tsv", "SST-2.tsv"]
    once = path.read_bytes()
    write_submission(path, {"SST-2": SST2})
    assert path.read_bytes() == once, "the same predictions, the same file"
    write_submission(path, {"SST-2": ["1"] * 1821})
    assert path.read_bytes() != once


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("index\t", "id\t", 1), "the header is 'id\\tprediction'"),
        (lambda text: text.removesuffix("1820\t1\n"), "has 1820 rows, the server's test split 1821"),
        (lambda text: text + "1821\t0\n", "has 1822 rows"),
        (
            lambda text: text.replace("7\t1\n8\t1\n", "8\t1\n7\t1\n", 1),
            "line 9: '8\\t1' where the row of index 7 belongs",
        ),
        (
            lambda text: text.replace("\n5\t1", "\n5\tpositive", 1),
            "line 7: the label 'positive' is none of the server's (0, 1)",
        ),
        (lambda text: text.replace("\n5\t1", "\n5,1", 1), "line 7: '5,1' where the row of index 5 belongs"),
        (lambda text: text.replace("\n5\t1", "\n5\t1\r", 1), "the label '1\\r'"),
    ],
    ids=["header", "short", "long", "order", "label", "comma", "line ends"],
)  # fmt: skip
def test_a_wrong_file_is_seen(tmp_path: Path, change, expected: str) -> None:
    files = good(tmp_path / "glue.zip")
    changed = change(files["SST-2.tsv"])
    assert changed != files["SST-2.tsv"]
    problems = put(tmp_path / "wrong.zip", {"SST-2.tsv": changed})
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize("name", ["sst-2.tsv", "SST-2.csv", "glue/SST-2.tsv", "SST-2"])
def test_a_wrong_name_is_seen(tmp_path: Path, name: str) -> None:
    text = good(tmp_path / "glue.zip")["SST-2.tsv"]
    assert put(tmp_path / "wrong.zip", {name: text}) == [
        f"{name} is no file of a task: {', '.join(SERVER_FILES)}, each with .tsv"
    ]


def test_scores_are_numbers_from_0_to_5(tmp_path: Path) -> None:
    def problems(score: str) -> list[str]:
        lines = ["index\tprediction", *(f"{row}\t{score}" for row in range(1379))]
        return put(tmp_path / "sts.zip", {"STS-B.tsv": "\n".join(lines) + "\n"})

    assert problems("3.25") == []
    for wrong in ("5.1", "-1", "nan", "high"):
        assert f"the label {wrong!r} is none of the server's (a number from 0 to 5)" in problems(wrong)[0]


def test_what_would_be_refused_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "glue.zip"
    good(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"(?s)would be refused by the server:.*QNLI\.tsv has 3 rows"):
        write_submission(path, {"QNLI": QNLI[:3]})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "glue.zip"
    path.write_text("my notes")
    with pytest.raises(UserError, match=r"is there and is no zip .*: name another file"):
        write_submission(path, {"SST-2": SST2})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "mine")
    with pytest.raises(UserError, match=r"is there and is no submission: notes\.txt is no file of a task"):
        write_submission(path, {"SST-2": SST2})


@pytest.mark.parametrize("place", [60, -30], ids=["content", "directory"])
def test_a_damaged_zip_is_named(tmp_path: Path, place: int) -> None:
    path = tmp_path / "glue.zip"
    good(path)
    content = bytearray(path.read_bytes())
    for number in range(place, place + 8):
        content[number] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is there and is no zip .*: name another file"):
        write_submission(path, {"SST-2": SST2})
    assert path.read_bytes() == content
    with pytest.raises(UserError, match="is no zip"):
        check_place(path)


def test_a_place_that_cannot_be_is_told_before_anything_is_predicted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: give the name of a zip in it"):
        check_place(tmp_path)
    with pytest.raises(UserError, match=r"there is no folder .*no: make it"):
        check_place(tmp_path / "no" / "glue.zip")
    check_place(tmp_path / "glue.zip")


ADD = """
import sys, time
from pathlib import Path
from distill_dist.evaluation import submission
write = submission.write_durable
def slowly(path, fill):
    print("read", flush=True)
    time.sleep(2)
    write(path, fill)
submission.write_durable = slowly
submission.write_submission(Path(sys.argv[1]), {"QNLI": ["entailment"] * 5463})
"""


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "glue.zip"
    command = [sys.executable, "-c", ADD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"read\n"
        write_submission(path, {"SST-2": SST2})
        assert other.wait(60) == 0
    with zipfile.ZipFile(path) as file:
        assert sorted(file.namelist()) == ["QNLI.tsv", "SST-2.tsv"]
    assert list(tmp_path.iterdir()) == [path]


def test_labels_are_the_servers_by_name_in_our_order() -> None:
    assert server_labels("sst2", ("negative", "positive")) == ["0", "1"]
    assert server_labels("qqp", ("duplicate", "not_duplicate")) == ["1", "0"]
    assert server_labels("mnli", ("neutral", "entailment", "contradiction")) == [
        "neutral", "entailment", "contradiction",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"the classes \['bad', 'good'\] are not those of sst2"):
        server_labels("sst2", ("bad", "good"))
    with pytest.raises(UserError, match="the GLUE server has no task 'custom'"):
        server_labels("custom", ("a", "b"))

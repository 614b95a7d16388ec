"""The zip that the GLUE server takes: one TSV a task, with its own names, header and label names.

Names, header and labels: gluebenchmark.com's FAQ and sample submission, as the common writers of such files have them;
row counts: the test splits of nyu-mll/glue. The server wants every task but AX in one zip; here it is filled task by
task, and what is missing is said.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.durable import write_durable
from distill_dist.errors import UserError
from distill_dist.one_writer import one_writer

HEADER = "index\tprediction"
_BINARY = ("0", "1")
_NLI = ("entailment", "neutral", "contradiction")
_ENTAILS = ("entailment", "not_entailment")
_NO_TIME = (1980, 1, 1, 0, 0, 0)  # equal predictions give equal files


@dataclass(frozen=True)
class ServerFile:
    """``rows`` of the task's test split; ``labels`` as the server calls them, empty for a score of 0 to 5."""

    rows: int
    labels: tuple[str, ...]


SERVER_FILES = {
    "CoLA": ServerFile(1063, _BINARY),
    "SST-2": ServerFile(1821, _BINARY),
    "MRPC": ServerFile(1725, _BINARY),
    "STS-B": ServerFile(1379, ()),
    "QQP": ServerFile(390_965, _BINARY),
    "MNLI-m": ServerFile(9796, _NLI),
    "MNLI-mm": ServerFile(9847, _NLI),
    "QNLI": ServerFile(5463, _ENTAILS),
    "RTE": ServerFile(3000, _ENTAILS),
    "WNLI": ServerFile(146, _BINARY),
    "AX": ServerFile(1104, _NLI),
}
OPTIONAL = ("AX",)

# task of ours -> class name -> what the server calls it
SERVER_LABELS: dict[str, dict[str, str]] = {
    "cola": {"unacceptable": "0", "acceptable": "1"},
    "sst2": {"negative": "0", "positive": "1"},
    "qqp": {"not_duplicate": "0", "duplicate": "1"},
    "mnli": {name: name for name in _NLI},
    "qnli": {name: name for name in _ENTAILS},
}


def server_labels(task: str, labels: Sequence[str]) -> list[str]:
    """What the server calls the classes ``labels`` of ``task``, in their order. UserError where it knows them not."""
    known = SERVER_LABELS.get(task)
    if known is None:
        raise UserError(
            f"--submission: the GLUE server has no task {task!r}; of ours it has {', '.join(SERVER_LABELS)}"
        )
    if set(labels) != set(known):
        raise UserError(
            f"--submission: the classes {list(labels)} are not those of {task}, {list(known)}: leave data.labels away"
        )
    return [known[name] for name in labels]


def check_place(path: Path) -> None:
    """Raises UserError where no submission can be written to ``path``: before anything is predicted."""
    if path.is_dir():
        raise UserError(f"--submission {path} is a folder: give the name of a zip in it")
    if not path.parent.is_dir():
        raise UserError(
            f"--submission {path}: there is no folder {path.parent}: make it, or give another place"
        )
    if path.exists():
        _read(path)


def write_submission(path: Path, predictions: Mapping[str, Sequence[str]]) -> list[str]:
    """Puts a file for every task of ``predictions`` into the zip at ``path``, beside what other tasks have there.

    Returns the names of the files that the server will still miss. The new zip takes the place of the old one only
    after ``check_submission`` found nothing. Raises UserError where it did, or where the old one is something else.
    """
    with one_writer(
        path.with_name(f".{path.name}.lock"), name=f"--submission {path}", kind="evaluation", wait_s=60
    ):
        return _add(path, predictions)


def _add(path: Path, predictions: Mapping[str, Sequence[str]]) -> list[str]:
    contents = _read(path) if path.exists() else {}
    for name, labels in predictions.items():
        lines = [HEADER, *(f"{number}\t{label}" for number, label in enumerate(labels))]
        contents[f"{name}.tsv"] = ("\n".join(lines) + "\n").encode()

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
            for member in sorted(contents):
                file.writestr(zipfile.ZipInfo(member, _NO_TIME), contents[member], zipfile.ZIP_DEFLATED)
        if problems := check_submission(temporary):
            raise UserError(
                f"--submission {path} would be refused by the server:\n  " + "\n  ".join(problems)
            )

    write_durable(path, write)
    return [f"{name}.tsv" for name in SERVER_FILES if f"{name}.tsv" not in contents and name not in OPTIONAL]


def check_submission(path: Path) -> list[str]:
    """Everything in the zip at ``path`` that the server would refuse, one line each; absent tasks are no problem."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        problems = [
            f"{name} stands twice" for name in sorted({each for each in names if names.count(each) > 1})
        ]
        for name in dict.fromkeys(names):
            task = name.removesuffix(".tsv")
            if task == name or task not in SERVER_FILES:
                problems.append(f"{name} is no file of a task: {', '.join(SERVER_FILES)}, each with .tsv")
            else:
                problems += _file_problems(name, file.read(name), SERVER_FILES[task])
    return problems


def _read(path: Path) -> dict[str, bytes]:
    remedy = "name another file, or remove this one"
    try:
        with zipfile.ZipFile(path) as file:
            found = {name: file.read(name) for name in file.namelist()}
    # what zipfile raises of damage, of a member that is encrypted, and of a compression that it does not know
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"--submission {path} is there and is no zip ({error}): {remedy}") from error
    if problems := check_submission(path):
        raise UserError(f"--submission {path} is there and is no submission: {problems[0]}: {remedy}")
    return found


def _file_problems(name: str, content: bytes, server: ServerFile) -> Iterator[str]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        yield f"{name} is not UTF-8: {error}"
        return
    header, *lines = text.removesuffix("\n").split("\n")
    if header != HEADER:
        yield f"{name}: the header is {header!r:.60}, not {HEADER!r}"
    if len(lines) != server.rows:
        yield f"{name} has {len(lines)} rows, the server's test split {server.rows}"
    for number, line in enumerate(lines):
        index, tab, label = line.partition("\t")
        if not tab or index != str(number):
            yield f"{name}, line {number + 2}: {line!r:.60} where the row of index {number} belongs"
            return  # all further ones are shifted
        if not _is_label(label, server.labels):
            known = ", ".join(server.labels) or "a number from 0 to 5"
            yield f"{name}, line {number + 2}: the label {label!r:.60} is none of the server's ({known})"
            return


def _is_label(label: str, labels: tuple[str, ...]) -> bool:
    if labels:
        return label in labels
    try:
        return 0.0 <= float(label) <= 5.0
    except ValueError:
        return False

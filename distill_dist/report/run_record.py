"""What a run folder says of its run, read from its small files. What is missing or damaged is named, never fatal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distill_dist.durable import is_locked
from distill_dist.errors import UserError
from distill_dist.hub import digest_of_weights
from distill_dist.run_folder import BEST

MARKS = ("state.json", "summary.json", "config.yaml")  # a folder with one of them is a run's
MAIN_METRICS = ("matthews", "f1", "accuracy")  # a task's own is the first of these that its runs have
OF_MANY = (
    "trials.json",
    "spent.json",
)  # a sweep's and a study's folder: it has a summary of its own, and runs below
COPIES = "jobs"  # in a run's folder: of the code and the configuration of each submission
DEEPEST = 4  # levels below a named folder where runs are looked for: a sweep's, an array's
_STEP = re.compile(r"step-(\d+)")
# libyaml's, ten times faster than the one in Python: 2 ms a run
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class RunRecord:
    """One run folder. What is read from a file is empty where there is no such file."""

    path: Path
    # running, lost (says running, but its process is gone), done, stopped, failed, refused (it never began); unknown
    state: str
    reason: str  # of a stop or a failure
    changed: float  # seconds since 1970 of its last sign of life; 0: unknown
    summary: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()  # as it was typed
    started_in: str = ""  # the folder that its relative paths start from
    weights: str = ""  # sha256 of its model.safetensors, as the run noted it
    evaluation: dict[str, Any] = field(default_factory=dict)  # of that model
    problems: list[str] = field(default_factory=list)  # what could not be read, one line each
    table: str = ""  # the table that it stands in, of its own; "": its task's

    @property
    def method(self) -> str:
        """`gkd_cls`; `?` where no file says."""
        return _text(self.summary.get("method")) or _text(self.config.get("method")) or "?"

    @property
    def task(self) -> str:
        """`mnli`; the summary's word, since a generated corpus has a name of its own."""
        if found := _text(self.summary.get("task")):
            return found
        source = _text(value_at(self.config, "data", "source"))
        return source if source == "synthetic_nli" else _text(value_at(self.config, "data", "task")) or "?"

    @property
    def label(self) -> str:
        """What it is called: by its configuration's `label`, else by its method."""
        return _text(self.config.get("label")) or self.method

    @property
    def listed_as(self) -> str:
        """What it is called where no other run has to be told from it: `kd_cl_sr`."""
        return _text(self.summary.get("label")) or self.label

    @property
    def seed(self) -> int | None:
        """None where no file says."""
        for found in (self.summary.get("seed"), self.config.get("seed")):
            if isinstance(found, int):
                return found
        return None

    @property
    def done(self) -> bool:
        """Whether its figures are final."""
        return bool(self.summary) and self.state in ("done", "unknown")


def find_runs(places: Sequence[Path]) -> list[Path]:
    """The run folders that ``places`` are or contain, in order, each once. UserError for a place that has none."""
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: no such folder: give a run folder, or one that has runs in it")
        inside = list(_runs_below(place, DEEPEST))
        if not inside:
            raise UserError(
                f"{place} holds no run: a run folder has {', '.join(MARKS[:-1])} or {MARKS[-1]}; was run_dir another?"
            )
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def config_of_folder(folder: Path) -> Path:
    """The configuration that the run in ``folder`` wrote for itself. Raises UserError where there is none, and why."""
    if not (folder / "config.yaml").is_file():
        raise no_run(folder, "give the run_dir of a launcher/train.py that started")
    return folder / "config.yaml"


def no_run(folder: Path, remedy: str) -> UserError:
    """Why ``folder``, which has no config.yaml, is no run's."""
    if not folder.is_dir():
        return UserError(f"{folder}: no such folder: {remedy}")
    if (folder.parent / "config.yaml").is_file():
        return UserError(f"{folder} lies inside a run: give {folder.parent}")
    run = read_run(folder, whole=False)
    if run.state == "refused":
        return UserError(
            f"{folder} is of a run that never began ({run.reason}): mend that and start it again"
        )
    return UserError(f"{folder} has no config.yaml: {remedy}")


def _runs_below(folder: Path, deeper: int) -> Iterator[Path]:
    is_marked = any((folder / name).is_file() for name in MARKS)
    if is_marked and not any((folder / name).is_file() for name in OF_MANY):
        yield folder
        return
    if not deeper:
        return
    try:
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return  # what may not be looked into is nobody's run here
    for path in below:
        if not os.path.basename(path).startswith(".") and os.path.basename(path) != COPIES:
            yield from _runs_below(Path(path), deeper - 1)


def read_run(path: Path, *, whole: bool = True) -> RunRecord:
    """The run in ``path``. Without ``whole`` only what a list needs: the configuration just where no summary is."""
    problems: list[str] = []
    state = read_object(path / "state.json", problems)
    summary = read_object(path / "summary.json", problems)
    config = _read_yaml(path / "config.yaml", problems) if whole or not summary else {}
    said = _text(state.get("state")) or "unknown"
    if said == "running" and not _is_held(path / ".lock"):
        said = "lost"
    elif said == "failed" and state.get("refused"):
        said = "refused"
    changed = number_at(state, "time") or 0.0
    if said in (
        "running",
        "lost",
        "unknown",
    ):  # of one that has ended a copied folder would tell another time
        changed = max(changed, _modified(path / "logs" / "rank-00000.log"))
    record = RunRecord(path, said, _text(state.get("reason")), changed, summary, config, problems=problems)
    if not (state or summary or config) and not problems:
        problems.append("nothing of a run in it")
    if not whole:
        return record
    record.versions = {
        key: str(value) for key, value in read_object(path / "versions.json", problems).items()
    }
    typed = read_object(path / "command.json", problems)
    words = typed.get("command")
    record.command = tuple(map(str, words)) if isinstance(words, list) else ()
    record.started_in = _text(typed.get("folder"))
    record.weights = _text(read_object(path / "model" / BEST, []).get("sha256"))
    record.evaluation = read_object(path / "evaluation.json", problems)
    scored = value_at(record.evaluation, "models", "student", "sha256")
    if record.weights and scored not in (None, digest_of_weights({"model.safetensors": record.weights})):
        problems.append("evaluation.json is of another model than the run's own")
        record.evaluation = {}
    return record


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def last_step(record: RunRecord) -> int | None:
    """Optimizer steps so far: the summary's, or the newest checkpoint's."""
    if isinstance(steps := record.summary.get("steps"), int):
        return steps
    try:
        names = os.listdir(record.path / "checkpoints")
    except OSError:
        return None
    return max((int(match[1]) for name in names if (match := _STEP.fullmatch(name))), default=None)


def best_dev(record: RunRecord) -> float | None:
    """Dev metric of the model that is kept: the summary's, the task's own where it has one; before the end, so far.

    None before the end of a run that chooses its epoch on another split: what it has noted is of that one.
    """
    for name in MAIN_METRICS:
        if (found := number_at(record.summary, "student", name)) is not None:
            return found
    if (value_at(record.config, "evaluate", "select_on") or "dev") != "dev":
        return None
    return number_at(read_object(record.path / "model" / BEST, []), "value")


def by_number(name: str) -> list[tuple[int, str]]:
    """A key that puts `run-9` before `run-10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """The JSON object in ``path``; {} where it is missing, or damaged, which goes into ``problems``."""
    return _read(path, _parse_json, "JSON object", problems)


def _parse_json(text: str) -> Any:
    found = json.loads(text)
    if "\\ud" in text.lower():  # half a surrogate pair is a text that no file and no page can hold
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _read_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    return _read(path, _parse_yaml, "mapping", problems)


def _parse_yaml(text: str) -> Any:
    # a run writes none; with them a few lines can stand for a tree without end
    if "*" in text and any(isinstance(each, yaml.AliasEvent) for each in yaml.parse(text, Loader=_Loader)):
        raise ValueError("it has aliases (*name), which no run writes")
    return yaml.load(text, Loader=_Loader)


def _read(path: Path, parse: Callable[[str], Any], kind: str, problems: list[str]) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {_short(error)}")
        return {}
    if isinstance(found, dict):
        return found
    problems.append(f"{path.name} holds no {kind}")
    return {}


def value_at(tree: Any, *keys: str) -> Any:
    """What stands in nested mappings under ``keys``; None where anything on the way is missing."""
    for key in keys:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def number_at(tree: Any, *keys: str) -> float | None:
    """The number under ``keys``; None for anything else, and for one that no float holds."""
    found = value_at(tree, *keys)
    try:
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    except OverflowError:
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _short(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split())[:200]


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the run's lock; True where that may not be asked, as for somebody else's run."""
    try:
        return is_locked(lock)
    except OSError:
        return True

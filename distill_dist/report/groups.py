"""Runs that differ only in their seed, and in where and how they ran, are one group: what a table's line stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dist.errors import UserError
from distill_dist.report.run_record import RunRecord

# What changes no result but for summation order (DESIGN, invariants 3 and 4): fields, or whole sections.
NOT_COMPARED = (
    "seed",
    "run_dir",
    "deepspeed_config",
    "data.prepared",
    "data.rows_per_shard",
    "student.attention",
    "student.checkpointing",
    "student.compile",
    "teacher.shards",
    "teacher.offload",
    "teacher.prefetch",
    "teacher.deadline_s",
    "teacher.patience_s",
    "teacher.lease_s",
    "teacher.rest_after_s",
    "teacher.check_every_s",
    "teacher.batch_tokens",
    "teacher.cache_mib",
    "teacher.cache_dir",
    "teacher.cache_dir_mib",
    "alignment.probe",
    "alignment.tolerance",
    "curriculum.memory_mib",
    "curriculum.keep_snapshots",
    "curriculum.final_snapshot",
    "batch.micro_tokens",
    "train.resume",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_best",
    "train.background_save",
    "train.log_every",
    "train.trace",
    "evaluate.saliency",
    "evaluate.at_end",
    "evaluate.skip",
    "cluster",
)
# Resolved from weight.kd where they are not set: beside it they say nothing.
_FOLLOW_KD = ("reliance.initial", "reliance.maximum")
_MOST_LINES = 20  # that a message names
_LONGEST = 40  # characters of a value in a label: of a path its end tells


@dataclass(frozen=True)
class Group:
    """Runs of one table and one configuration but for the seed. ``label`` tells it from the others of its table."""

    task: str
    method: str
    label: str
    runs: tuple[RunRecord, ...]

    def by_seed(self, values: Mapping[Path, float]) -> dict[int, float]:
        """Seed -> mean of ``values`` (by run folder) over its runs; runs without a value or a seed are left out."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            if run.seed is not None and run.path in values:
                found.setdefault(run.seed, []).append(values[run.path])
        return {seed: sum(each) / len(each) for seed, each in found.items()}


def group_runs(records: Sequence[RunRecord]) -> list[Group]:
    """The groups, table by table, in the order in which their first run stands in ``records``."""
    leaves = {record.path: _compared(record) for record in records}
    members: dict[str, list[RunRecord]] = {}
    for record in records:
        key = json.dumps([_table(record), record.method, leaves[record.path]], sort_keys=True, default=str)
        members.setdefault(key, []).append(record)
    firsts = [runs[0] for runs in members.values()]
    found = []
    for runs in members.values():
        first = runs[0]
        rivals = [
            leaves[other.path]
            for other in firsts
            if (_table(other), other.label) == (_table(first), first.label)
        ]
        label = _label(first.label, leaves[first.path], rivals)
        found.append(Group(_table(first), first.method, label, tuple(runs)))
    tasks = list(dict.fromkeys(group.task for group in found))
    return sorted(found, key=lambda group: tasks.index(group.task))


def _table(record: RunRecord) -> str:
    return record.table or record.task


def _compared(record: RunRecord) -> dict[str, Any]:
    """Dotted key -> value of what makes runs comparable; without a configuration the run stands for itself."""
    if not record.config:
        return {"": str(record.path)}
    return {key: value for key, value in said_fields(record.config).items() if not _is_left_out(key)}


def said_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a resolved configuration, without what follows from other fields or is not read."""
    found = flatten(config)
    for key in _FOLLOW_KD:
        if found.get(key) == found.get("weight.kd"):
            found.pop(key, None)
    if found.get("student.path") and found.get("student.architecture") != "electra":
        found = {key: value for key, value in found.items() if not key.startswith("student.shape.")}
    return found


def _is_left_out(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NOT_COMPARED)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted key -> value; lists are values."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found.update(flatten(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def _label(name: str, mine: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> str:
    """The name, and where others of its table have the same one, the fields in which they differ."""
    keys = dict.fromkeys(key for rival in rivals for key in rival)
    differ = [key for key in keys if len({repr(rival.get(key)) for rival in rivals}) > 1]
    said = [f"{key}={_shown(mine[key])}" if key else _shown(mine[key]) for key in differ if key in mine]
    return " · ".join([name, *said])


def differences(group: Group, other: Group) -> list[tuple[str, str, str]]:
    """(field, value in ``group``, value in ``other``) wherever their configurations differ, but for the label."""
    ours, theirs = (_compared(each.runs[0]) for each in (group, other))
    keys = [key for key in dict.fromkeys((*ours, *theirs)) if key not in ("", "label")]

    def shown(leaves: Mapping[str, Any], key: str) -> str:
        return _shown(leaves[key]) if key in leaves else "–"

    return [
        (key, shown(ours, key), shown(theirs, key))
        for key in keys
        if repr(ours.get(key)) != repr(theirs.get(key))
    ]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST + 1 :]


def pick_baselines(groups: Sequence[Group], wanted: str) -> dict[str, Group]:
    """Task -> the group that ``wanted`` names in it: a label, a method, or the folder of one of its runs.

    Tasks without it are left out. Raises UserError where no task has it, or a method names several groups of a task.
    """
    found: dict[str, Group] = {}
    for task in dict.fromkeys(group.task for group in groups):
        ours = [group for group in groups if group.task == task]
        for matching in (
            [group for group in ours if group.label == wanted],
            [group for group in ours if any(_is_folder(run, wanted) for run in group.runs)],
            [group for group in ours if group.runs[0].label == wanted],
            [group for group in ours if group.method == wanted],
        ):
            if len(matching) > 1:
                labels = "; ".join(f"{group.label!r}" for group in matching[:10])
                raise UserError(
                    f"--baseline {wanted} names {len(matching)} configurations of {task}: give the folder of a run of "
                    f"one of them, or its name in full ({labels}); `label` in a configuration gives it a short one"
                )
            if matching:
                found[task] = matching[0]
                break
    if not found:
        if Path(wanted).is_dir():
            raise UserError(
                f"--baseline {wanted}: it is not among the runs of this report: name it beside them"
            )
        methods = sorted({group.method for group in groups})
        lines = sorted({group.label for group in groups} - set(methods))
        more = f" and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
        named = f" ({'; '.join(map(repr, lines[:_MOST_LINES]))}{more})" if lines else ""
        raise UserError(
            f"--baseline {wanted}: no such method ({', '.join(methods)}), line of the table{named} or run folder "
            "among these runs"
        )
    return found


def _is_folder(run: RunRecord, wanted: str) -> bool:
    if run.path.name == wanted or str(run.path) == wanted.rstrip("/"):
        return True
    return Path(wanted).exists() and Path(wanted).resolve() == run.path.resolve()

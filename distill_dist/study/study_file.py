"""A study as a YAML file: teachers, arms (what is compared), blocks (a student on a task), and what is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill_dist.config.split_names import split_name_problem
from distill_dist.errors import UserError
from distill_dist.sweep.sweep_file import flow

_STUDY = ("out", "teachers", "arms", "blocks", "evaluate", "report")
_BLOCK = ("config", "teacher", "arms", "seeds", "tune", "tuned_as")
_TUNE = ("arm", "grid", "seeds", "used_by")


@dataclass(frozen=True)
class Tune:
    """``grid`` over fields of ``arm``; the best values, by the split that selects, go to ``used_by`` as well."""

    arm: str
    grid: tuple[tuple[str, tuple[str, ...]], ...]
    seeds: tuple[int, ...]
    used_by: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One student on one task: its ``arms``, each with every seed. ``tuned_as``: takes the values of another block."""

    name: str
    config: Path
    teacher: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    tune: tuple[Tune, ...]
    tuned_as: str


@dataclass(frozen=True)
class Study:
    """What a file says. ``arms``: fields as on a command line. Paths of configurations are relative to the file."""

    path: Path
    out: Path
    teachers: Mapping[str, Path]
    arms: Mapping[str, tuple[str, ...]]
    blocks: tuple[Block, ...]
    splits: tuple[str, ...]
    saliency_rows: int
    baseline: str
    split: str

    def block(self, name: str) -> Block:
        """The one of that name."""
        return next(block for block in self.blocks if block.name == name)


class _EachKeyOnce(yaml.BaseLoader):
    """Of two equal keys the first would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """See yaml; ConstructorError where a key stands twice."""
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_study(path: Path) -> Study:
    """The study at ``path``. Raises UserError that names the place."""
    try:
        # BaseLoader: every value is the text that stands there, as on a command line
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_EachKeyOnce)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"study {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"study {path}: not valid YAML: {' '.join(str(error).split())}") from None
    return _Reader(path).study(tree)


@dataclass(frozen=True)
class _Reader:
    path: Path

    def study(self, tree: Any) -> Study:
        self._check_keys("", tree, _STUDY, required=("out", "arms", "blocks"))
        teachers = {
            name: self.path.parent / self._text(f"teachers.{name}", value)
            for name, value in self._mapping("teachers", tree.get("teachers", {})).items()
        }
        arms = {
            name: tuple(
                f"{key}={flow(value)}" for key, value in self._mapping(f"arms.{name}", fields).items()
            )
            for name, fields in self._mapping("arms", tree["arms"]).items()
        }
        for name in (*teachers, *arms):
            self._check_name(name)
        blocks: list[Block] = []
        for name, block in self._mapping("blocks", tree["blocks"]).items():
            self._check_name(name)
            blocks.append(self._block(name, block, teachers, arms, blocks))
        if not blocks:
            raise self._error("blocks", "name at least one")
        evaluate, report = tree.get("evaluate", {}), tree.get("report", {})
        self._check_keys("evaluate", evaluate, ("splits", "saliency_rows"))
        self._check_keys("report", report, ("baseline", "split"))
        baseline = self._text("report.baseline", report["baseline"]) if "baseline" in report else ""
        compared = dict.fromkeys(arm for block in blocks for arm in block.arms)
        if baseline and baseline not in compared:
            raise self._error(
                "report.baseline", f"{baseline!r} is no block's arm; they have {', '.join(compared)}"
            )
        return Study(
            path=self.path,
            out=Path(self._text("out", tree["out"])),
            teachers=teachers,
            arms=arms,
            blocks=tuple(blocks),
            splits=self._texts("evaluate.splits", evaluate.get("splits", ["dev"])),
            saliency_rows=self._number("evaluate.saliency_rows", evaluate.get("saliency_rows", "0")),
            baseline=baseline,
            split=self._text("report.split", report.get("split", "dev")),
        )

    def _block(
        self,
        name: str,
        tree: Any,
        teachers: Mapping[str, Path],
        arms: Mapping[str, Any],
        before: Sequence[Block],
    ) -> Block:
        where = f"blocks.{name}"
        self._check_keys(where, tree, _BLOCK, required=("config", "seeds"))
        teacher = self._text(f"{where}.teacher", tree["teacher"]) if "teacher" in tree else ""
        if teacher and teacher not in teachers:
            raise self._error(f"{where}.teacher", f"{teacher!r} is none of teachers ({', '.join(teachers)})")
        own = self._arms(f"{where}.arms", tree.get("arms", list(arms)), arms)
        tune = tuple(
            self._tune(f"{where}.tune", step, arms, own)
            for step in self._list(f"{where}.tune", tree.get("tune", []))
        )
        tuned_as = self._text(f"{where}.tuned_as", tree["tuned_as"]) if "tuned_as" in tree else ""
        if tuned_as and (tune or tuned_as not in {block.name for block in before if block.tune}):
            there = ", ".join(block.name for block in before if block.tune) or "none"
            raise self._error(
                f"{where}.tuned_as", f"a block above that tunes ({there}), and no tune of its own"
            )
        seeds = self._seeds(f"{where}.seeds", tree["seeds"])
        config = self.path.parent / self._text(f"{where}.config", tree["config"])
        return Block(name, config, teacher, own, seeds, tune, tuned_as)

    def _tune(self, where: str, tree: Any, arms: Mapping[str, Any], own: Sequence[str]) -> Tune:
        self._check_keys(where, tree, _TUNE, required=("arm", "grid"))
        (arm,) = self._arms(f"{where}.arm", [tree["arm"]], arms)
        grid = tuple(
            (key, tuple(map(flow, self._list(f"{where}.grid.{key}", values))))
            for key, values in self._mapping(f"{where}.grid", tree["grid"]).items()
        )
        if not grid or not all(values for _, values in grid):
            raise self._error(
                f"{where}.grid", "fields with a list of values each, e.g. weight.kd: [0.3, 0.6]"
            )
        used_by = self._arms(f"{where}.used_by", tree.get("used_by", []), arms)
        if strange := [each for each in used_by if each not in own]:
            raise self._error(f"{where}.used_by", f"{strange[0]} is no arm of this block")
        return Tune(arm, grid, self._seeds(f"{where}.seeds", tree.get("seeds", ["0"])), (arm, *used_by))

    def _arms(self, where: str, names: Any, arms: Mapping[str, Any]) -> tuple[str, ...]:
        found = self._texts(where, names)
        for name in found:
            if name not in arms:
                raise self._error(where, f"{name!r} is no arm; there are {', '.join(arms)}")
        if len(set(found)) < len(found):
            raise self._error(where, "an arm is named twice")
        return found

    def _seeds(self, where: str, values: Any) -> tuple[int, ...]:
        found = tuple(self._number(where, value) for value in self._list(where, values))
        if not found or len(set(found)) < len(found):
            raise self._error(where, "at least one seed, none of them twice")
        return found

    def _check_keys(self, where: str, tree: Any, keys: Sequence[str], required: Sequence[str] = ()) -> None:
        for key in self._mapping(where, tree):
            if key not in keys:
                raise self._error(where, f"{key}: no such key; it takes {', '.join(keys)}")
        for key in required:
            if key not in tree:
                raise self._error(where, f"{key} is missing")

    def _check_name(self, name: str) -> None:
        # folders are called so, as splits' are
        if problem := split_name_problem(name):
            raise self._error("", problem)

    def _mapping(self, where: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self._error(where, "names with a value each are needed")
        return value

    def _list(self, where: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self._error(where, "a list is needed, [a, b]")
        return value

    def _texts(self, where: str, value: Any) -> tuple[str, ...]:
        return tuple(self._text(where, each) for each in self._list(where, value))

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self._error(where, "a name is needed")
        return value

    def _number(self, where: str, value: Any) -> int:
        if not (isinstance(value, str) and value.isascii() and value.isdigit() and int(value) < 2**32):
            raise self._error(where, f"{value!r} is no whole number from 0 to {2**32 - 1}")
        return int(value)

    def _error(self, where: str, text: str) -> UserError:
        return UserError(f"study {self.path}: {where}: {text}" if where else f"study {self.path}: {text}")

"""DESIGN.md's import rules, read from the source: layers, owners of libraries, what stays torch-free.

A new module of ``distill_dist`` takes its layer in ``LAYERS``; the rest changes with DESIGN.md only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "distill_dist"

LAYERS = {
    0: (
        "records",
        "accumulate",
        "config",
        "comm",
        "errors",
        "durable",
        "hub",
        "command_line",
        "console",
        "stop_signal",
        "children",
        "background",
        "invocation",
        "extras",
        "one_writer",
    ),
    1: (
        "data",
        "curriculum",
        "objectives",
        "models",
        "engine",
        "telemetry",
        "checkpoint",
        "schedule",
        "run_folder",
        "slurm",
    ),
    2: ("teacher", "student", "evaluation", "report", "trace", "export"),
    3: ("trainer", "probe"),
    4: ("assemble", "sweep"),
    5: ("study", "bench"),
    6: ("launcher",),  # a folder of its own beside the package
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
# the hooks live in models; a report reads what an evaluation wrote, and draws its rows anew
SIBLINGS = {("objectives", "models"), ("report", "evaluation")}

# library -> the one place that may import it
OWNERS = {
    "torch.distributed": "comm",
    "deepspeed": "engine",
    "tensorboard": "telemetry",
    "tensorboardX": "telemetry",
    "torch.utils.tensorboard": "telemetry",
    "webdataset": "data",
    "omegaconf": "config",
}
# What a benchmark compares with, it imports.
MEASURED = {("deepspeed", "distill_dist.bench.deepspeed_side")}
# What telemetry wrote is read without torch, which telemetry imports.
READ_BACK = {("tensorboard", "distill_dist.report.points")}
# These start before torch does (--help, config errors), or must stay pure integers.
TORCH_FREE = ("config", "curriculum", "errors", "durable", "hub", "command_line", "slurm", "sweep", "report")


@dataclass(frozen=True)
class Use:
    """One import (or ``torch.distributed`` by attribute): dotted name, line, whether in a function."""

    name: str
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """One source file: dotted name, and the top-level part (a layer's name) that owns it."""

    path: Path
    name: str
    owner: str
    uses: tuple[Use, ...]


def modules_of(root: Path) -> list[Module]:
    files = [*sorted((root / PACKAGE).rglob("*.py")), *sorted((root / "launcher").rglob("*.py"))]
    return [_module(root, path) for path in files]


def _module(root: Path, path: Path) -> Module:
    parts = list(path.relative_to(root).with_suffix("").parts)
    package = parts[:-1]
    if parts[-1] == "__init__":
        parts = package
    owner = "launcher" if parts[0] == "launcher" else (parts[1] if len(parts) > 1 else "")
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return Module(path.relative_to(root), ".".join(parts), owner, tuple(_uses(tree, package)))


def _uses(node: ast.AST, package: list[str], in_function: bool = False) -> Iterator[Use]:
    for child in ast.iter_child_nodes(node):
        for name in _names(child, package):
            yield Use(name, child.lineno, in_function)  # type: ignore[attr-defined]
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _uses(child, package, in_function or function)


def _names(node: ast.AST, package: list[str]) -> list[str]:
    match node:
        case ast.Import(names=aliases):
            return [alias.name for alias in aliases]
        case ast.ImportFrom(module=source, names=aliases, level=level):
            base = package[: len(package) - level + 1] if level else []
            prefix = ".".join([*base, *([source] if source else [])])
            return [f"{prefix}.{alias.name}" for alias in aliases]
        case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
            return ["torch.distributed"]
        case ast.Call(
            func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
    return []


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def violations(root: Path) -> list[str]:
    """Every broken rule as ``file:line: rule``."""
    modules = modules_of(root)
    found = []
    for module in modules:
        if module.owner and module.owner not in LAYER_OF:
            found.append(f"{module.path}:1: '{module.owner}' has no layer: give it one in LAYERS (DESIGN.md)")
            continue
        for use in module.uses:
            rules = (_layer_rule(module, use), _function_rule(module, use), _owner_rule(module, use))
            found += [f"{module.path}:{use.line}: {rule}" for rule in rules if rule]
        found += _torch_rule(module, {other.name: other for other in modules})
    return found


def _layer_rule(module: Module, use: Use) -> str | None:
    if within(use.name, "launcher"):
        return f"{use.name} is a script: nothing imports it"
    if not within(use.name, PACKAGE) or use.name == PACKAGE:
        return None
    target = use.name.split(".")[1]
    if target not in LAYER_OF:
        return None if module.owner else f"{PACKAGE} itself imports nothing"
    if target == module.owner or (module.owner, target) in SIBLINGS:
        return None
    mine, theirs = LAYER_OF.get(module.owner, -1), LAYER_OF[target]
    if theirs > mine:
        return f"{module.owner or PACKAGE} (layer {mine}) imports {target} (layer {theirs}): upwards"
    if theirs == mine and mine > 0:
        return f"{module.owner} imports {target}: parts of layer {mine} do not import each other"
    return None


def _function_rule(module: Module, use: Use) -> str | None:
    if module.owner == "launcher" and use.name.startswith((f"{PACKAGE}.assemble.", f"{PACKAGE}.bench.")):
        return None  # a wrong key answers at once; torch and DeepSpeed take seconds to import
    if use.in_function and within(use.name, PACKAGE):
        return f"{use.name} is imported inside a function: our own modules are imported at the top"
    return None


def _owner_rule(module: Module, use: Use) -> str | None:
    for library, owner in OWNERS.items():
        allowed = module.owner == owner or (library, module.name) in MEASURED | READ_BACK
        if within(use.name, library) and not allowed:
            return f"{library} is imported outside {PACKAGE}/{owner}"
    return None


def _torch_rule(module: Module, by_name: dict[str, Module]) -> list[str]:
    """Torch-free parts import torch neither themselves nor through our own modules."""
    if module.owner not in TORCH_FREE:
        return []
    found = []
    for use in module.uses:
        chain = _way_to_torch(use.name, by_name, seen={module.name})
        if chain:
            found.append(
                f"{module.path}:{use.line}: {module.owner} must stay free of torch: {' -> '.join(chain)}"
            )
    return found


def _way_to_torch(name: str, by_name: dict[str, Module], *, seen: set[str]) -> list[str]:
    if within(name, "torch"):
        return ["torch"]
    parts = name.split(".")
    for prefix in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):  # packages run their __init__
        if prefix not in by_name or prefix in seen:
            continue
        seen.add(prefix)
        for use in by_name[prefix].uses:
            chain = _way_to_torch(use.name, by_name, seen=seen)
            if chain:
                return [prefix, *chain]
    return []


def test_the_tree_keeps_the_rules() -> None:
    modules = modules_of(ROOT)
    assert {"records", "config", "data"} <= {module.owner for module in modules}, "read the wrong folder"
    broken = violations(ROOT)
    assert not broken, "\n" + "\n".join(broken)


def plant(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


GOOD = {
    "distill_dist/__init__.py": "",
    "distill_dist/records.py": "import torch\n",
    "distill_dist/errors.py": "import os\n",
    "distill_dist/config/__init__.py": "from distill_dist.errors import UserError\nimport omegaconf\n",
    "distill_dist/comm/groups.py": "import torch.distributed as dist\nfrom torch.distributed import rpc\n",
    "distill_dist/data/loader.py": "from distill_dist.records import Batch\nfrom .shards import read\n",
    "distill_dist/data/shards.py": "import webdataset\nfrom . import loader\n",
    "distill_dist/models/hooks.py": "import torch\n",
    "distill_dist/objectives/alignment.py": "from distill_dist.models import hooks\n",
    "distill_dist/engine.py": "def f():\n    import deepspeed\n",
    "distill_dist/telemetry.py": "from torch.utils.tensorboard import SummaryWriter\n",
    "distill_dist/trainer.py": "from distill_dist.engine import f\nimport torch.distributions\n",
    "launcher/train.py": "from distill_dist.assemble import run\nfrom distill_dist.config import load\n",
}


def test_a_good_tree_passes(tmp_path: Path) -> None:
    plant(tmp_path, GOOD)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        (
            "records.py",
            "import os\nfrom distill_dist.data import x",
            "records.py:2: records (layer 0) imports data",
        ),
        (
            "data/x.py",
            "from distill_dist.trainer import f",
            "data/x.py:1: data (layer 1) imports trainer (layer 3)",
        ),
        ("data/x.py", "from ..trainer import f", "data (layer 1) imports trainer (layer 3): upwards"),
        ("data/x.py", "from .. import trainer", "data (layer 1) imports trainer (layer 3): upwards"),
        ("data/__init__.py", "from ..trainer import f", "data (layer 1) imports trainer (layer 3): upwards"),
        ("data/x.py", "import distill_dist.curriculum.order", "data imports curriculum: parts of layer 1"),
        (
            "models/x.py",
            "from distill_dist.objectives import x",
            "models imports objectives: parts of layer 1",
        ),
        ("teacher/x.py", "from distill_dist import student", "teacher imports student: parts of layer 2"),
        (
            "trainer.py",
            "import distill_dist.assemble",
            "trainer (layer 3) imports assemble (layer 4): upwards",
        ),
        ("data/x.py", "import launcher.train", "launcher.train is a script"),
        ("__init__.py", "from distill_dist.errors import UserError", "imports errors (layer 0): upwards"),
        ("utils.py", "", "utils.py:1: 'utils' has no layer"),
        (
            "data/x.py",
            "class A:\n  def f(self):\n    from distill_dist import errors",
            "x.py:3: distill_dist.errors is",
        ),
        ("data/x.py", "import torch.distributed", "torch.distributed is imported outside distill_dist/comm"),
        ("data/x.py", "from torch import distributed as d", "torch.distributed is imported outside"),
        (
            "data/x.py",
            "import torch\ntorch.distributed.barrier()",
            "x.py:2: torch.distributed is imported outside",
        ),
        (
            "data/x.py",
            "def f():\n  import deepspeed.comm",
            "x.py:2: deepspeed is imported outside distill_dist/engine",
        ),
        (
            "data/x.py",
            "import importlib\nimportlib.import_module('deepspeed')",
            "x.py:2: deepspeed is imported",
        ),
        ("trainer.py", "from torch.utils import tensorboard", "torch.utils.tensorboard is imported outside"),
        ("teacher/x.py", "import webdataset as wds", "webdataset is imported outside distill_dist/data"),
        ("data/x.py", "from omegaconf import OmegaConf", "omegaconf is imported outside distill_dist/config"),
        (
            "curriculum/x.py",
            "import numpy\nimport torch.nn",
            "x.py:2: curriculum must stay free of torch: torch",
        ),
        (
            "config/x.py",
            "from distill_dist.records import Batch",
            "free of torch: distill_dist.records -> torch",
        ),
        ("../launcher/x.py", "import deepspeed", "deepspeed is imported outside distill_dist/engine"),
        ("../launcher/x.py", "import torch.distributed", "torch.distributed is imported outside"),
    ],
)
def test_a_planted_violation_is_named(tmp_path: Path, file: str, source: str, expected: str) -> None:
    plant(tmp_path, GOOD)
    plant(tmp_path, {f"distill_dist/{file}": source})
    found = violations(tmp_path)
    assert any(expected in line for line in found), found

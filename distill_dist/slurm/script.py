"""What a job script of slurm/ asks of Slurm, and what it would run, read without running it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.errors import UserError

# Above it a script holds options and assignments only; below it all are the same.
MARKER = "# ---- from here on all scripts of this folder are the same ----"
_EVALUATE_S = 10.0
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?")


@dataclass(frozen=True)
class Part:
    """Equal nodes of a job; a heterogeneous one has several parts. Counts per node."""

    nodes: tuple[int, ...]  # from the fewest to the most that the job starts with
    tasks: int
    gpus: int


@dataclass(frozen=True)
class JobScript:
    """``parts``: the options of each, by name, without the leading dashes."""

    text: str
    parts: tuple[dict[str, str], ...]

    @property
    def array(self) -> tuple[int, ...]:
        """Numbers of an array's tasks; empty where it is none."""
        return _numbers(self.parts[0]["array"]) if "array" in self.parts[0] else ()

    def shape(self) -> tuple[Part, ...]:
        """Nodes, tasks and GPUs of every part. Raises UserError."""
        return tuple(_part(options) for options in self.parts)


@dataclass(frozen=True)
class Chosen:
    """What a script's first part sets."""

    config: str
    run_dir: str
    settings: tuple[str, ...]


def read_script(path: Path, options: Sequence[str] = ()) -> JobScript:
    """The script at ``path``; ``options`` (`--nodes=5`) come on top, for the first part. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; slurm/ has scripts to start from") from None
    if MARKER not in text.splitlines():
        raise UserError(f"{path} has no line `{MARKER}`: start from one of the scripts in slurm/")
    parts: list[dict[str, str]] = [{}]
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break  # where sbatch stops reading
        if line.startswith("#SBATCH "):
            words = line.removeprefix("#SBATCH ").split(" #")[0].split()
            if words == ["hetjob"]:
                parts.append({})
                continue
            parts[-1].update(_option(word, str(path)) for word in words)
    parts[0].update(_option(word, "--sbatch") for word in options)
    return JobScript(text, tuple(parts))


def _option(word: str, where: str) -> tuple[str, str]:
    found = _OPTION.fullmatch(word)
    if found is None:
        raise UserError(f"{where}: '{word}': write Slurm's options in their long form, --name=value")
    return found[1], found[2] or ""


def _part(options: Mapping[str, str]) -> Part:
    nodes = options.get("nodes", "1")
    low, _, high = nodes.partition("-")
    fewest = _count("nodes", low, 1)
    most = _count("nodes", high, 1) if high else fewest
    if fewest > most:
        raise UserError(f"--nodes={nodes}: the first number is above the second")
    gpus = options.get("gpus-per-node", "0").rpartition(":")[2]  # a100:4
    return Part(
        tuple(range(fewest, most + 1)),
        tasks=_count("ntasks-per-node", options.get("ntasks-per-node", "1"), 1),
        gpus=_count("gpus-per-node", gpus, 0),
    )


def _count(name: str, text: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < least:
        raise UserError(f"--{name}: '{text}' is no whole number from {least}")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    """`0-8:4,11%2` is (0, 4, 8, 11)."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6})(?::([0-9]{1,6}))?)?", part)
        if match is None or match[3] in ("0", "00"):
            raise UserError(f"--array={text}: '{part}' is no task and no range of tasks")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UserError(f"--array={text}: the first number of '{part}' is above the second")
        found += range(first, last + 1, int(match[3] or 1))
    return tuple(found)


def choose(script: JobScript, environment: Mapping[str, str], *, task: int | None = None) -> Chosen:
    """What the script's own lines above the marker set for ``task``, found by bash. Raises UserError.

    Those lines are the user's; they define and start nothing.
    """
    block = script.text.split(MARKER)[0]
    show = f'{block}\nprintf "%s\\0" "$config" "$run_dir" "${{settings[@]}}"\n'
    own = {} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)}
    try:
        done = subprocess.run(
            ["bash", "-u", "-c", show], env={**environment, **own},
            capture_output=True, timeout=_EVALUATE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"the script's first part did not end within {_EVALUATE_S:.0f} s") from None
    if done.returncode:
        raise UserError(f"the script's first part fails: {done.stderr.decode(errors='replace').strip()}")
    config, run_dir, *settings = done.stdout.decode().split("\0")[:-1]
    return Chosen(config, run_dir, tuple(settings))

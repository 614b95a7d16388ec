"""What a sweep varies: every combination of a grid, for each of a number of random draws."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from distill_dist.config.fields import nearest_key, schema_fields
from distill_dist.errors import UserError

# A draw that equals an earlier one is drawn again so often, before the distributions are found to be too small.
MOST_REDRAWS = 1000
# What every trial has of its own, or all of them together.
_OF_THE_SWEEP = ("run_dir", "teacher.cache_dir", "train.resume", "evaluate.select_on")
_DIGITS = 6  # of a drawn number: what stands in a folder's name is what is computed with
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)


@dataclass(frozen=True)
class Distribution:
    """Of one field: `uniform` or `loguniform` numbers, an `int` from a to b, a `choice` among texts."""

    kind: str
    low: float = 0.0
    high: float = 0.0
    options: tuple[str, ...] = ()

    def draw(self, source: random.Random) -> str:
        """One value, as it is written on the command line."""
        if self.kind == "choice":
            return source.choice(self.options)
        if self.kind == "int":
            return str(source.randint(int(self.low), int(self.high)))
        if self.kind == "loguniform":
            return f"{math.exp(source.uniform(math.log(self.low), math.log(self.high))):.{_DIGITS}g}"
        return f"{source.uniform(self.low, self.high):.{_DIGITS}g}"


@dataclass(frozen=True)
class Space:
    """``grid``: values of each field, as they are written. ``draws``: how often ``random`` is drawn, from ``seed``."""

    grid: Mapping[str, tuple[str, ...]]
    random: Mapping[str, Distribution]
    draws: int = 1
    seed: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """All that is varied, in the order given; `seed` last, so that the runs of a group stand together."""
        return tuple(sorted((*self.random, *self.grid), key=lambda key: key == "seed"))

    def points(self) -> list[dict[str, str]]:
        """The values of every trial by field. A draw depends on ``seed``, its number and the field alone.

        Raises UserError where ``random`` has fewer different draws than are asked for.
        """
        grid = sorted(self.grid.items(), key=lambda item: item[0] == "seed")
        return [
            {key: values[key] for key in self.fields}
            for drawn in self._draws()
            for chosen in product(*(options for _, options in grid))
            for values in ({**drawn, **dict(zip((key for key, _ in grid), chosen, strict=True))},)
        ]

    def _draws(self) -> Iterator[dict[str, str]]:
        seen: set[tuple[str, ...]] = set()
        for number in range(self.draws):
            for attempt in range(MOST_REDRAWS):
                found = {
                    # a text as seed is hashed by SHA-512: the same on every machine and version
                    key: each.draw(random.Random(f"{self.seed}/{number}/{attempt}/{key}"))
                    for key, each in self.random.items()
                }
                if tuple(found.values()) not in seen:
                    break
            else:
                raise UserError(
                    f"trials={self.draws}, but the distributions of {', '.join(self.random)} gave only {len(seen)} "
                    "different draws: take fewer trials, or a --grid"
                )
            seen.add(tuple(found.values()))
            yield found


def build_space(
    grid: Sequence[tuple[str, str]], random: Sequence[tuple[str, str]], *, trials: int | None, seed: int
) -> Space:
    """The space of (field, text) pairs: `a,b` for the grid, `loguniform(1e-5,1e-3)` for the rest. Raises UserError."""
    for key, _ in (*grid, *random):
        _check_field(key)
    keys = [key for key, _ in (*grid, *random)]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"{twice} is varied twice: name it once, with all its values")
    if not keys:
        raise UserError("nothing is varied: add --grid field=a,b or --random field=uniform(a,b)")
    if random and trials is None:
        raise UserError("--random needs the number of draws: --trials N")
    if not random and trials is not None:
        raise UserError(
            f"trials={trials} counts random draws, and none is drawn: add --random, or leave it away"
        )
    if trials is not None and trials < 1:
        raise UserError(f"trials={trials}: at least 1")
    return Space(
        grid={key: _values(f"--grid {key}", text) for key, text in grid},
        random={key: _distribution(key, text) for key, text in random},
        draws=trials or 1,
        seed=seed,
    )


def _check_field(key: str) -> None:
    if key in _OF_THE_SWEEP:
        raise UserError(f"{key} cannot be varied: the sweep sets it for its trials")
    if key not in schema_fields():
        near = nearest_key(key)
        raise UserError(f"{key}: no such field" + (f"; nearest valid name: {near}" if near else ""))


def _values(where: str, text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in split_values(text))
    if not all(found):
        raise UserError(f"{where}={text}: a value is missing; write {where}=a,b")
    return found


def split_values(text: str) -> list[str]:
    """``text`` cut at its commas, but for those in brackets or quotes: `[1,2],[3,4]` is two values."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _distribution(key: str, text: str) -> Distribution:
    where = f"--random {key}={text}"
    call = _CALL.fullmatch(text)
    if call is None or call[1] not in ("uniform", "loguniform", "int", "choice"):
        raise UserError(f"{where}: write uniform(a,b), loguniform(a,b), int(a,b) or choice(a,b,…)")
    kind, values = call[1], _values(f"--random {key}", call[2])
    if kind == "choice":
        return Distribution(kind, options=values)
    number = int if kind == "int" else float
    try:
        low, high = (number(value) for value in values)
    except ValueError:
        what = "two whole numbers" if kind == "int" else "two numbers"
        raise UserError(f"{where}: {kind} takes {what}, the lowest and the highest") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{where}: the first number must be below the second")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{where}: the first number must be above 0, for it has a logarithm")
    return Distribution(kind, low, high)

"""A configuration that is good, and others a few values away from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill_dist.config.check import Need, check_config
from distill_dist.config.load import resolve_defaults
from distill_dist.config.schema import RunConfig


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """``config`` with dotted keys set."""

    def put(node: Any, names: list[str], value: Any) -> Any:
        inner = put(getattr(node, names[0]), names[1:], value) if len(names) > 1 else value
        return replace(node, **{names[0]: inner})

    for key, value in values.items():
        config = put(config, key.split("."), value)
    return config


GOOD = with_values(
    RunConfig(),
    {
        "method": "gkd_cls",
        "run_dir": "runs/x",
        "data.source": "tsv",
        "data.task": "sst2",
        "data.path": "rows",
        "data.tokenizer": "tok",
        "data.prepared": "prepared/x",
        "student.path": "teacher",
        "student.layers": 3,
        "teacher.path": "teacher",
    },
)


def good_with(values: dict[str, Any]) -> RunConfig:
    """The good tree with ``values``, and what its method derives from them."""
    return resolve_defaults(with_values(GOOD, values))


def problems(values: dict[str, Any], need: Need = "train") -> list[str]:
    """What is said of it."""
    return check_config(good_with(values), need=need)

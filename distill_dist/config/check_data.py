"""Rules of the section `data`: sources, splits and columns."""

from __future__ import annotations

from collections.abc import Iterator

from distill_dist.config.fields import describe_problem, value_at
from distill_dist.config.schema import RunConfig
from distill_dist.config.split_names import split_name_problem

MOST_HELD_OUT = 100


def check_data(config: RunConfig) -> Iterator[str]:
    """One line per problem of the section `data`, and of the names of its splits elsewhere."""
    data = config.data
    if data.source != "synthetic_nli":
        if not data.path:
            yield describe_problem(config, "data.path", f"required with data.source: {data.source}")
        if not data.tokenizer:
            yield describe_problem(config, "data.tokenizer", f"required with data.source: {data.source}")
    yield from _splits(config)
    yield from _columns(config)


def _splits(config: RunConfig) -> Iterator[str]:
    data, evaluate = config.data, config.evaluate
    all_splits = (*data.splits, *data.hold_out)
    if "train" not in data.splits:
        yield describe_problem(config, "data.splits", "'train' is missing")
    if "dev" not in all_splits:
        yield describe_problem(
            config,
            "data.splits",
            "'dev' is missing; take it out of train where there is none: data.hold_out.dev=1000",
        )
    for key, all_names in (("data.splits", data.splits.keys()), ("data.hold_out", data.hold_out.keys())):
        for problem in filter(None, map(split_name_problem, all_names)):
            yield describe_problem(config, key, problem)
    for split, place in data.splits.items():
        if not place:
            yield describe_problem(config, "data.splits", f"'{split}' names no file or split")
    if both := data.splits.keys() & data.hold_out.keys():
        yield describe_problem(
            config, "data.hold_out", f"{min(both)} stands in data.splits as well: one place makes it"
        )
    if len(data.hold_out) > MOST_HELD_OUT:
        yield describe_problem(config, "data.hold_out", f"at most {MOST_HELD_OUT} splits")
    named = {"select_on": (evaluate.select_on,), "at_end": evaluate.at_end, "skip": evaluate.skip}
    for key, names in ((f"evaluate.{field}", names) for field, names in named.items()):
        for name in names:
            if name == "dev" and key == "evaluate.select_on":
                continue  # that it is missing is said above
            if name == "train" or name not in all_splits:
                there = ", ".join(split for split in all_splits if split != "train")
                yield describe_problem(config, key, f"{name!r} is no split that is scored; there are {there}")
    if evaluate.select_on in evaluate.at_end:
        yield describe_problem(
            config, "evaluate.at_end", "evaluate.select_on is needed after every epoch: leave it out"
        )
    if needed := sorted({"dev", evaluate.select_on, *evaluate.at_end} & set(evaluate.skip)):
        yield describe_problem(
            config, "evaluate.skip", f"{needed[0]!r} is scored by the run itself: leave it out here"
        )


def _columns(config: RunConfig) -> Iterator[str]:
    data = config.data
    if len(data.text_columns) > 2 or len(set(data.text_columns)) < len(data.text_columns):
        yield describe_problem(config, "data.text_columns", "one or two different columns")
    if len(set(data.labels)) < len(data.labels) or len(data.labels) == 1:
        yield describe_problem(config, "data.labels", "at least two different class names")
    if data.label_column and data.label_column in data.text_columns:
        yield describe_problem(
            config, "data.label_column", "is one of data.text_columns; name another column"
        )
    if any(label != label.strip() for label in data.labels):
        yield describe_problem(config, "data.labels", "blanks around a name; labels of rows lose them")
    if data.task == "qqp" and len(data.labels) not in (0, 2):
        text = "data.task: qqp is scored by F1, which needs two; take custom for more"
        yield describe_problem(config, "data.labels", text)
    if data.task == "custom" and data.source != "synthetic_nli":
        for key in ("data.text_columns", "data.label_column", "data.labels"):
            if not value_at(config, key):
                yield describe_problem(
                    config, key, "required with data.task: custom (a GLUE task brings its own)"
                )

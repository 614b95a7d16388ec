"""The fields of `data`: rows, where they come from and how they are prepared. See schema.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SyntheticConfig:
    """The generated inference corpus (`data.source: synthetic_nli`)."""

    train_rows: int = 48000
    """Rows of the train split; at least 1."""
    dev_rows: int = 2000
    """Rows of the dev split; at least 1. No row of it stands in train."""
    max_steps: int = 3
    """Largest number of composed steps between premise and hypothesis (a sample's difficulty); 1 to 6."""
    label_noise: float = 0.0
    """Share of train labels replaced by another class; 0 to 1. Dev is never noisy."""
    seed: int = 0
    """Seed of the grammar's draws; independent of the run's seed."""


@dataclass(frozen=True)
class DataConfig:
    """Where the rows come from and how they are prepared."""

    source: Literal["hub", "tsv", "csv", "jsonl", "parquet", "synthetic_nli"] = "hub"
    """`hub`: a data set of the Hugging Face hub or a local folder in its layout. `tsv` is read without
    quoting, as GLUE is written; `csv` with quoting."""
    task: Literal["cola", "sst2", "qqp", "mnli", "qnli", "custom"] = "custom"
    """A GLUE task brings its column names, its label names and its metric (F1 for QQP, Matthews for CoLA)."""
    path: str = ""
    """Hub name, or folder that `splits` are files of. Unused for `synthetic_nli`."""
    name: str = ""
    """Configuration of a hub data set (GLUE: the task's name)."""
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train", "dev": "validation"})
    """Our split -> file below `path`, or split of the hub data set. `train` is trained on, `dev` selects
    the best epoch (by accuracy, QQP by F1; of equal ones the earliest; `evaluate.select_on` names another), further
    ones (`dev_mismatched`) are only scored."""
    hold_out: dict[str, int] = field(default_factory=dict)
    """Our split -> how many rows are drawn out of `train` to become it; at least 1. Equal texts stay together, so that
    nothing of such a split stands in `train`."""
    max_rows: int = 0
    """Most rows of `train` that are kept, a draw of what `hold_out` leaves, equal texts together; 0: all."""
    draw_seed: int = 0
    """Seed of these draws; independent of the run's seed."""
    text_columns: tuple[str, ...] = ()
    """One or two columns of text. Empty: the task's."""
    label_column: str = ""
    """Column of the label: a class name or a class number. Empty: the task's."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their numbers. Empty: the task's."""
    source_column: str = ""
    """Column that says where a row comes from, for `curriculum.stratify: source`; at most 1000 values. Empty: none."""
    tokenizer: str = ""
    """Folder, hub name or `pkg://PACKAGE/FOLDER` of the tokenizer. Empty: the one that `synthetic_nli`
    makes of its own words; required for every other source."""
    max_length: int = 128
    """Longest row in tokens, special tokens included; longer ones are truncated and counted; 8 to 8192."""
    teacher_tokenizer: str = ""
    """Folder, hub name or `pkg://PACKAGE/FOLDER` of the tokenizer of a teacher that has another one than the student,
    say a decoder's: every row is prepared in both. Only logits are learned then. Empty: one serves both."""
    teacher_max_length: int | None = None
    """Longest row in tokens of the teacher's tokenizer; longer ones are truncated and counted; 8 to 8192. None:
    `max_length`."""
    teacher_separator: str = "\n"
    """Put before the second text of a pair where the teacher's tokenizer puts nothing between two texts, as Qwen's;
    as the teacher was fine-tuned. Empty: nothing."""
    prepared: str = ""
    """Folder that `launcher/prepare.py` writes shards to and every other launcher reads. Required."""
    rows_per_shard: int = 8192
    """Rows per tar shard; at least 1."""
    window_shards: int = 0
    """Train on so many shards at a time, read whole and once an epoch, the next ones fetched ahead: for object stores
    and slow disks. 0: any row at any time, by memory map."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at the first bad row and counts all; `skip` leaves them out and lists them in
    `bad_rows.jsonl`."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The generated corpus."""

"""Fields of a run's YAML on the order of rows and on how far each relies on the teacher (see schema.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CurriculumConfig:
    """In which order the rows are trained (METHOD.md §3). Difficulty is 1 − confidence, ranked over all rows."""

    order: Literal["none", "easy_to_hard", "hard_to_easy", "random", "frozen"] = "none"
    """`none`: a new seeded order every epoch, everything admitted. `easy_to_hard` re-sorts every epoch; controls:
    `hard_to_easy`, `random` (the same pacing, ranked by a seeded hash), `frozen` (the first snapshot for ever)."""
    source: Literal["student", "teacher", "file"] = "student"
    """Whose confidence: the `student`'s in earlier epochs (nothing is ranked before the first has ended), the
    `teacher`'s before training, or a `file`'s."""
    score: Literal["pass", "served"] = "pass"
    """`pass`: the frozen student reads every row at the end of an epoch. `served`: what it said while it trained on a
    row; free, but of mixed age, under dropout where that is on, and blind to rows that are not admitted."""
    file: str = ""
    """Confidence of every train row, larger is easier: an `.npy` of numbers [rows], read as float32. Required with
    `source: file`."""
    measure: Literal["true_probability", "max_probability", "margin", "entropy", "loss"] = "true_probability"
    """Confidence: p of the true class, the largest p, the two largest ones' difference, −entropy
    or −cross-entropy."""
    smoothing: float = 0.5
    """Weight of the earlier snapshots' average in a score (exponential moving average); 0 to below 1."""
    unscored: Literal["hardest", "easiest"] = "hardest"
    """Where rows without a score stand (NaN, or never served); they are counted."""
    pacing: Literal[
        "none",
        "linear",
        "quadratic",
        "root",
        "step",
        "exponential",
        "logarithmic",
        "competence",
        "fixed_exponential",
    ] = "linear"
    """How the share of admitted rows grows with the optimizer steps; `none`: everything is in from the start."""
    start: float | None = None
    """b: share admitted at the start; above 0, to 1. None: 0.01 for `competence`, 0.04 for
    `fixed_exponential`, else 0.2."""
    full_at: float = 0.8
    """a: share of the run's steps after which everything is in; above 0. Pools change at the first step of a
    `batch.length_window`: with few rows take a small one."""
    power: float = 2.0
    """p of `competence`; above 0."""
    increase: float = 1.9
    """Factor of `fixed_exponential`; above 1."""
    increase_every: int = 100
    """Optimizer steps between its increases; at least 1."""
    stratify: Literal["none", "label", "source"] = "none"
    """Rank within each class, or within each value of `data.source_column`, so that pacing starves none."""
    once_per_pass: bool = True
    """Every admitted row is served once before any is served twice. False: every batch takes the pool's own
    proportions, and rows admitted early are served more often."""
    buckets: int = 64
    """Classes of difficulty of which every batch takes exact quotas; 1 to 256."""
    memory_mib: int = 1024
    """Most memory of one process for the order inside shards: 2 bytes a row hold them all; MiB, at least 16."""
    keep_snapshots: int = 3
    """Newest snapshots kept in `run_dir/snapshots`; at least 1. The ones in use stay besides."""
    final_snapshot: bool = False
    """Score all rows after the last epoch too: for `launcher/snapshot.py`, nothing is trained on it."""


@dataclass(frozen=True)
class RelianceConfig:
    """λ per row instead of `weight.kd` (METHOD.md §4): how far a row relies on the teacher, by its difficulty."""

    rule: Literal["constant", "gate", "ramp", "bell", "weighted"] = "constant"
    """`constant`: `weight.kd` for all. `gate`: `maximum` above the percentile `threshold`, else `minimum`. `ramp`:
    linear in the percentile. `bell`: most at p = ½. `weighted`: 1 − exp(−CE_S/CE_T), from the snapshot."""
    initial: float | None = None
    """λ before the first snapshot; 0 to 1. None: `weight.kd`."""
    minimum: float = 0.0
    """λ_min; 0 to `maximum`."""
    maximum: float | None = None
    """λ_max; above 0, to 1. None: `weight.kd`."""
    threshold: float = 0.5
    """θ of `gate`: the share of rows, the easier ones, that get `minimum`; 0 to 1."""
    control: Literal["none", "mean_matched", "permuted"] = "none"
    """`mean_matched`: every row gets the mean of the λ of this epoch. `permuted`: the same λ on other rows."""
    scale_alignment: bool = False
    """Multiply a row's patience and gradient terms by λ/λ_max as well."""

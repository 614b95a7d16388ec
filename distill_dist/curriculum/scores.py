"""How sure a model is of each row, and what a run remembers of it from snapshot to snapshot (METHOD.md §3).

Confidence is float32 and larger is easier. Shape letters: N rows of a block, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

UNKNOWN = 0xFFFF  # `predicted` of a row that nothing finite was said of
LARGEST_COUNT = 0xFFFF  # counters stay there: they are two bytes wide
_LARGEST = float(np.finfo(np.float32).max)

COLUMN_TYPES: dict[str, np.dtype] = {
    "score": np.dtype("<f4"),
    "loss": np.dtype("<f4"),
    "mean": np.dtype("<f4"),
    "m2": np.dtype("<f4"),
    "teacher_loss": np.dtype("<f4"),
    "count": np.dtype("<u2"),
    "predicted": np.dtype("<u2"),
    "forgotten": np.dtype("<u2"),
}
"""Name and stored type of every column, in the order in which a snapshot's file holds them: `score` first."""


@dataclass(frozen=True)
class Columns:
    """What is known of a block's rows, one array [n] a column, of the types in :data:`COLUMN_TYPES`."""

    score: np.ndarray  # moving average of the measure: what rows are ranked by; NaN: none yet
    loss: np.ndarray  # cross-entropy in the newest snapshot that saw the row, p(true) = exp(-loss); NaN: none
    mean: np.ndarray  # of p(true) over the snapshots; 0 while `count` is 0
    m2: np.ndarray  # sum of its squared deviations: m2 / count is the variance
    teacher_loss: np.ndarray  # the teacher's cross-entropy; NaN where unknown
    count: np.ndarray  # snapshots that saw the row
    predicted: np.ndarray  # class of the largest logit, UNKNOWN where there is none
    forgotten: np.ndarray  # times that it went from right to wrong between snapshots

    def __post_init__(self) -> None:
        for name, dtype in COLUMN_TYPES.items():
            values = getattr(self, name)
            assert values.dtype == dtype, (name, values.dtype)
            assert values.shape == (len(self),), (name, values.shape, len(self))

    def __len__(self) -> int:
        """Rows of the block."""
        return len(self.score)


@dataclass(frozen=True)
class Fresh:
    """What one snapshot, or one epoch of training, says of a block's rows; all [n].

    A row that was seen but whose confidence or loss is NaN counts as a number that failed, see ``num_nan``.
    """

    confidence: np.ndarray  # float32
    loss: np.ndarray  # float32, cross-entropy
    predicted: np.ndarray  # integer class
    labels: np.ndarray  # integer class
    seen: np.ndarray  # bool; False: not served, or not scored
    teacher_loss: np.ndarray  # float32, NaN where unknown

    def __post_init__(self) -> None:
        for field in fields(self):
            assert getattr(self, field.name).shape == (len(self),), field.name

    def __len__(self) -> int:
        """Rows of the block."""
        return len(self.confidence)

    @property
    def scored(self) -> np.ndarray:
        """bool [n]: the rows that got a number."""
        return self.seen & ~np.isnan(self.confidence) & ~np.isnan(self.loss)

    @property
    def num_nan(self) -> int:
        """Rows that were seen and gave no number."""
        return int(np.count_nonzero(self.seen & ~self.scored))


# ------------------------------------------------------------------ measures


def measure(name: str, logits_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Confidence by the measure ``name`` (`curriculum.measure`), float32 [N]; NaN where a logit is not finite."""
    return _float32(MEASURES[name](_log_probabilities(logits_NC), labels_N))


def cross_entropy(logits_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """−log p(true class) in nats, float32 [N], at least 0; NaN where a logit is not finite."""
    return _float32(-_true(_log_probabilities(logits_NC), labels_N))


def fresh_from_logits(
    name: str, logits_NC: np.ndarray, labels_N: np.ndarray, *, teacher_loss: np.ndarray | None = None
) -> Fresh:
    """Everything one pass says of the rows, all of them seen; ``teacher_loss`` [N] if it is known."""
    assert logits_NC.shape[1] <= UNKNOWN, logits_NC.shape
    finite = np.isfinite(logits_NC).all(axis=1)
    known = np.full(len(labels_N), np.nan, np.float32) if teacher_loss is None else teacher_loss
    return Fresh(
        confidence=measure(name, logits_NC, labels_N),
        loss=cross_entropy(logits_NC, labels_N),
        predicted=np.where(finite, logits_NC.argmax(axis=1), UNKNOWN).astype(np.uint16),
        labels=np.asarray(labels_N),
        seen=np.ones(len(labels_N), bool),
        teacher_loss=known.astype(np.float32),
    )


def _log_probabilities(logits_NC: np.ndarray) -> np.ndarray:
    """float64 [N, C], finite; NaN in the whole row where a logit is not."""
    logits = np.asarray(logits_NC, dtype=np.float64)
    assert logits.ndim == 2, logits.shape
    assert logits.shape[1] >= 2, "one class has no confidence"
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    logits = np.where(finite, logits, 0.0)
    with np.errstate(over="ignore"):
        # kept finite: exp(-inf)·(-inf) of the entropy would be NaN, and a loss must fit into float32
        shifted = np.maximum(logits - logits.max(axis=1, keepdims=True), -_LARGEST)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.where(finite, logs, np.nan)


def _float32(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32) + np.float32(0)  # + 0: no -0.0


def _true(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    assert len(labels) == len(logs), (len(labels), len(logs))
    assert len(labels) == 0 or (labels.min() >= 0 and labels.max() < logs.shape[1]), "a label has no class"
    return np.take_along_axis(logs, np.asarray(labels, dtype=np.int64)[:, None], axis=1)[:, 0]


def _true_probability(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.exp(_true(logs, labels))


def _max_probability(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.exp(logs.max(axis=1))


def _margin(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    largest = np.exp(np.partition(logs, -2, axis=1)[:, -2:])
    return largest[:, 1] - largest[:, 0]


def _entropy(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (np.exp(logs) * logs).sum(axis=1)


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "true_probability": _true_probability,
    "max_probability": _max_probability,
    "margin": _margin,
    "entropy": _entropy,
    "loss": _true,
}
"""`curriculum.measure` -> function of (log-probabilities [N, C], labels [N]). All are larger where it is easier."""


# ------------------------------------------------------------------ records


def blank(num_rows: int) -> Columns:
    """The columns of rows of which nothing is known yet."""
    start = {"score": np.nan, "loss": np.nan, "teacher_loss": np.nan, "predicted": UNKNOWN}
    return Columns(
        **{name: np.full(num_rows, start.get(name, 0), dtype) for name, dtype in COLUMN_TYPES.items()}
    )


def given(score: np.ndarray) -> Columns:
    """Columns with a score [n] from elsewhere (a file) and nothing else known."""
    empty = blank(len(score))
    return Columns(**{**_arrays(empty), "score": np.asarray(score, dtype=COLUMN_TYPES["score"])})


def advance(previous: Columns | None, fresh: Fresh, *, smoothing: float) -> Columns:
    """The columns after one more snapshot; ``smoothing`` in [0, 1) is the weight of the earlier average.

    A row that was not seen, or gave NaN, keeps its record as it was. A first value, or one after an infinite
    average, is taken whole. Also `teacher_loss` stays where nothing new is known.
    """
    assert 0 <= smoothing < 1, smoothing
    old = blank(len(fresh)) if previous is None else previous
    assert len(old) == len(fresh), (len(old), len(fresh))
    new = {
        "score": _average(old.score, fresh.confidence, smoothing),
        "loss": fresh.loss,
        "predicted": fresh.predicted,
        "forgotten": _plus_one(
            old.forgotten, (old.predicted == fresh.labels) & (fresh.predicted != fresh.labels)
        ),
        "teacher_loss": np.where(np.isnan(fresh.teacher_loss), old.teacher_loss, fresh.teacher_loss),
        **_welford(old, fresh.loss),
    }
    kept = {name: np.where(fresh.scored, new[name], before) for name, before in _arrays(old).items()}
    return Columns(**{name: kept[name].astype(dtype) for name, dtype in COLUMN_TYPES.items()})


def _arrays(columns: Columns) -> dict[str, np.ndarray]:
    return {name: getattr(columns, name) for name in COLUMN_TYPES}


def _average(old: np.ndarray, value: np.ndarray, smoothing: float) -> np.ndarray:
    if smoothing == 0:
        return value  # 0·inf would be NaN
    before = np.where(np.isfinite(old), old, value).astype(np.float64)
    return smoothing * before + (1 - smoothing) * value.astype(np.float64)


def _welford(old: Columns, loss: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and squared deviations of p(true) with one more value (Welford 1962), in float64."""
    probability = np.exp(-loss.astype(np.float64))
    count = _plus_one(old.count, np.ones(len(old), bool))
    mean = old.mean.astype(np.float64)
    moved = mean + (probability - mean) / count
    return {"count": count, "mean": moved, "m2": old.m2 + (probability - mean) * (probability - moved)}


def _plus_one(counter: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.minimum(counter.astype(np.int64) + where, LARGEST_COUNT)

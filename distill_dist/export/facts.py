"""What a model card says of one model, as plain values: text from a run stands here as it is, unescaped."""

from __future__ import annotations

from dataclasses import dataclass

from distill_dist.export.latency import LatencyTable


@dataclass(frozen=True)
class Measured:
    """A number, and its interval over rows where one was computed."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class SplitFigures:
    """What was measured on one split, by name: `accuracy`, `loss`, …; `ll`, `pl`, … in ``loyalty``."""

    name: str
    rows: int | None
    student: dict[str, Measured]
    teacher: dict[str, Measured]
    loyalty: dict[str, Measured]
    classes: dict[str, dict[str, Measured]]  # class -> `precision`, `recall`, `f1` of the student
    of_hub: str | None = None  # what it is of the hub's data set, where it is of one: `validation`
    saliency_rows: int | None = None  # of how many rows saliency loyalty is the mean; None: of all


@dataclass(frozen=True)
class SplitSource:
    """Where the rows of a split are from; ``truncated`` rows were longer than the limit."""

    name: str
    rows: int
    tokens: int
    truncated: int
    origin: str


@dataclass(frozen=True)
class TeacherFacts:
    """One model that taught; ``sha256`` of its weights, as `evaluate.py` has it. ``architecture``: "" if unknown."""

    path: str
    sha256: str | None
    architecture: str = ""


@dataclass(frozen=True)
class OnnxFacts:
    """The ONNX files against the PyTorch student. Differences are of logits; agreement is the share of equal labels.

    ``tolerance`` is what the fp32 file was held against on ``checked_rows`` rows.
    """

    file: str
    checked_rows: int
    largest_difference: float
    tolerance: float
    dev_rows: int
    dev_difference: float
    dev: dict[str, float]
    agreement: float
    int8_file: str
    int8_difference: float
    int8: dict[str, float]
    int8_agreement: float
    versions: dict[str, str]


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card is written from. Titles of ``settings`` and all ``limits`` are our own Markdown."""

    name: str
    task: str
    metric: str  # the task's own: `accuracy`, `f1`, `matthews`
    columns: tuple[str, ...]  # of the one or two texts
    labels: tuple[str, ...]
    method: str
    parameters: int
    architecture: str  # `bert, 3 layers of width 384`
    weights_sha256: str
    max_length: int
    settings: tuple[tuple[str, str], ...]
    splits: tuple[SplitFigures, ...]
    intervals: str | None  # how they were computed; None: there are none
    sources: tuple[SplitSource, ...]  # empty: the prepared rows are not there
    manifest: str | None
    teachers: tuple[TeacherFacts, ...]
    teacher_parameters: int | None
    teacher_missing: bool
    command: tuple[str, ...]
    command_folder: str
    versions: dict[str, str]
    limits: tuple[str, ...]
    base_model: str | None = None
    dataset: str | None = None  # of the hub
    dataset_config: str | None = None
    dataset_revision: str | None = None
    onnx: OnnxFacts | None = None
    latency: LatencyTable | None = None

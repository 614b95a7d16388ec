"""The fields of `teacher`: the model that teaches, and the service around it. See schema.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

WireType = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True)
class WireConfig:
    """How a teacher's rows of unit length travel and are cached; logits and norms are fp32 always. `int8` has one
    scale a row. Half of the bytes and less, at an error that the run reports."""

    states: WireType = "fp32"
    """[CLS] states."""
    cls_gradients: WireType = "fp32"
    """Gradients at [CLS]."""
    embedding_gradients: WireType = "fp32"
    """Gradients at the embeddings: by far the most bytes."""


@dataclass(frozen=True)
class PooledTeacher:
    """One entry of `teachers`."""

    path: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class TeacherConfig:
    """The fine-tuned model that teaches. Unused with `method: finetune`, except to report loyalty."""

    path: str = ""
    """Folder or hub name of a fine-tuned classifier over the same classes. Required except by `finetune`; with
    `teachers` it is the first one's."""
    combine: Literal["average", "best", "separate"] = "average"
    """How several `teachers` are joined: their `average` by weight; for each row the `best` one, whose loss on the
    label is lowest; or `separate` terms for each one, weighted (METHOD.md §7). `average` and `separate` make every
    teacher send the gradients of all C classes where `alignment.signal` is `own_max` or `teacher_max`: of more than two
    classes C backward passes and C times the bytes; `best`, and signal `label`, cost one."""
    shards: int = 1
    """Teacher processes that hold one copy of the model together, each its share of every weight, and compute in
    lockstep; `cluster.teachers` is a multiple of it; 1: each process holds the whole model."""
    offload: bool = False
    """Keep the weights in the host's memory and bring each layer to the device when it runs: for a teacher larger than
    the devices of its `shards`; slower. On the CPU they lie there anyway."""
    prefetch: int = 8
    """Global batches whose signals are asked for ahead of the step that needs them; 1 to 256. Batches differ in length:
    with few of them ahead, a teacher that is on average fast enough is waited for now and then."""
    deadline_s: float = 60.0
    """Longest wait for one answer of the process that runs the model before another is started, and for a sign of life
    of the one that serves it; seconds, above 0."""
    patience_s: float = 300.0
    """Longest wait of a step for its signals, say while teachers are started again, before the run saves and stops;
    seconds, above 0."""
    lease_s: float = 900.0
    """A teacher that no student has called for so long leaves; seconds, above `deadline_s`."""
    rest_after_s: float = 120.0
    """The process that runs the model ends, and frees its device, when everything was answered from the cache for so
    long; another is started when it is needed again; seconds, above 0."""
    check_every_s: float = 300.0
    """How often a teacher is asked about the same rows again. One that says something else than when the run began
    teaches no more, the others go on; a process that is started again is asked at once; seconds, above 0."""
    batch_tokens: int = 4096
    """Most tokens, padding included, that a teacher process computes at once, of several students' questions; at least
    `data.max_length`. Each of `shards` processes takes as many. Halved for the run where memory does not suffice. Fewer
    than 16 rows are filled up to 16, and the probe's 16 rows are computed together: 16 rows of the longest text have to
    fit whatever stands here."""
    cache_mib: int = 1024
    """Memory in which a teacher process keeps signals that were asked for once; MiB, 0: none. A teacher in the
    students' own processes keeps some where there is a `cache_dir`."""
    cache_dir: str = ""
    """Folder in which signals are kept on disk, for this run and others with the same teacher; may be shared by nodes
    and runs. Empty: none."""
    cache_dir_mib: int = 0
    """Nothing more is written to `cache_dir` once it holds so much, of whatever teacher; MiB, 0: no limit. Each process
    counts what is sealed and its own open file, not those of others: of N processes that write at once each may add a
    file of up to 256 MiB beyond it."""
    wire: WireConfig = field(default_factory=WireConfig)

"""What gradient alignment costs: a GKD-CLS step by each route over a KD step, in time and in memory; and its error."""

from __future__ import annotations

import contextlib
import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForSequenceClassification, BertConfig

from distill_dist.bench.saved_bytes import SavedBytes
from distill_dist.bench.sst2_lengths import batch_lengths
from distill_dist.models.build import set_attention, set_dropout
from distill_dist.models.copy_weights import copy_into_same
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.layer_map import copied_layers, matched_layers
from distill_dist.objectives.objective import ALIGNED, METHODS, LossTerms, Objective
from distill_dist.records import Batch, BatchCounts, TeacherSignal
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.compute import compute_signal

FIRST_WORD = 1000  # of bert-base-uncased's vocabulary; special and unused tokens lie below
CLS, SEP = 101, 102
ERROR_ROWS = 8  # of the batch that the gradients are compared on, in float64
WARM_UP = 2  # rounds


@dataclass(frozen=True)
class Shape:
    """Sizes of a BERT teacher and of the student cut from it."""

    teacher_layers: int
    student_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int = 30522
    batch: int = 32
    rounds: int = 5  # unless the caller wants another number


SHAPES = {
    "minilm": Shape(6, 3, hidden_size=384, num_attention_heads=12, intermediate_size=1536, rounds=24),
    "bert_base": Shape(12, 6, hidden_size=768, num_attention_heads=12, intermediate_size=3072, rounds=4),
}


@dataclass(frozen=True)
class Way:
    """One kind of student step, with the attention kernel that it runs on."""

    method: str
    attention: str  # eager, sdpa; math: sdpa's kernel that can be differentiated twice
    route: Route = Route()
    aligned: bool = True


BASELINE = "kd"
WAYS = {
    BASELINE: Way("kd", "sdpa"),
    "alignment_off": Way("gkd_cls", "sdpa", aligned=False),
    "double_backward": Way("gkd_cls", "eager"),
    "double_backward_math": Way("gkd_cls", "math"),
    "central_difference": Way("gkd_cls", "sdpa", Route("central_difference")),
    "central_difference_batched": Way("gkd_cls", "sdpa", Route("central_difference", keeps_graph=False)),
}
ROUTES = tuple(name for name, way in WAYS.items() if way.aligned and way.method != "kd")


@dataclass(frozen=True)
class Case:
    """One batch with the teacher's signal for it."""

    batch: Batch
    signal: TeacherSignal

    @property
    def counts(self) -> BatchCounts:
        """As if the batch were the global one."""
        return BatchCounts(len(self.batch.labels_B), int(self.batch.attention_mask_BL.sum()))


def measure_gradients(
    shapes: dict[str, Shape],
    *,
    device: str,
    rounds: int | None,
    progress: Callable[[str], None],
    seed: int = 0,
) -> dict[str, Any]:
    """Every way's time and saved memory over KD's and every route's error, for each of ``shapes``.

    Frozen embeddings, no dropout, fp32, the teacher's signals ready, the optimizer left out. ``rounds`` None: as
    many as the shape says. The keys of the first shape stand on top as well.
    """
    found = {}
    for name, shape in shapes.items():
        progress(f"{name}: building")
        found[name] = _measure_shape(
            shape,
            device=torch.device(device),
            rounds=rounds or shape.rounds,
            seed=seed,
            progress=lambda text, name=name: progress(f"{name}: {text}"),  # type: ignore[misc]
        )
    first = next(iter(shapes))
    return {
        "benchmark": "gradients",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": first,
        **{key: found[first][key] for key in ("gkd_cls_over_kd", "memory_over_kd", "relative_error")},
        "shapes": found,
    }


def _measure_shape(
    shape: Shape, *, device: torch.device, rounds: int, seed: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    student, objective, cases = make_cases(shape, device=device, count=rounds, seed=seed)
    steps = {name: _step(student, objective, way) for name, way in WAYS.items()}
    seconds = _time_all(steps, cases, progress)
    middle = cases[len(cases) // 2]
    progress("memory and errors")
    saved = {name: saved_bytes(step, WAYS[name], middle) for name, step in steps.items()}
    errors = relative_errors({name: steps[name] for name in ROUTES}, _first_rows(middle))
    ratios = {
        name: [own / kd for own, kd in zip(times, seconds[BASELINE], strict=True)]
        for name, times in seconds.items()
    }
    found = {
        "sizes": asdict(replace(shape, rounds=rounds)),
        "tokens_per_batch": [case.batch.input_ids_BL.numel() for case in cases],
        "kd_step_ms": 1000 * statistics.median(seconds[BASELINE]),
        "kd_saved_bytes": saved[BASELINE],
        "gkd_cls_over_kd": _without_kd({name: statistics.median(values) for name, values in ratios.items()}),
        "gkd_cls_over_kd_quartiles": _without_kd(
            {name: _quartiles(values) for name, values in ratios.items()}
        ),
        "gkd_cls_over_kd_of_sums": _without_kd(
            {name: sum(times) / sum(seconds[BASELINE]) for name, times in seconds.items()}
        ),
        "memory_over_kd": _without_kd({name: value / saved[BASELINE] for name, value in saved.items()}),
        "relative_error": {name: whole for name, (whole, _) in errors.items()},
        "relative_error_aligned": {name: aligned for name, (_, aligned) in errors.items()},
    }
    if device.type == "cuda":
        peaks = {name: _peak_allocated(step, WAYS[name], middle) for name, step in steps.items()}
        found["allocated_over_kd"] = _without_kd({n: value / peaks[BASELINE] for n, value in peaks.items()})
    return found


def make_cases(
    shape: Shape, *, device: torch.device, count: int, seed: int
) -> tuple[EncoderParts, Objective, list[Case]]:
    """(a student cut from a random teacher, the GKD-CLS objective, batches with the teacher's signals).

    Random weights of BERT's usual scale: times do not depend on values.
    """
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.teacher_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        num_labels=2,
    )
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    set_attention(model, "eager")
    teacher = encoder_parts(model.eval().requires_grad_(False).to(device))
    layers = copied_layers(shape.teacher_layers, keep=shape.student_layers, how="even", chosen=())
    cut = copy_into_same(model, layers, {}, pooler=False).to(device)
    set_dropout(cut, 0.0)
    student = encoder_parts(cut.train())
    student.embeddings.requires_grad_(False)
    teacher_layers, student_layers = matched_layers(
        shape.teacher_layers, shape.student_layers, teacher=(), student=()
    )
    objective = Objective(METHODS["gkd_cls"], teacher_layers=teacher_layers, student_layers=student_layers)
    assert objective.signal_spec is not None
    cases = []
    for lengths_B in batch_lengths(count, rows=shape.batch, seed=seed):
        batch = _random_batch(lengths_B, vocab_size=shape.vocab_size).to(device)
        cases.append(Case(batch, compute_signal(teacher, *batch.inputs, objective.signal_spec)))
    return student, objective, cases


def _random_batch(lengths_B: np.ndarray, *, vocab_size: int) -> Batch:
    """Rows of these lengths: [CLS], random words, [SEP], padding."""
    rows, width = len(lengths_B), int(lengths_B.max())
    ends_B1 = torch.from_numpy(lengths_B)[:, None] - 1
    positions_L = torch.arange(width)
    ids_BL = torch.randint(min(FIRST_WORD, vocab_size - 1), vocab_size, (rows, width))
    ids_BL[:, 0] = CLS
    ids_BL = ids_BL.masked_fill(positions_L == ends_B1, SEP).masked_fill(positions_L > ends_B1, 0)
    return Batch(
        ids_B=torch.arange(rows),
        input_ids_BL=ids_BL,
        attention_mask_BL=(positions_L <= ends_B1).long(),
        token_type_ids_BL=torch.zeros_like(ids_BL),
        labels_B=torch.randint(2, (rows,)),
        is_real_B=torch.ones(rows, dtype=torch.bool),
    )


def _step(student: EncoderParts, objective: Objective, way: Way) -> StudentStep:
    weight = objective.gradient if way.aligned else 0.0
    return StudentStep(student, replace(objective, terms=METHODS[way.method], gradient=weight), way.route)


@contextlib.contextmanager
def _ready(step: StudentStep, way: Way) -> Iterator[None]:
    """The model on the way's kernel and without gradients, before and after."""
    set_attention(step.parts.model, "eager" if way.attention == "eager" else "sdpa")
    kernel = sdpa_kernel(SDPBackend.MATH) if way.attention == "math" else contextlib.nullcontext()
    with kernel:
        yield
    step.parts.model.zero_grad(set_to_none=True)


def run_step(step: StudentStep, case: Case) -> None:
    """One micro-batch: losses and gradients."""
    terms = step.loss_terms(case.batch, case.signal, case.counts)
    terms.total(case.counts).backward()  # type: ignore[no-untyped-call]


def _time_all(
    steps: dict[str, StudentStep], cases: list[Case], progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds per way and case: the ways take turns at each case, so that a slow minute hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-WARM_UP, len(cases)):
        case = cases[number]  # warms up with the longest
        for name, step in steps.items():
            with _ready(step, WAYS[name]):
                _synchronize(case)
                begin = time.perf_counter()
                run_step(step, case)
                _synchronize(case)
                elapsed = time.perf_counter() - begin
            if number >= 0:
                seconds[name].append(elapsed)
        progress(f"round {max(number + 1, 0)}/{len(cases)}")
    return seconds


def _synchronize(case: Case) -> None:
    if case.batch.labels_B.is_cuda:
        torch.cuda.synchronize()


def saved_bytes(step: StudentStep, way: Way, case: Case) -> int:
    """Most bytes that autograd holds at once in the step, parameters not counted."""
    with _ready(step, way), SavedBytes(step.parts.model.parameters()) as saved:
        run_step(step, case)
    return saved.peak


def _peak_allocated(step: StudentStep, way: Way, case: Case) -> int:
    """Most bytes of CUDA memory that the step allocates beside what was there, gradients included."""
    with _ready(step, way):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_step(step, case)
        return torch.cuda.max_memory_allocated() - before


def relative_errors(steps: dict[str, StudentStep], case: Case) -> dict[str, tuple[float, float]]:
    """(of the whole objective, of the aligned terms alone) per route: ‖g − g₆₄‖ / ‖g₆₄‖ over all parameters.

    g₆₄ is double backward's in float64 from the same weights, with eager attention.
    """
    any_step = next(iter(steps.values()))
    exact_model = copy.deepcopy(any_step.parts.model).double()
    exact = replace(any_step, parts=encoder_parts(exact_model), route=Route())
    references = _gradients(exact, WAYS["double_backward"], case)
    found = {}
    for name, step in steps.items():
        whole, aligned = (
            float((own.double() - reference).norm() / reference.norm())
            for own, reference in zip(_gradients(step, WAYS[name], case), references, strict=True)
        )
        found[name] = (whole, aligned)
    return found


def _gradients(step: StudentStep, way: Way, case: Case) -> tuple[Tensor, Tensor]:
    """The gradient of the whole objective and of the aligned terms, each as one vector."""
    parameters = [p for p in step.parts.model.parameters() if p.requires_grad]
    with _ready(step, way):
        terms = step.loss_terms(case.batch, case.signal, case.counts)
        losses = (terms.total(case.counts), _aligned_share(terms, case.counts))
        found = [
            torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            for loss in losses
        ]
    whole, aligned = (torch.cat([gradient.flatten() for gradient in each]) for each in found)
    return whole, aligned


def _aligned_share(terms: LossTerms, counts: BatchCounts) -> Tensor:
    share = terms.share_of(ALIGNED, counts)
    return share if terms.surrogate is None else share + terms.surrogate


def _first_rows(case: Case) -> Case:
    return case


def _without_kd(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != BASELINE}


def _quartiles(values: list[float]) -> list[float]:
    return np.quantile(values, [0.25, 0.75]).tolist()

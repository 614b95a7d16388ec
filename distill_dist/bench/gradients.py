"""What gradient alignment costs: a GKD-CLS step by each route over a KD step, in time and memory; and its error."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill_dist.accumulate import OnlyInto
from distill_dist.bench.distillation_cases import Case, Setting, Shape, make_setting
from distill_dist.bench.saved_bytes import SavedBytes
from distill_dist.models.build import set_attention
from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.objective import ALIGNED, METHODS, LossTerms
from distill_dist.student import Route, StudentStep

ERROR_ROWS = 8  # of the case that gradients are compared on: float64 is slow
WARM_UP = 1  # rounds; of the longest case


@dataclass(frozen=True)
class Way:
    """One kind of student step, and the attention kernel that it runs on."""

    method: str
    attention: str  # eager, sdpa; math: sdpa's kernel that can be differentiated twice
    route: Route = field(default_factory=Route)
    aligned: bool = True


BASELINE = "kd"
WAYS = {
    BASELINE: Way("kd", "sdpa", aligned=False),
    "alignment_off": Way("gkd_cls", "sdpa", aligned=False),
    "double_backward": Way("gkd_cls", "eager"),
    "double_backward_math": Way("gkd_cls", "math"),
    "central_difference": Way("gkd_cls", "sdpa", Route("central_difference")),
    "central_difference_batched": Way("gkd_cls", "sdpa", Route("central_difference", keeps_graph=False)),
}
ROUTES = tuple(name for name, way in WAYS.items() if way.aligned)

# Operation counts and measurements on a quiet CPU set these for the MiniLM student on one thread.
BARS = {"double_backward": 2.2, "central_difference": 3.5, "central_difference_batched": 3.8}


def measure_gradients(
    shapes: dict[str, Shape],
    *,
    device: str,
    rounds: int | None,
    progress: Callable[[str], None],
    seed: int = 0,
) -> dict[str, Any]:
    """Every way's time and saved memory over KD's, and every route's error, for each of ``shapes``.

    Student steps with frozen embeddings, no dropout, fp32 and the teacher's signals ready; the optimizer is left
    out. ``rounds`` None: as many as the shape says. The first shape's ratios stand on top as well.
    """
    found = {}
    for name, shape in shapes.items():
        progress(f"{name}: building")
        setting = make_setting(shape, device=torch.device(device), count=rounds or shape.rounds, seed=seed)
        found[name] = {"sizes": asdict(shape), **_measure(setting, name, progress)}
    first = next(iter(shapes))
    return {
        "benchmark": "gradients",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": "process" if _counts_own_time(torch.device(device)) else "wall",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": first,
        **{key: found[first][key] for key in ("gkd_cls_over_kd", "memory_over_kd", "relative_error")},
        "shapes": found,
    }


def _measure(setting: Setting, name: str, progress: Callable[[str], None]) -> dict[str, Any]:
    steps = {way: student_step(setting, WAYS[way]) for way in WAYS}
    seconds = _time_all(steps, setting.cases, lambda text: progress(f"{name}: {text}"))
    progress(f"{name}: memory and errors")
    middle = setting.cases[len(setting.cases) // 2]
    saved = {way: saved_bytes(step, WAYS[way], middle) for way, step in steps.items()}
    errors = relative_errors({way: steps[way] for way in ROUTES}, middle.first(ERROR_ROWS))
    kd_seconds = seconds.pop(BASELINE)
    ratios = {
        way: [own / kd for own, kd in zip(times, kd_seconds, strict=True)] for way, times in seconds.items()
    }
    found = {
        "tokens_per_batch": [case.batch.input_ids_BL.numel() for case in setting.cases],
        "kd_step_ms": 1000 * statistics.median(kd_seconds),
        "gkd_cls_over_kd": {way: statistics.median(values) for way, values in ratios.items()},
        "quartiles": {way: np.quantile(values, [0.25, 0.75]).tolist() for way, values in ratios.items()},
        "ratio_of_sums": {way: sum(times) / sum(kd_seconds) for way, times in seconds.items()},
        "kd_saved_bytes": saved[BASELINE],
        "memory_over_kd": _over_kd(saved),
        "relative_error": {way: whole for way, (whole, _) in errors.items()},
        "relative_error_aligned": {way: aligned for way, (_, aligned) in errors.items()},
    }
    if _device(middle).type == "cuda":
        found["allocated_over_kd"] = _over_kd(
            {way: _peak_allocated(step, WAYS[way], middle) for way, step in steps.items()}
        )
    return found


def _over_kd(values: dict[str, int]) -> dict[str, float]:
    return {way: value / values[BASELINE] for way, value in values.items() if way != BASELINE}


def student_step(setting: Setting, way: Way) -> StudentStep:
    """The product's own step for ``way``."""
    objective = replace(setting.objective, terms=METHODS[way.method])
    if not way.aligned:
        objective = replace(objective, gradient=0.0)
    return StudentStep(setting.student, objective, way.route)


@contextlib.contextmanager
def _ready(step: StudentStep, way: Way) -> Iterator[None]:
    """The model on the way's kernel; without gradients before and after."""
    set_attention(step.parts.model, "eager" if way.attention == "eager" else "sdpa")
    step.parts.model.zero_grad(set_to_none=True)
    with sdpa_kernel(SDPBackend.MATH) if way.attention == "math" else contextlib.nullcontext():
        yield
    step.parts.model.zero_grad(set_to_none=True)


def run_step(step: StudentStep, case: Case) -> None:
    """One micro-batch: losses and gradients, as the engine accumulates them."""
    terms = step.loss_terms(case.batch, case.signal, case.counts)
    with OnlyInto(parameter for parameter in step.parts.model.parameters() if parameter.requires_grad):
        terms.total(case.counts).backward()  # type: ignore[no-untyped-call]


def _device(case: Case) -> torch.device:
    return case.batch.labels_B.device


def _counts_own_time(device: torch.device) -> bool:
    """One thread never waits: its processor time is the wall time of a machine that does nothing else."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def _time_all(
    steps: dict[str, StudentStep], cases: list[Case], progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds per way and case. The ways take turns at each case, so that a slow minute hits all of them."""
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    clock = time.process_time if _counts_own_time(_device(cases[0])) else time.perf_counter
    for number in range(-WARM_UP, len(cases)):
        case = cases[max(number, -1)]  # the warm-up is the longest
        for way, step in steps.items():
            with _ready(step, WAYS[way]):
                _synchronize(case)
                begin = clock()
                run_step(step, case)
                _synchronize(case)
                elapsed = clock() - begin
            if number >= 0:
                seconds[way].append(elapsed)
        progress(f"round {max(number + 1, 0)}/{len(cases)}")
    return seconds


def _synchronize(case: Case) -> None:
    if _device(case).type == "cuda":
        torch.cuda.synchronize()


def saved_bytes(step: StudentStep, way: Way, case: Case) -> int:
    """Most bytes that autograd holds at once in the step, parameters not counted."""
    with _ready(step, way), SavedBytes(step.parts.model.parameters()) as saved:
        run_step(step, case)
    return saved.peak


def _peak_allocated(step: StudentStep, way: Way, case: Case) -> int:
    """Most bytes of CUDA memory that the step takes beside what was there, gradients included."""
    with _ready(step, way):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_step(step, case)
        return torch.cuda.max_memory_allocated() - before


def relative_errors(steps: dict[str, StudentStep], case: Case) -> dict[str, tuple[float, float]]:
    """(of the whole objective, of the aligned terms alone) per route: ‖g − g₆₄‖ / ‖g₆₄‖ over all parameters.

    g₆₄ is double backward's in float64 from the same weights, on eager attention.
    """
    some_step = next(iter(steps.values()))
    exact_parts = encoder_parts(copy.deepcopy(some_step.parts.model).double())
    exact = replace(some_step, parts=exact_parts, route=Route())
    references = _gradients(exact, WAYS["double_backward"], case)
    found = {}
    for way, step in steps.items():
        own = _gradients(step, WAYS[way], case)
        whole, aligned = (
            float((gradient.double() - reference).norm() / reference.norm())
            for gradient, reference in zip(own, references, strict=True)
        )
        found[way] = (whole, aligned)
    return found


def _gradients(step: StudentStep, way: Way, case: Case) -> tuple[Tensor, Tensor]:
    """The gradient of the whole objective and of the aligned terms alone, each as one vector."""
    parameters = [parameter for parameter in step.parts.model.parameters() if parameter.requires_grad]
    with _ready(step, way):
        terms = step.loss_terms(case.batch, case.signal, case.counts)
        whole, aligned = (
            torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            for loss in (terms.total(case.counts), _aligned_share(terms, case))
        )
    return torch.cat([each.flatten() for each in whole]), torch.cat([each.flatten() for each in aligned])


def _aligned_share(terms: LossTerms, case: Case) -> Tensor:
    share = terms.share_of(ALIGNED, case.counts)
    return share if terms.surrogate is None else share + terms.surrogate


def table(found: dict[str, Any]) -> str:
    """The result for people: a line per shape and way."""
    lines = []
    for name, shape in found["shapes"].items():
        has_bars = name == "minilm" and found["device"] == "cpu" and found["threads"] == 1
        step_ms, saved_mib = shape["kd_step_ms"], shape["kd_saved_bytes"] / 2**20
        lines += [
            "",
            f"{name}: a KD step takes {step_ms:.1f} ms and keeps {saved_mib:.1f} MiB; over it",
            f"  {'':28}{'time':>6}  {'quartiles':<12}{'memory':>7}  {'error':>8}{'  bar' if has_bars else ''}",
        ]
        for way, ratio in shape["gkd_cls_over_kd"].items():
            low, high = shape["quartiles"][way]
            error = f"{shape['relative_error'][way]:8.1e}" if way in ROUTES else " " * 8
            bar = f"  ≤ {BARS[way]}" if has_bars and way in BARS else ""
            lines.append(
                f"  {way:28}{ratio:6.2f}  {low:.2f} – {high:.2f}{shape['memory_over_kd'][way]:8.2f}  {error}{bar}"
            )
    return "\n".join(lines)

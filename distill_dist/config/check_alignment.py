"""Rules on matched gradients: which combinations cannot be right, whatever the machine (FACTS, METHOD.md §2)."""

from __future__ import annotations

from collections.abc import Iterator

from distill_dist.config.fields import describe_problem
from distill_dist.config.methods import is_aligned, is_gradient_method
from distill_dist.config.schema import RunConfig


def check_alignment(config: RunConfig) -> Iterator[str]:
    """One line per problem."""
    if config.method == "finetune":
        for key in ("weight.attribution", "weight.noise"):
            if getattr(config.weight, key.split(".")[1]):
                yield describe_problem(config, key, "method finetune asks no teacher; take kd")
    if config.alignment.positions != "auto" and not is_gradient_method(config.method):
        yield describe_problem(config, "alignment.positions", "only with method: gkd or gkd_cls")
    if is_aligned(config):
        yield from _dropout(config)
        yield from _route(config)


def _dropout(config: RunConfig) -> Iterator[str]:
    if config.student.dropout:
        term = f"method: {config.method}" if is_gradient_method(config.method) else "weight.attribution"
        text = f"must be 0 with {term} (gradients under dropout are biased, METHOD.md §2)"
        yield describe_problem(config, "student.dropout", text)


def _route(config: RunConfig) -> Iterator[str]:
    route, student = config.alignment.route, config.student
    once = []  # what can be differentiated once only
    if student.attention == "sdpa":
        once.append("student.attention: sdpa has no second derivative (take eager or math)")
    if student.compile:
        once.append("student.compile: true gives no second derivative")
    if route == "double_backward":
        for reason in once:
            text = f"{reason}, or set alignment.route to central_difference"
            yield describe_problem(config, "alignment.route", text)
    needs_difference = route == "central_difference" or (route == "auto" and once)
    if needs_difference and config.train.precision == "bf16":
        other = f"; {once[0]}" if route == "auto" else ", or alignment.route: double_backward"
        text = f"bf16 weights round a central difference away (15 % error at best): take fp32 or bf16_autocast{other}"
        yield describe_problem(config, "train.precision", text)

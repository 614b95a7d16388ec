"""Compiled layers under a central difference, and what they cannot do."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from student_cases import LENGTHS, counts_of, difference, gradients, models, objective_of, step
from tiny_encoders import ragged_batch

from distill_dist.models import build
from distill_dist.models.build import compile_layers, set_attention
from distill_dist.models.encoder import encoder_parts
from distill_dist.student import Route

# Dynamo looks at the .grad of tensors that are no leaves; torch's own doing.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def _quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of torch.compile but for code generation, which takes a minute and a C++ compiler."""
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(build.torch, "compile", quick)


def test_a_difference_through_compiled_layers_is_the_one_through_plain_layers() -> None:
    student, teacher = models()
    set_attention(student, "sdpa")
    compiled = copy.deepcopy(student)
    compile_layers(encoder_parts(compiled).layers)
    objective, batch, route = objective_of("gkd_cls"), ragged_batch(LENGTHS), difference(False)
    plain = gradients(student, step(student, teacher, objective, batch, route=route).total(counts_of(batch)))
    found = gradients(
        compiled, step(compiled, teacher, objective, batch, route=route).total(counts_of(batch))
    )
    assert plain.keys() == found.keys()
    for name, expected in plain.items():
        # float64 rounding, divided by the step of 1e-3
        assert torch.allclose(found[name], expected, rtol=0, atol=1e-10 * (1 + float(expected.norm()))), name


def test_compiled_layers_are_not_differentiated_twice() -> None:
    """Nor is the graph at x kept: torch reuses what a compiled forward saved (FACTS, attention and compile)."""
    student, teacher = models()
    compile_layers(encoder_parts(student).layers)
    for route in (Route(), difference(True)):
        with pytest.raises(RuntimeError, match="create_graph=False and retain_graph=False"):
            step(student, teacher, objective_of("gkd_cls"), ragged_batch(LENGTHS), route=route)

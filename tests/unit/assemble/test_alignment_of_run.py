"""What a run says of its alignment, the copy that proves it, and the kernel that a student gets."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from config.trees import good_with
from student_cases import models, objective_of, signal_of
from tiny_encoders import ragged_batch, tiny_encoder

from distill_dist.assemble import alignment
from distill_dist.assemble.alignment import copied_for_probe, describe_alignment, run_probe
from distill_dist.assemble.models import choose_attention
from distill_dist.assemble.outcome import Outcome
from distill_dist.assemble.route import ChosenRoute
from distill_dist.errors import UserError
from distill_dist.models.build import FAST_KERNELS, set_attention, set_checkpointing
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.width_maps import WIDTH_MAPS, WidthMaps
from distill_dist.probe import Probe
from distill_dist.records import BatchCounts, Step
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.local import LocalTeacher

CPU = torch.device("cpu")
TWICE = ChosenRoute(Route(), "exact")
DIFFERENCE = ChosenRoute(Route("central_difference", step=0.002), "asked for")


def test_description_for_the_summary() -> None:
    config = good_with({"alignment.signal": "label", "alignment.positions": "cls"})
    assert describe_alignment(config, TWICE) == {
        "route": "double_backward",
        "reason": "exact",
        "signal": "label",
        "positions": ["cls"],
    }
    found = describe_alignment(good_with({}), DIFFERENCE)
    assert (found["route"], found["step"], found["reason"]) == ("central_difference", 0.002, "asked for")
    assert found["positions"] == ["embedding", "cls"]
    attribution = describe_alignment(good_with({"method": "kd", "weight.attribution": 1.0}), TWICE)
    assert attribution["positions"] == []


# ------------------------------------------------------------------ the copy


def loaded(name: str = "gkd_cls", *, attention: str = "sdpa", maps: bool = False) -> Any:
    model = tiny_encoder(dtype=torch.float32, attention=attention)
    if maps:
        model.add_module(WIDTH_MAPS, WidthMaps(2, teacher_width=16, student_width=16))
    return SimpleNamespace(objective=objective_of(name), student=encoder_parts(model))


def test_the_copy_is_plain_and_apart() -> None:
    """Whatever the student runs with: eager, no checkpoints, its own memory, in train mode."""
    source = loaded()
    set_checkpointing(source.student.model)
    found = copied_for_probe(good_with({}), source, CPU)
    assert found is not None
    model: Any = found.parts.model
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert source.student.model.config._attn_implementation == "sdpa"
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert any(getattr(module, "gradient_checkpointing", False) for module in source.student.model.modules())
    theirs = {p.data_ptr() for p in source.student.model.parameters()}
    for ours, original in zip(model.parameters(), source.student.model.parameters(), strict=True):
        assert torch.equal(ours, original)
        assert ours.data_ptr() not in theirs
    assert (found.route, found.autocast, found.maps) == (Route(), None, None)


def test_the_copy_has_maps_of_its_own() -> None:
    source = loaded(maps=True)
    found = copied_for_probe(good_with({}), source, CPU)
    assert found is not None
    assert found.maps is not None
    assert found.maps is found.parts.model.get_submodule(WIDTH_MAPS)
    assert found.maps is not source.student.model.get_submodule(WIDTH_MAPS)


@pytest.mark.parametrize(
    ("name", "values"),
    [("kd", {"method": "kd"}), ("pkd", {"method": "pkd"}), ("gkd_cls", {"alignment.probe": False})],
)
def test_no_copy_where_nothing_is_proved(name: str, values: dict[str, Any]) -> None:
    assert copied_for_probe(good_with(values), loaded(name), CPU) is None


# ------------------------------------------------------------------ the verdict


def verdict(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], route: ChosenRoute, error: float
) -> dict[str, float]:
    """``run_probe`` of a probe that found this error."""
    seen: list[tuple[int, int]] = []

    def measured(engine: Any, student: Any, copy: Any, batch: Any, signal: Any, group: Any) -> Probe:
        seen.append((len(batch.labels_B), len(signal.logits_BC)))
        return Probe(whole_error=error / 10, aligned_error=error, seconds=0.12345)

    monkeypatch.setattr(alignment, "probe", measured)
    student, teacher = models(torch.float32)
    step = StudentStep(encoder_parts(student), objective_of("gkd_cls"))
    batch = ragged_batch((9, 3, 7, 12, 5, 6))
    first = Step(0, 0, 0, (batch, batch), BatchCounts(12, 84))
    engine: Any = SimpleNamespace(zero_stage=2)
    unused: Any = None
    found = run_probe(
        good_with(values), route, engine, step, step, first, LocalTeacher(encoder_parts(teacher), CPU), unused
    )
    assert len(seen) == 1
    assert seen[0][0] == seen[0][1] <= 4
    return found


LOOSE = {"train.precision": "bf16_autocast"}


@pytest.mark.parametrize(
    ("values", "route", "passes", "fails"),
    [
        ({}, TWICE, 0.9e-3, 1.1e-3),
        ({}, DIFFERENCE, 0.019, 0.021),
        ({"alignment.tolerance": 0.5}, TWICE, 0.49, 0.51),
        ({"alignment.tolerance": 1e-5}, DIFFERENCE, 0.9e-5, 1.1e-5),
        ({**LOOSE, "alignment.tolerance": 0.3}, TWICE, 0.29, 0.31),
    ],
)
def test_tolerance(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], route: ChosenRoute, passes: float, fails: float
) -> None:
    found = verdict(monkeypatch, values, route, passes)
    assert found == {"whole_error": passes / 10, "aligned_error": passes, "seconds": 0.123}
    for error in (fails, float("inf")):
        with pytest.raises(UserError, match="the probe found a wrong gradient"):
            verdict(monkeypatch, values, route, error)


def test_bf16_is_allowed_more_than_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("bf16", "bf16_autocast"):
        verdict(monkeypatch, {"train.precision": precision}, TWICE, 0.05)
        with pytest.raises(UserError):
            verdict(monkeypatch, {"train.precision": precision}, TWICE, 0.9)


def test_a_refusal_names_the_combination_and_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for route, other in ((TWICE, "central_difference"), (DIFFERENCE, "double_backward")):
        with pytest.raises(UserError) as caught:
            verdict(monkeypatch, {"student.checkpointing": True}, route, 0.8)
        message = str(caught.value)
        for part in (
            f"alignment.route={route.route.name}",
            "ZeRO 2",
            "train.precision=fp32",
            "student.checkpointing=True",
            "student.compile=False",
            f"Take alignment.route={other}",
            "alignment.tolerance",
        ):
            assert part in message


# ------------------------------------------------------------------ the kernel


@pytest.fixture
def _kernels() -> Iterator[None]:
    """The switches hold for the process."""
    yield
    for switch in FAST_KERNELS:
        switch(True)


@pytest.mark.parametrize(
    ("family", "values", "kernel"),
    [
        ("bert", {"student.attention": "eager"}, "eager"),
        ("bert", {"student.attention": "sdpa"}, "sdpa"),
        ("bert", {"student.attention": "math"}, "math"),
        ("bert", {}, "eager"),
        ("bert", {"method": "kd"}, "sdpa"),
        ("bert", {"alignment.route": "central_difference"}, "sdpa"),
        ("bert", {"student.compile": True}, "sdpa"),
        ("deberta-v2", {}, "eager"),
    ],
)
def test_the_kernel_of_a_student(family: str, values: dict[str, Any], kernel: str) -> None:
    assert choose_attention(good_with(values), encoder_parts(tiny_encoder(family))) == kernel


@pytest.mark.usefixtures("_kernels")
def test_math_attention_can_be_differentiated_twice() -> None:
    """sdpa cannot; `math` is sdpa with every other kernel of the process switched off."""
    batch, found = ragged_batch((9, 3, 7)), {}
    for kernel in ("eager", "sdpa", "math"):
        model = tiny_encoder(attention="eager")
        set_attention(model, kernel)
        if kernel == "sdpa":
            with pytest.raises(RuntimeError, match="not implemented"):
                second_order(encoder_parts(model), batch)
        else:
            found[kernel] = second_order(encoder_parts(model), batch)
    assert found["eager"].norm() > 1
    assert (found["math"] - found["eager"]).norm() < 1e-12 * found["eager"].norm()


def second_order(parts: EncoderParts, batch: Any) -> torch.Tensor:
    _, teacher = models()
    objective = objective_of("gkd")
    signal = signal_of(teacher, objective, batch)
    terms = StudentStep(parts, objective).loss_terms(batch, signal)
    weight = parts.layers[0].attention.self.query.weight  # type: ignore[union-attr]
    return torch.autograd.grad(terms.sums["gradient_embedding"], weight)[0]  # type: ignore[arg-type]


# ------------------------------------------------------------------ the export


def test_maps_are_no_part_of_the_export() -> None:
    weights = {
        "bert.a": torch.ones(2),
        f"{WIDTH_MAPS}.weight_KTS": torch.ones(3),
        "width_maps_of_mine": torch.ones(1),
    }
    unused: Any = None
    engine: Any = SimpleNamespace(weights=lambda: weights)
    outcome = Outcome(
        config=unused, engine=engine, student=unused, teacher=None, scorers={}, group=unused, telemetry=unused,
        folder=unused, save_tokenizer=unused, identity={}, alignment=None, matched_layers=None, best=None, saver=unused,
        curriculum=dict, order=lambda: None,
    )  # fmt: skip
    assert set(outcome._own_weights()) == {"bert.a", "width_maps_of_mine"}

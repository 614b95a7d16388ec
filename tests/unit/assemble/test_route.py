"""Every branch of the route's choice. What torch, DeepSpeed and the machine say is put in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from config.trees import good_with
from torch import nn
from transformers import BertConfig, DistilBertConfig, PreTrainedConfig

from distill_dist.assemble import route as route_module
from distill_dist.assemble.route import GATHERED_SHARE, ChosenRoute, choose_route
from distill_dist.engine import VERSION, ZERO3_TWICE_VERSIONS
from distill_dist.errors import UserError
from distill_dist.student import Route

REPOSITORY = Path(__file__).parents[3]
CPU = torch.device("cpu")


def sized(rows: int, columns: int, config: PreTrainedConfig | None = None, **options: Any) -> nn.Module:
    """A model of so many weights that says what family it is."""
    model = nn.Linear(columns, rows, bias=False, **options)
    model.config = BertConfig() if config is None else config  # type: ignore[assignment]
    return model


MODEL = sized(64, 64)
BYTES = 4 * 4096


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tested DeepSpeed, with room for the model and not a byte more."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(route_module, "VERSION", ZERO3_TWICE_VERSIONS[0])
    monkeypatch.setattr(route_module, "_free_bytes", lambda device: int(BYTES / GATHERED_SHARE))


def chosen(values: dict[str, Any], stage: int = 1) -> ChosenRoute:
    return choose_route(good_with(values), zero_stage=stage, model=MODEL, device=CPU)


def refusal(values: dict[str, Any], stage: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        chosen(values, stage)
    return str(caught.value)


TWICE = Route()
METHODS = ({"method": "gkd"}, {"method": "gkd_cls"}, {"method": "kd", "weight.attribution": 1.0})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_autocast"])
@pytest.mark.parametrize("attention", ["eager", "math"])
@pytest.mark.parametrize("method", METHODS)
def test_auto_differentiates_twice_wherever_it_can(
    method: dict[str, Any], attention: str, precision: str, stage: int
) -> None:
    found = chosen({**method, "student.attention": attention, "train.precision": precision}, stage)
    assert found == ChosenRoute(TWICE, "exact, and the cheaper one")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"student.attention": "sdpa"}, "attention sdpa has no second derivative"),
        (
            {"student.attention": "eager", "student.compile": True},
            "a compiled layer has no second derivative",
        ),
    ],
)
def test_auto_takes_a_difference_where_twice_is_impossible(
    values: dict[str, Any], reason: str, precision: str, stage: int
) -> None:
    values = {**values, "train.precision": precision, "alignment.step": 0.002}
    if stage == 3 and "student.compile" in values:
        assert "does not run at ZeRO 3" in refusal(values, stage)
        return
    found = chosen(values, stage)
    # ZeRO 3 lets go of the weights behind a forward: the graph at x cannot be kept
    keeps_graph = stage != 3 and not values.get("student.compile")
    expected = Route("central_difference", step=0.002, keeps_graph=keeps_graph)
    assert found == ChosenRoute(expected, reason)
    assert refusal({**values, "train.precision": "bf16"}, stage).startswith(
        f"alignment.route=auto finds none: {reason}, and bf16 weights round a central difference away"
    )


def test_auto_at_zero_3_of_an_untested_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_module, "VERSION", "0.99.1")
    for stage in (0, 1, 2):
        assert chosen({}, stage).route == TWICE  # it leans on nothing of DeepSpeed's there
    found = chosen({}, 3)
    assert found.route == Route("central_difference", keeps_graph=False)
    assert found.reason.endswith(f"tested with DeepSpeed {', '.join(ZERO3_TWICE_VERSIONS)}, not with 0.99.1")
    message = refusal({"alignment.route": "double_backward"}, 3)
    assert "alignment.route=double_backward" in message
    assert "0.99.1" in message
    assert message.endswith("set it to central_difference")
    assert "bf16_autocast or fp32" in refusal({"train.precision": "bf16"}, 3)


def test_auto_at_zero_3_of_a_student_that_does_not_fit_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def free(device: torch.device) -> int:
        asked.append(device)
        return int(BYTES / GATHERED_SHARE) - 1

    monkeypatch.setattr(route_module, "_free_bytes", free)
    for stage in (0, 1, 2):
        assert chosen({}, stage).route == TWICE
    assert asked == []
    found = chosen({}, 3)
    assert asked == [CPU]
    assert found.route == Route("central_difference", keeps_graph=False)
    assert "needs the whole student on every rank" in found.reason
    assert "GiB are free" in found.reason
    assert "whole student" in refusal({"alignment.route": "double_backward"}, 3)
    assert "bf16 weights" in refusal({"train.precision": "bf16"}, 3)


def test_the_sizes_are_said_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.5 GiB of weights, of which nothing is made."""
    monkeypatch.setattr(route_module, "_free_bytes", lambda device: 3 * 2**30)
    large = sized(5 * 2**13, 2**14, device="meta")
    found = choose_route(good_with({}), zero_stage=3, model=large, device=CPU)
    assert "every rank, 2.5 GiB, and 3.0 GiB are free" in found.reason


def test_what_is_asked_for_is_taken() -> None:
    for stage in (0, 1, 2, 3):
        assert chosen({"alignment.route": "double_backward"}, stage) == ChosenRoute(TWICE, "asked for")
        found = chosen({"alignment.route": "central_difference", "alignment.step": 0.01}, stage)
        expected = Route("central_difference", step=0.01, keeps_graph=stage != 3)
        assert found == ChosenRoute(expected, "asked for")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"student.attention": "sdpa"}, "sdpa has no second derivative"),
        ({"student.attention": "eager", "student.compile": True}, "a compiled layer"),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_refused(values: dict[str, Any], reason: str) -> None:
    message = refusal({**values, "alignment.route": "double_backward"})
    assert reason in message
    assert message.endswith("set it to central_difference")


@pytest.mark.parametrize("method", ["finetune", "kd", "gkd"])
@pytest.mark.parametrize("route", ["auto", "central_difference", "double_backward"])
def test_compiled_layers_do_not_run_at_zero_3(method: str, route: str) -> None:
    values = {"method": method, "student.compile": True, "alignment.route": route}
    assert "student.compile=true does not run at ZeRO 3" in refusal(values, 3)


@pytest.mark.parametrize("method", ["finetune", "kd", "pkd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_autocast"])
@pytest.mark.parametrize("route", ["auto", "central_difference", "double_backward"])
@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_without_gradients_is_refused_nothing(
    method: str, precision: str, route: str, stage: int
) -> None:
    """Its kernel is sdpa, its weights may be bf16, and none of it is differentiated twice."""
    found = chosen({"method": method, "train.precision": precision, "alignment.route": route}, stage)
    assert found.reason == "no gradient is matched"


def test_the_installed_deepspeed_is_one_that_was_tested() -> None:
    """Else CI proves nothing at ZeRO 3: run tests/multi/test_routes.py with it, then add it to the tuple."""
    assert VERSION in ZERO3_TWICE_VERSIONS


def test_free_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 2**20 < route_module._free_bytes(CPU) < 2**50
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert route_module._free_bytes(torch.device("cuda", 0)) == 123


@pytest.mark.parametrize("config", [DistilBertConfig(), BertConfig(hidden_act="relu")])
def test_no_difference_across_a_kink(config: PreTrainedConfig) -> None:
    """tests/unit/test_student_families.py shows what it would be."""
    kinked = sized(4, 4, config)

    def choose(values: dict[str, Any]) -> ChosenRoute:
        return choose_route(good_with(values), zero_stage=1, model=kinked, device=CPU)

    assert choose({}).route == TWICE
    with pytest.raises(UserError, match=r"has an activation with a kink.*set it to double_backward"):
        choose({"alignment.route": "central_difference"})
    with pytest.raises(UserError, match=r"auto finds none: attention sdpa.*has an activation with a kink"):
        choose({"student.attention": "sdpa"})


def test_students_with_different_memory_choose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with room would differentiate twice, the other not, and they would wait for each other."""
    frees = [int(BYTES / GATHERED_SHARE), int(BYTES / GATHERED_SHARE) - 1]
    found = []
    for free in frees:
        monkeypatch.setattr(route_module, "_free_bytes", lambda device, free=free: free)
        found.append(
            choose_route(
                good_with({}), zero_stage=3, model=MODEL, device=CPU, least=lambda own: min(own, *frees)
            )
        )
    assert found[0] == found[1]
    assert found[0].route.name == "central_difference"

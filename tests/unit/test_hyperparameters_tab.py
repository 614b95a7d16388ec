"""What TensorBoard itself reads for its tab of hyper-parameters."""

from __future__ import annotations

from pathlib import Path

from config.trees import good_with
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import backend_context
from test_telemetry import telemetry

from distill_dist.assemble.hyperparameters import ALWAYS, hyperparameters


def columns(folder: Path) -> tuple[set[str], set[str]]:
    """(names of hyper-parameters, tags of metrics) over all runs below ``folder``."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(TBContext(data_provider=provider))
    metadata = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(
        RequestContext(),
        "",
        True,
        metadata,
        provider.list_hyperparameters(RequestContext(), experiment_ids=[""]),
    )
    return {info.name for info in experiment.hparam_infos}, {
        info.name.tag for info in experiment.metric_infos
    }


def test_all_columns_of_all_runs_are_there(tmp_path: Path) -> None:
    for name, changed in (("a", {"weight.kd": 0.3}), ("b", {"weight.kd": 0.7, "train.clip_norm": 2.0})):
        values = hyperparameters(good_with({**changed, "data.labels": ("x", "y")}))
        assert values["weight.kd"] == changed["weight.kd"]
        target = telemetry(tmp_path / name / "tensorboard")
        target.hyperparameters(values)
        target.write(1, {"dev/accuracy": 0.5})
        target.close()
    names, metrics = columns(tmp_path)
    assert {*ALWAYS, "train.clip_norm"} <= names, "also what only the second run has"
    assert not {"run_dir", "cluster.threads", "data.prepared"} & names
    assert "dev/accuracy" in metrics


def test_values_are_numbers_truths_and_texts() -> None:
    values = hyperparameters(good_with({"student.layers": None, "objective.teacher_layers": (2, 4)}))
    assert values["student.layers"] == "None"
    assert values["objective.teacher_layers"] == "(2, 4)"
    assert (values["method"], values["train.learning_rate"]) == ("gkd_cls", 5e-5)

"""What TensorBoard's tab of hyper-parameters shows of a run."""

from __future__ import annotations

from distill_dist.assemble.resume import is_compared
from distill_dist.config.fields import schema_fields, value_at
from distill_dist.config.schema import RunConfig

# In every run, so that they can be compared whatever else differs.
ALWAYS = (
    "method", "seed", "student.layers", "student.dropout", "student.freeze_embeddings", "weight.kd", "weight.patience",
    "weight.gradient", "objective.temperature", "alignment.share", "curriculum.order", "reliance.rule", "batch.size",
    "train.learning_rate", "train.epochs",
)  # fmt: skip


def hyperparameters(config: RunConfig) -> dict[str, bool | float | str]:
    """Dotted key -> value: ALWAYS, and whatever changes results and is not at its default.

    Lists and mappings as texts, and so is a None among ALWAYS.
    """
    found: dict[str, bool | float | str] = {}
    for key, field in schema_fields().items():
        value = value_at(config, key)
        if key in ALWAYS or (is_compared(key) and value != field.default and value is not None):
            found[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found

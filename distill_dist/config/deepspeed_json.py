"""The DeepSpeed JSON of a run: ZeRO, communication, offload, and nothing that the run's YAML owns.

DeepSpeed ignores unknown top-level keys in silence and clips gradients at 1.0 unless told otherwise (FACTS,
DeepSpeed 0.19.8), so this file passes an allow-list before DeepSpeed sees it. deepspeed is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_dist.config.fields import nearest_name
from distill_dist.errors import UserError

_TOP_LEVEL = frozenset(
    {
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "communication_data_type",
        "aio",
        "comms_logger",
        "flops_profiler",
        "wall_clock_breakdown",
        "memory_breakdown",
        "steps_per_print",
        "dump_state",
        "disable_allgather",
        "disable_python_gc",
    }
)

_PRECISION = "train.precision"
_SCALING = "the project's own scaling of losses (they are sums, divided once by the global count)"
_TELEMETRY = "the project's own telemetry in run_dir"
_OWNED = {
    "train_batch_size": "batch.size",
    "train_micro_batch_size_per_gpu": "batch.micro_tokens",
    "gradient_accumulation_steps": "batch.micro_tokens",
    "managed_gradient_accumulation": "batch.micro_tokens",
    "gradient_clipping": "train.clip_norm",
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "data_types": _PRECISION,
    "optimizer": "train.optimizer, train.learning_rate and train.weight_decay",
    "scheduler": "train.warmup_share and train.epochs",
    "gradient_allreduce_op": _SCALING,
    "prescale_gradients": _SCALING,
    "gradient_predivide_factor": _SCALING,
    "tensorboard": _TELEMETRY,
    "wandb": _TELEMETRY,
    "csv_monitor": _TELEMETRY,
    "seed": "seed",
}
"""Top-level keys that DeepSpeed knows and somebody else here owns -> the owner."""

_ZERO = frozenset(
    {
        "stage",
        "contiguous_gradients",
        "reduce_scatter",
        "reduce_bucket_size",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "allgather_bucket_size",
        "overlap_comm",
        "compute_grad_norm",
        "elastic_checkpoint",
        "load_from_fp32_weights",
        "offload_optimizer",
        "sub_group_size",
        "ignore_unused_parameters",
        "round_robin_gradients",
    }
)
"""Fields of DeepSpeedZeroConfig (deepspeed/runtime/zero/config.py) that every stage may read."""

_ZERO_3 = frozenset(
    {
        "offload_param",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
    }
)
"""Those that stage 3 alone reads."""

_ZERO_NOT_OFFERED = frozenset(
    {
        "zenflow",
        "prefetch_bucket_size",
        "param_persistence_threshold",
        "model_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
        "gather_16bit_weights_on_model_save",
        "stage3_gather_16bit_weights_on_model_save",
        "module_granularity_threshold",
        "stage3_module_granularity_threshold",
        "use_all_reduce_for_fetch_params",
        "stage3_use_all_reduce_for_fetch_params",
        "allgather_sequential",
        "stage3_allgather_sequential",
        "stage3_gather_fp16_weights_on_model_save",
        "parameter_alignment",
        "zero_hpz_partition_size",
        "zero_quantized_weights",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients",
        "memory_efficient_linear",
        "pipeline_loading_checkpoint",
        "override_module_apply",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
        "save_muon_momentum_buffer_in_memory",
        "leaf_module",
        "cpu_offload",
        "cpu_offload_param",
        "cpu_offload_use_pin_memory",
        "legacy_stage1",
    }
)
"""The rest of its fields: other names, optimizers that are not ours, or deprecated."""

_OFFLOAD_PARAM = frozenset({"device", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory"})
_OFFLOAD_OPTIMIZER = frozenset(
    {
        "device",
        "nvme_path",
        "buffer_count",
        "pin_memory",
        "pipeline_read",
        "pipeline_write",
        "fast_init",
        "ratio",
        "super_offload",
        "cpuadam_cores_perc",
    }
)
"""Fields of DeepSpeedZeroOffloadOptimizerConfig (deepspeed/runtime/zero/offload_config.py)."""


def load_deepspeed_json(path: Path) -> dict[str, Any]:
    """The file's content, checked key by key; relative paths start at the working directory.

    Raises UserError, listing every problem: no such file, broken JSON (with its line), a key twice, a key
    that DeepSpeed does not know or that the run's YAML owns, a ZeRO stage other than 0, 1, 2 or 3.
    """
    name = f"deepspeed_config {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name}: no such file (relative paths start at {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read: {error}") from None
    try:
        content = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{name}: not valid JSON: {place}: {error.msg}") from None
    except _DuplicateKeyError as error:
        raise UserError(f"{name}: the key {error} stands twice") from None
    if not isinstance(content, dict):
        raise UserError(f"{name}: it holds no object; the least is {{}}")
    if problems := list(_problems(content)):
        raise UserError("\n".join(f"{name}: {problem}" for problem in problems))
    return content


def zero_stage(content: Mapping[str, Any]) -> int:
    """The ZeRO stage of a checked file; 0 where it says nothing."""
    return int(content.get("zero_optimization", {}).get("stage", 0))


class _DuplicateKeyError(Exception):
    """JSON lets the last one win in silence."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(repr(name) for name in names if names.count(name) > 1))
    return content


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    for key in content:
        if key in _OWNED:
            yield f"{key}: owned by {_OWNED[key]}; remove it here"
        elif key not in _TOP_LEVEL:
            yield _unknown(key, _TOP_LEVEL)
    zero = content.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield 'zero_optimization: it takes an object, e.g. {"stage": 1}'
        return
    yield from _zero_problems(zero)


def _zero_problems(zero: Mapping[str, Any]) -> Iterator[str]:
    for key in zero:
        if key in _ZERO_NOT_OFFERED:
            yield f"zero_optimization.{key}: not offered; remove it"
        elif key in _ZERO_3 and zero.get("stage", 0) != 3:
            yield f"zero_optimization.{key}: ZeRO 3 alone reads it; set stage to 3, or remove it"
        elif key not in _ZERO | _ZERO_3:
            yield _unknown(key, _ZERO | _ZERO_3, "zero_optimization.")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, (bool, float)):
        yield f"zero_optimization.stage = {json.dumps(stage)}: it takes 0, 1, 2 or 3"
    for name in ("offload_optimizer", "offload_param"):
        yield from _offload_problems(name, zero.get(name, {}))


def _offload_problems(name: str, offload: Any) -> Iterator[str]:
    if not isinstance(offload, dict):
        yield f'zero_optimization.{name}: it takes an object, e.g. {{"device": "cpu"}}'
        return
    known = _OFFLOAD_OPTIMIZER if name == "offload_optimizer" else _OFFLOAD_PARAM
    for key in offload:
        if key not in known:
            yield _unknown(key, known, f"zero_optimization.{name}.")
    if offload.get("device", "none") not in ("none", "cpu"):
        yield f"zero_optimization.{name}.device = {json.dumps(offload['device'])}: it takes none or cpu"


def _unknown(key: str, known: frozenset[str], prefix: str = "") -> str:
    near = nearest_name(key, sorted(known))
    remedy = f"nearest valid name: {prefix}{near}" if near else f"valid names: {', '.join(sorted(known))}"
    return f"{prefix}{key}: not a key that is passed to DeepSpeed; {remedy}"

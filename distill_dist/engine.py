"""DeepSpeed, and nothing else: the only file that imports it.

What it hides: DeepSpeed divides gradients by the number of students, counts micro-batches by itself, clips by
default, and keeps master weights and moments in partitions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found no GPU

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn import functional

from distill_dist.accumulate import OnlyInto
from distill_dist.errors import UserError

deepspeed.utils.logger.setLevel(logging.WARNING)  # it logs to stdout, where our one JSON line goes
# Its CPU all-reduce through /dev/shm wants a compiler and 30 s at the first run, and leaves files behind.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# Its own calls of torch functions on their way out; nothing a user of ours could change.
warnings.filterwarnings(
    "ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor).*deprecated", category=FutureWarning
)

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}
VERSION: str = deepspeed.__version__
# Where differentiating twice at ZeRO 3 was tested (tests/multi/test_routes.py): it leans on how DeepSpeed gathers.
ZERO3_TWICE_VERSIONS = ("0.19.8",)


def complete_json(deepspeed_json: dict[str, Any], *, clip_norm: float, precision: str) -> dict[str, Any]:
    """The user's DeepSpeed JSON with what the run's YAML owns; everything with a surprising default is set."""
    return {
        **deepspeed_json,
        # Micro-batches vary by step: the boundary is set by hand, and no factor may depend on these two.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,  # 1.0 by default, in silence (FACTS)
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,  # plain SGD, for comparisons
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; biases and normalisation weights (one axis) do not decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Engine:
    """A student under ZeRO. Every method is a collective of all students unless it says otherwise."""

    def __init__(
        self,
        model: nn.Module,
        deepspeed_json: dict[str, Any],
        *,
        students: int,
        optimizer: str,
        weight_decay: float,
        clip_norm: float,
        precision: str,
        differentiates_twice: bool = False,
    ) -> None:
        """Shard ``model`` over ``students`` ranks of the default process group.

        ``differentiates_twice``: losses hold gradients of gradients, whose backward needs whole weights.
        """
        groups = _parameter_groups(model, weight_decay)
        if not groups:
            raise UserError("the student has no trainable parameter")
        # The learning rate is set before every step; 0 would be a bug that shows at once.
        self._inner: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=0.0, fused=True)
            if optimizer == "adamw"
            else torch.optim.SGD(groups, lr=0.0)
        )
        self._moments = MOMENTS[optimizer]
        self._students = students
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=self._inner,
            config=complete_json(deepspeed_json, clip_norm=clip_norm, precision=precision),
            dist_init_required=False,
        )
        # At ZeRO 0 with bf16 DeepSpeed makes the moments by an empty first step, which counts in Adam's bias
        # correction; the learning rate was 0, so only the counter has to go.
        self._inner.state.clear()
        first = self._trainable()[0][1]
        self._is_cut = hasattr(first, "ds_id")  # ZeRO 3: the weights themselves
        self._is_sharded = self._is_cut or hasattr(first, "_hp_mapping")
        self._whole_in_backward = differentiates_twice and self._is_cut
        self._masters = _unsharded_masters(self._optimizer)

    @property
    def module(self) -> nn.Module:
        """The student itself. Forwards go through it, not through the wrapper (FACTS, second-order gradients)."""
        return self._engine.module

    @property
    def zero_stage(self) -> int:
        """ZeRO stage in force."""
        return int(self._engine.zero_optimization_stage())

    def backward(self, loss_share: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of this rank's share of the global loss; ``last`` micro-batch of the step.

        The reduced gradient is that of the sum of all shares: DeepSpeed averages over students, hence the factor.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        if self._is_cut:
            # DeepSpeed counts micro-batches in the forward of its wrapper, which is not used: without this a
            # micro-batch overwrites the one before it, in silence.
            self._optimizer.clear_backward_seen_flag()
        whole = self.whole_weights() if self._whole_in_backward else contextlib.nullcontext()
        with whole, OnlyInto(parameter for _, parameter in self._trainable()):
            self._engine.backward(loss_share * self._students, scale_wrt_gas=False)

    def whole_weights(self, *, modified: bool = False) -> contextlib.AbstractContextManager[object]:
        """Inside the block every rank holds the whole weights, where ZeRO 3 has cut them.

        DeepSpeed gathers a layer's weights before its backward, but not before the backward of that backward.
        With ``modified`` what rank 0 writes into them stays.
        """
        return deepspeed.zero.GatheredParameters(
            list(self.module.parameters()), modifier_rank=0 if modified else None, enabled=self._is_cut
        )

    def discard_gradient(self) -> None:
        """Forget the accumulated gradient: a step of length 0, and then its moments. Only before the first step."""
        self.step(0.0)
        self._inner.state.clear()

    def step(self, learning_rate: float, *, measure_norm: bool = False) -> float | None:
        """Clip, update, clear gradients. With ``measure_norm`` the gradient's norm before clipping; that syncs.

        Raises UserError, on every student, where DeepSpeed left the update out because the gradient is not finite.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if measure_norm and self._engine.get_global_grad_norm() is None and not self._is_sharded:
            # At ZeRO 0 in fp32 DeepSpeed clips without keeping the norm.
            norm = torch.nn.utils.get_total_norm([p.grad for _, p in self._trainable() if p.grad is not None])
        self._engine.step()
        if not self._engine.was_step_applied():  # it says nothing, and our count of steps would go on
            raise UserError(
                "the gradient is not finite, and the update was left out: lower train.learning_rate, or take "
                "train.precision=fp32. The last checkpoint is from before"
            )
        if not measure_norm:
            return None
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def reduced_gradients(self) -> dict[str, Tensor]:
        """Gradient of every trainable parameter between the last backward and ``step``, before clipping."""
        found = {}
        for name, parameter in self._trainable():
            gradient = safe_get_full_grad(parameter)
            found[name] = torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
        return found

    def weights(self) -> dict[str, Tensor]:
        """Every weight of the student in fp32 on the CPU: masters where they exist, whatever the sharding."""
        with self.whole_weights():
            found = {name: _to_host(tensor) for name, tensor in self.module.state_dict().items()}
        for name, parameter in self._trainable():
            if self._is_sharded:
                found[name] = _to_host(safe_get_full_fp32_param(parameter))
            else:
                found[name] = _to_host(self._master(parameter))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments and the optimizer's step count by name, independent of the number of students.

        Only after the first step: before it there are no moments.
        """
        state = {f"weights/{name}": tensor for name, tensor in self.weights().items()}
        self._link_moments()
        for key in self._moments:
            for name, parameter in self._trainable():
                if self._is_sharded:
                    state[f"{key}/{name}"] = _to_host(safe_get_full_optimizer_state(parameter, key))
                else:
                    state[f"{key}/{name}"] = _to_host(self._inner.state[self._master(parameter)][key])
        if self._moments:
            first = next(iter(self._inner.state.values()))
            state["step"] = _to_host(torch.as_tensor(first["step"]))
        return state

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Put ``weights`` into the module that forwards run; the optimizer's own copies stay as they are."""
        with self.whole_weights(modified=True):
            self.module.load_state_dict(weights, strict=True)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``, for any number of students and any ZeRO stage."""
        weights = {
            name.removeprefix("weights/"): t for name, t in state.items() if name.startswith("weights/")
        }
        self.load_weights(weights)
        if self._moments:
            # Torch makes moments at the first step; a resumed optimizer has not had one yet.
            for flat in self._flat_masters():
                zeros = {key: torch.zeros_like(flat) for key in self._moments}
                self._inner.state[flat] = {"step": state["step"].clone(), **zeros}
        self._link_moments()
        for name, parameter in self._trainable():
            moments = {key: state[f"{key}/{name}"].to(parameter.device) for key in self._moments}
            if self._is_cut:
                safe_set_local_fp32_param(parameter, self._own_part(parameter, weights[name]))
                for key, value in moments.items():
                    safe_set_local_optimizer_state(parameter, self._own_part(parameter, value), key)
            elif self._is_sharded:
                safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
                for key, value in moments.items():
                    safe_set_full_optimizer_state(parameter, value, key)
            else:
                master = self._master(parameter)
                master.data.copy_(weights[name])
                for key, value in moments.items():
                    self._inner.state[master][key].copy_(value)

    def _flat_masters(self) -> list[Tensor]:
        """What the optimizer updates: at ZeRO 3 its groups are empty between steps."""
        if self._is_cut:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self._inner.param_groups for flat in group["params"]]

    def _own_part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's part of ``whole`` at ZeRO 3, zeros behind its end.

        DeepSpeed's own setter of whole values fails where the number of students does not divide their size.
        """
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = functional.pad(whole.flatten(), (0, size * self._students - whole.numel()))
        return padded.narrow(0, size * self._engine.global_rank, size)

    def _link_moments(self) -> None:
        """Let DeepSpeed's accessors see the moments of every parameter group.

        It links all groups after the first group's first step, when the others have no moments yet (0.19.8), and
        never again. Private names; the resume tests hold them at every stage.
        """
        if self._is_sharded and not self._is_cut and self._moments:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """The fp32 tensor that the optimizer updates for ``parameter`` where nothing is sharded."""
        return self._masters.get(id(parameter), parameter)

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]


def _unsharded_masters(optimizer: Any) -> dict[int, Tensor]:
    """id(parameter) -> fp32 master, for bf16 at ZeRO 0, where DeepSpeed wraps the optimizer without sharding."""
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {id(low): high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}


def _to_host(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    # one copy, whatever the device: of a tensor that is there already in fp32, .cpu() would be the tensor itself
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()

"""Teachers and students as stock Hugging Face classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.utils import logging

from distill_dist.errors import UserError
from distill_dist.models.copy_weights import copy_into_distilbert, copy_into_electra, copy_into_same
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.layer_map import copied_layers


def load_classifier(path: str, *, attention: str) -> Any:
    """The fine-tuned classifier at ``path`` (a folder or cached hub name), fp32, eval mode, kernel ``attention``.

    Raises UserError where there is no model, or one without a trained classification head.
    """
    model, missing = _from_pretrained(path, attn_implementation=attention)
    if missing:
        raise UserError(
            f"{path!r} is not a fine-tuned classifier: it has no weights for {', '.join(sorted(missing)[:4])}; "
            "train one first (method: finetune)"
        )
    return model.eval()


def _from_pretrained(path: str, **options: Any) -> tuple[Any, set[str]]:
    with naming_the_folder(path, "model"):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,  # other weight files are pickles
            output_loading_info=True,
            **options,
        )
    return model, set(report["missing_keys"])


def quiet_loading() -> None:
    """From now on `transformers` shows no bars and no warnings of models that it loads in this process."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_finite(model: nn.Module, *, what: str) -> None:
    """Raises UserError where a weight of the model, which messages call ``what``, is NaN or infinite."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise UserError(
                f"{what}: its weights {name} are not all finite: it diverged, or the file is damaged; take another"
            )


@contextmanager
def naming_the_folder(path: str, kind: str) -> Iterator[None]:
    """Whatever fails while the ``kind`` (model, tokenizer) at ``path`` is read is a UserError that names it."""
    try:
        yield
    except Exception as error:
        # A damaged folder comes out of transformers as nearly anything: OSError, RuntimeError, KeyError, TypeError,
        # ZeroDivisionError, and bare Exceptions of its Rust parts.
        reason = (str(error) or "no reason given").splitlines()[0]
        if "ignore_mismatched_sizes" in reason:
            reason = "the weights do not have the shapes that its config.json says"
        if not isinstance(error, OSError | ValueError | RuntimeError | SafetensorError):
            reason = f"{type(error).__name__}: {reason}"
        inside = Path(path) / "model"  # as a run leaves it
        hint = f" (did you mean {str(inside)!r}?)" if (inside / "config.json").is_file() else ""
        raise UserError(f"no {kind} could be loaded from {path!r}{hint}: {reason}") from error


def load_teacher(path: str, *, labels: tuple[str, ...], attention: str, what: str = "the teacher") -> Any:
    """A frozen teacher over exactly the classes ``labels``. Raises UserError when its classes differ.

    ``what`` is how messages call it.
    """
    model = load_classifier(path, attention=attention)
    names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
    generic = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if model.config.num_labels != len(labels) or (not generic and names != labels):
        raise UserError(
            f"{what} at {path!r} knows the classes {list(names)}, the data {list(labels)}; the order counts "
            "too: give a model of this task, or data.labels in its order"
        )
    return model.requires_grad_(False)


def random_student(
    shape: dict[str, Any], *, vocab_size: int, pad_token_id: int, labels: tuple[str, ...]
) -> Any:
    """A classifier of ``shape`` (model_type and sizes) with random weights from torch's global generator."""
    shape = dict(shape)
    try:
        config = AutoConfig.for_model(
            shape.pop("model_type"),
            **shape,
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            **_classes(labels),
        )
    except ValueError as error:
        raise UserError(f"student.shape: {str(error).splitlines()[0]}") from error
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def student_from(
    path: str,
    *,
    architecture: str,
    keep: int | None,
    how: str,
    chosen: tuple[int, ...],
    labels: tuple[str, ...],
    shape: dict[str, Any] | None = None,
) -> Any:
    """A student filled with the embeddings and some layers of the model at ``path``; a new pooler and classifier.

    With ``architecture: same`` and every layer kept the pooler is copied as well (plain fine-tuning of a
    pretrained model). METHOD.md §1, "Student of the paper". ``architecture: electra`` takes the embeddings alone;
    its layers are random, of the sizes in ``shape``, and ``keep``, ``how`` and ``chosen`` say nothing.
    """
    source, _ = _from_pretrained(path)  # its head, trained or not, is dropped
    if architecture == "electra":
        assert shape is not None
        return copy_into_electra(source, shape, _classes(labels))
    layers = copied_layers(source.config.num_hidden_layers, keep=keep, how=how, chosen=chosen)
    if architecture == "distilbert":
        return copy_into_distilbert(source, layers, _classes(labels))
    whole = layers == tuple(range(1, source.config.num_hidden_layers + 1))
    return copy_into_same(source, layers, _classes(labels), pooler=whole)


def _classes(labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def set_attention(model: Any, attention: str) -> None:
    """Switch the attention kernel: `eager`, `sdpa`, or `math`, torch's plain one.

    `math` switches torch's other kernels off for the whole process: a layer that activation checkpointing runs
    again in the backward must take the same one. Raises UserError where the model's family has none of it.
    """
    implementation = "sdpa" if attention == "math" else attention
    kernels = encoder_parts(model).attention_kernels
    if implementation not in kernels:
        raise UserError(
            f"student.attention={attention}: a {model.config.model_type} has only the kernel {' or '.join(kernels)}; "
            f"set student.attention={kernels[0]}"
        )
    if attention == "math":
        for switch in FAST_KERNELS:
            switch(False)
    if model.config._attn_implementation != implementation:  # DeBERTa warns of any call, even of eager
        model.set_attn_implementation(implementation)


def use_own_kernel(parts: EncoderParts) -> None:
    """The kernel that `from_pretrained` takes by itself: the fast one where the family has one."""
    set_attention(parts.model, parts.attention_kernels[-1])


# These hold on the CPU too. None of these kernels has a second derivative (FACTS).
FAST_KERNELS = (
    torch.backends.cuda.enable_flash_sdp,
    torch.backends.cuda.enable_mem_efficient_sdp,
    torch.backends.cuda.enable_cudnn_sdp,
)


def set_checkpointing(model: Any, *, on: bool = True) -> None:
    """Layers keep their inputs alone and run again in the backward; in train mode only.

    Non-reentrant: the other kind cannot be differentiated twice.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # the older name
    if on:
        getattr(model, f"{kind}_checkpointing_enable")(
            **{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
        )
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Compile every layer's forward; hooks on the layers stay outside, where they see plain tensors."""
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)  # type: ignore[method-assign]


# What the six families' configurations call their dropouts.
_DROPOUT_NAMES = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",  # BERT, RoBERTa, ELECTRA
    "dropout", "attention_dropout", "seq_classif_dropout",  # DistilBERT
    "pooler_dropout", "cls_dropout",  # DeBERTa-v2, beside BERT's first two
    "embedding_dropout", "mlp_dropout",  # ModernBERT, beside attention_dropout and classifier_dropout
)  # fmt: skip


def set_dropout(model: nn.Module, probability: float) -> None:
    """Every dropout of the model, and what its configuration says of it, becomes ``probability``."""
    config: PreTrainedConfig = model.config  # type: ignore[assignment]
    for name in _DROPOUT_NAMES:
        if hasattr(config, name):
            setattr(config, name, probability)
    for module in list(model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout_prob", "attention_dropout"):  # numbers that a forward reads
            if isinstance(getattr(module, name, None), int | float):
                setattr(module, name, probability)
        if isinstance(getattr(module, "out_drop", None), nn.Identity):
            module.out_drop = nn.Dropout(probability)  # ModernBERT builds none where it was 0

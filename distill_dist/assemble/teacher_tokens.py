"""Whether a teacher can read what was prepared, and be asked what the run asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from distill_dist.config.methods import asks_inside, teacher_max_length
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest
from distill_dist.errors import UserError
from distill_dist.models.build import naming_the_folder
from distill_dist.models.decoder import is_decoder

PREPARE_AGAIN = "prepare again with launcher/prepare.py --replace"


def check_prepared_for_teacher(config: RunConfig, manifest: Manifest) -> None:
    """Raises UserError where `data.teacher_*` say something else than the folder was prepared with."""
    data, teacher = config.data, manifest.teacher
    if data.teacher_tokenizer and teacher is None:
        raise UserError(
            f"data.teacher_tokenizer={data.teacher_tokenizer!r}, but data.prepared={data.prepared!r} holds the "
            f"student's tokens alone: {PREPARE_AGAIN}"
        )
    if teacher is None:
        return
    if not data.teacher_tokenizer:
        raise UserError(
            f"data.prepared={data.prepared!r} holds tokens of a second tokenizer, which the teacher would read, and "
            f"data.teacher_tokenizer is empty: name it, or {PREPARE_AGAIN}"
        )
    asked = manifest.request["teacher"]
    said = {
        "data.teacher_max_length": (teacher_max_length(data), teacher.max_length),
        "data.teacher_separator": (data.teacher_separator, asked["separator"]),
    }
    for key, (wanted, prepared) in said.items():
        if wanted != prepared:
            raise UserError(
                f"{key}={wanted!r}, but data.prepared={data.prepared!r} was prepared with {prepared!r}: "
                f"{PREPARE_AGAIN}, or set it back"
            )


def check_decoder(config: RunConfig, model_config: Any) -> None:
    """Raises UserError where the run asks a decoder for what only an encoder has."""
    keys = asks_inside(config) if is_decoder(model_config) else []
    if keys:
        what = ", ".join(keys)
        raise UserError(
            f"teacher.path={config.teacher.path!r} is a decoder ({model_config.model_type}), which teaches by its "
            f"logits alone: it has no [CLS], and its tokens see only those before them. The run asks for more "
            f"({what}): take method kd without weight.attribution, weight.noise and evaluate.saliency; or an encoder"
        )


def check_decoder_vocabulary(model_config: Any, manifest: Manifest, *, what: str, value: str) -> None:
    """Raises UserError for a decoder that would read the student's tokens and embeds another number of them.

    Its folder may hold no tokenizer to compare (models.py: check_tokenizer).
    """
    if (
        is_decoder(model_config)
        and manifest.teacher is None
        and model_config.vocab_size != manifest.vocab_size
    ):
        raise UserError(
            f"{what}={value!r} embeds {model_config.vocab_size} tokens, the prepared data has {manifest.vocab_size} of "
            "the student's tokenizer: prepare again with data.teacher_tokenizer of this model"
        )


def refuse_decoder(folder: str, *, what: str) -> None:
    """Raises UserError where the model in ``folder``, which is to be a student, is a decoder."""
    if not (Path(folder) / "config.json").is_file():
        return  # whoever loads it says so
    with naming_the_folder(folder, "model"):
        found = AutoConfig.from_pretrained(folder)
    if is_decoder(found):
        raise UserError(
            f"{what}={folder!r} is a decoder ({found.model_type}), and students are encoders: name BERT, RoBERTa, "
            "ELECTRA, DistilBERT, DeBERTa-v2 or ModernBERT weights, or give student.shape and no path"
        )

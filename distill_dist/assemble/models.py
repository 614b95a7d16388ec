"""The student and the teacher of a run, from its configuration. No process group is needed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from distill_dist.assemble.teacher_tokens import (
    check_decoder,
    check_decoder_vocabulary,
    check_prepared_for_teacher,
    refuse_decoder,
)
from distill_dist.config.methods import is_aligned
from distill_dist.config.schema import RunConfig
from distill_dist.data.hold_out import drawn, drawn_for
from distill_dist.data.manifest import (
    TEACHER_TOKENIZER_FOLDER,
    TOKENIZER_FOLDER,
    Manifest,
    TeacherTokens,
)
from distill_dist.data.tasks import resolve_task
from distill_dist.errors import UserError
from distill_dist.hub import locate
from distill_dist.models.build import (
    load_teacher,
    naming_the_folder,
    random_student,
    set_attention,
    set_checkpointing,
    set_dropout,
    student_from,
)
from distill_dist.models.decoder import is_decoder, teacher_parts
from distill_dist.models.encoder import EncoderParts, encoder_parts, max_positions
from distill_dist.models.tokenizer import VOCABULARIES, prepared_tokenizer


@dataclass(frozen=True)
class TeacherShape:
    """What a student has to know of a teacher that it does not load."""

    layers: int
    hidden_size: int
    embedding_size: int
    pools_cls: bool
    is_decoder: bool = False


def check_prepared(config: RunConfig, manifest: Manifest) -> None:
    """Raises UserError when the run's `data` section says something else than the folder was prepared with."""
    data = config.data
    task = resolve_task(data)
    layouts = [[*layout.texts, layout.label] for layout in task.layouts]
    generated = (
        manifest.request["splits"]["train"].get("generator") if data.source == "synthetic_nli" else None
    )
    nothing = {"hold_out": {}, "max_rows": 0, "seed": data.draw_seed}  # of which no seed drew anything
    drawn_now, drawn_then = drawn(data) or nothing, drawn_for(manifest.request) or nothing
    said = {
        "data.source": (data.source, manifest.request["source"]),
        "data.text_columns and data.label_column": (layouts, manifest.request["layouts"]),
        "data.source_column": (data.source_column, manifest.request["source_column"]),
        "data.max_length": (data.max_length, manifest.max_length),
        "data.labels": (task.labels, manifest.labels),
        "data.splits": (sorted((*data.splits, *data.hold_out)), sorted(manifest.splits)),
        "data.hold_out": (data.hold_out, drawn_then["hold_out"]),
        "data.max_rows": (data.max_rows, drawn_then["max_rows"]),
        "data.draw_seed": (drawn_now["seed"], drawn_then["seed"]),
        "data.synthetic": (generated and asdict(data.synthetic), generated),
        "data.task": (data.task if data.source != "synthetic_nli" else manifest.task, manifest.task),
    }
    for key, (wanted, prepared) in said.items():
        if wanted != prepared:
            raise UserError(
                f"{key}={wanted!r}, but data.prepared={data.prepared!r} was prepared with {prepared!r}: prepare again "
                "with launcher/prepare.py --replace, name another data.prepared, or set it back"
            )
    check_prepared_for_teacher(config, manifest)
    if os.path.isdir(data.tokenizer):  # a name is not looked up again
        check_tokenizer(data.tokenizer, Path(data.prepared), what="data.tokenizer")
    if os.path.isdir(data.teacher_tokenizer):
        check_tokenizer(
            data.teacher_tokenizer,
            Path(data.prepared),
            what="data.teacher_tokenizer",
            name=TEACHER_TOKENIZER_FOLDER,
        )


def build_student(config: RunConfig, manifest: Manifest) -> EncoderParts:
    """The student before its first step; the same weights on every rank, from ``config.seed``."""
    torch.manual_seed(config.seed)
    student = config.student
    if student.path:
        folder = locate(student.path, what="student.path")
        refuse_decoder(folder, what="student.path")
        check_tokenizer(folder, Path(config.data.prepared), what="student.path")
        model = student_from(
            folder,
            architecture=student.architecture,
            keep=student.layers,
            how=student.layer_copy,
            chosen=student.layer_list,
            labels=manifest.labels,
            shape=asdict(student.shape),
        )
    else:
        model = random_student(
            asdict(student.shape),
            vocab_size=manifest.vocab_size,
            pad_token_id=manifest.pad_token_id,
            labels=manifest.labels,
        )
    check_vocabulary(model.config, manifest, what="student.path", value=student.path)
    assert student.dropout is not None
    assert student.freeze_embeddings is not None
    set_dropout(model, student.dropout)
    parts = encoder_parts(model)
    set_attention(model, choose_attention(config, parts))
    if student.checkpointing:
        set_checkpointing(model)
    if student.freeze_embeddings:
        parts.embeddings.requires_grad_(False)
    return parts


def choose_attention(config: RunConfig, student: EncoderParts) -> str:
    """The attention kernel; `auto` takes the fastest that the family has and the run may use."""
    wanted = config.student.attention
    if wanted == "auto":
        once = config.alignment.route == "central_difference" or config.student.compile
        fast = once or not is_aligned(config)
        return "sdpa" if fast and "sdpa" in student.attention_kernels else "eager"
    return wanted


def build_teacher(config: RunConfig, manifest: Manifest, device: torch.device) -> EncoderParts:
    """The frozen teacher on ``device``, over the classes and the vocabulary of the prepared data."""
    folder = locate(config.teacher.path, what="teacher.path")
    return read_teacher(
        folder, manifest, Path(config.data.prepared), device, what="teacher.path", value=config.teacher.path
    )


def read_teacher(
    folder: str, manifest: Manifest, prepared: Path, device: torch.device, *, what: str, value: str
) -> EncoderParts:
    """The frozen model in ``folder``, which ``what`` = ``value`` names, over the tokens that teachers read."""
    tokens = manifest.read_by_teacher
    name = TOKENIZER_FOLDER if manifest.teacher is None else TEACHER_TOKENIZER_FOLDER
    check_tokenizer(folder, prepared, what=what, name=name)
    model = load_teacher(folder, labels=manifest.labels, attention="eager")
    check_decoder_vocabulary(model.config, manifest, what=what, value=value)
    check_vocabulary(model.config, tokens, what=what, value=value)
    return teacher_parts(model.to(device), pad_token_id=tokens.pad_token_id)


def teacher_shape(config: RunConfig) -> TeacherShape:
    """Depth and widths of the teacher, from its configuration file alone. UserError where the run asks too much."""
    folder = locate(config.teacher.path, what="teacher.path")
    name = TEACHER_TOKENIZER_FOLDER if config.data.teacher_tokenizer else TOKENIZER_FOLDER
    check_tokenizer(folder, Path(config.data.prepared), what="teacher.path", name=name)
    with naming_the_folder(folder, "model"):
        found = AutoConfig.from_pretrained(folder)
        shape = TeacherShape(
            layers=found.num_hidden_layers,
            hidden_size=found.hidden_size,
            embedding_size=getattr(found, "embedding_size", found.hidden_size),
            pools_cls=getattr(found, "classifier_pooling", "cls") == "cls",
            is_decoder=is_decoder(found),
        )
    check_decoder(config, found)
    return shape


def check_vocabulary(model_config: Any, tokens: Manifest | TeacherTokens, *, what: str, value: str) -> None:
    """Raises UserError when the model embeds fewer tokens or positions than the prepared data has."""
    of_teacher = "" if isinstance(tokens, Manifest) else "teacher_"
    if model_config.vocab_size < tokens.vocab_size:
        raise UserError(
            f"{what}={value!r} embeds {model_config.vocab_size} tokens, the prepared data has ids up to "
            f"{tokens.vocab_size}: prepare again with data.{of_teacher}tokenizer of this model"
        )
    positions = max_positions(model_config)
    if positions < tokens.max_length:
        raise UserError(
            f"{what}={value!r} reads at most {positions} tokens, the data was prepared with "
            f"data.{of_teacher}max_length={tokens.max_length}: prepare again with a smaller one"
        )


def check_tokenizer(folder: str, prepared: Path, *, what: str, name: str = TOKENIZER_FOLDER) -> None:
    """Raises UserError when the model in ``folder`` has another vocabulary than the prepared data.

    It would answer nonsense without a word. A folder without a tokenizer cannot be compared. ``name`` says in
    which of the two vocabularies it reads: `tokenizer` or `teacher_tokenizer`.
    """
    if not any((Path(folder) / name).exists() for name in VOCABULARIES):
        return
    with naming_the_folder(folder, "tokenizer"):
        theirs = AutoTokenizer.from_pretrained(folder).get_vocab()
    if theirs != prepared_tokenizer(prepared / name).get_vocab():
        may_differ = name == TOKENIZER_FOLDER and what.startswith("teacher")
        other = ", or name it in data.teacher_tokenizer" if may_differ else ""
        raise UserError(
            f"{what}={folder!r} has another vocabulary than data.prepared={str(prepared)!r}: token ids would mean "
            f"other words to it. Prepare the data with data.{name} of this model{other}"
        )

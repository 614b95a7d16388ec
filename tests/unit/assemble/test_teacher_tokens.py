"""Teachers with a tokenizer of their own, decoders among them: what is read, scored and refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import bpe_tokenizer, save_decoder, tiny_decoder

from distill_dist.assemble.models import (
    build_student,
    build_teacher,
    check_prepared,
    teacher_shape,
)
from distill_dist.assemble.saliency_of_run import asks_saliency, why_no_saliency
from distill_dist.assemble.score import Asked, score
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import load_manifest
from distill_dist.data.prepare import prepare
from distill_dist.errors import UserError
from distill_dist.models.build import random_student
from distill_dist.models.decoder import DecoderParts

CPU = torch.device("cpu")


def configured(prepared: Path, decoder: Path, *more: str) -> RunConfig:
    rows = ["data.synthetic.train_rows=20", "data.synthetic.dev_rows=10", "data.synthetic.max_steps=1"]
    arguments = [
        "method=kd", "run_dir=runs/x", "data.source=synthetic_nli", f"data.prepared={prepared}", *rows,
        f"teacher.path={decoder}", "cluster.device=cpu", "student.shape.hidden_size=16",
        "student.shape.num_hidden_layers=1", "student.shape.intermediate_size=16", *more,
    ]  # fmt: skip
    return load_config(None, arguments)


def with_saliency(config: RunConfig, value: bool | None) -> RunConfig:
    return replace(config, evaluate=replace(config.evaluate, saliency=value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`decoder`, and the corpus prepared with its tokenizer (`both`) and without (`plain`)."""
    found = tmp_path_factory.mktemp("world")
    decoder = save_decoder(found / "decoder", "qwen2", template=False)
    prepare(configured(found / "both", decoder, f"data.teacher_tokenizer={decoder}").data, progress=False)
    prepare(configured(found / "plain", decoder).data, progress=False)
    return found


@pytest.fixture
def config(folder: Path) -> RunConfig:
    return configured(folder / "both", folder / "decoder", f"data.teacher_tokenizer={folder}/decoder")


def teacher_of(config: RunConfig, path: Path) -> Any:
    return build_teacher(
        replace(config, teacher=replace(config.teacher, path=str(path))),
        load_manifest(Path(config.data.prepared)),
        CPU,
    )


def test_a_decoder_teaches(config: RunConfig, folder: Path) -> None:
    manifest = load_manifest(folder / "both")
    check_prepared(config, manifest)
    assert teacher_shape(config).layers == 3
    parts = build_teacher(config, manifest, CPU)
    assert isinstance(parts, DecoderParts)
    assert parts.pad_token_id == 1, "its end token: neither it nor its tokenizer have one to pad with"
    assert not any(parameter.requires_grad for parameter in parts.model.parameters())


def test_an_encoder_with_another_tokenizer_teaches_as_well(config: RunConfig, tmp_path: Path) -> None:
    path, shape = tmp_path / "encoder", {**asdict(config.student.shape), "max_position_embeddings": 128}
    labels = load_manifest(Path(config.data.prepared)).labels
    random_student(shape, vocab_size=300, pad_token_id=1, labels=labels).save_pretrained(path)
    bpe_tokenizer().save_pretrained(path)
    assert not isinstance(teacher_of(config, path), DecoderParts)


def test_prepared_data_says_whether_it_holds_what_the_teacher_reads(config: RunConfig, folder: Path) -> None:
    both, plain = load_manifest(folder / "both"), load_manifest(folder / "plain")

    def refused(manifest: Any, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            check_prepared(replace(config, data=replace(config.data, **changes)), manifest)
        return str(caught.value)

    on_plain = refused(plain, prepared=str(folder / "plain"))
    assert "holds the student's tokens alone: prepare again with launcher/prepare.py --replace" in on_plain
    assert "data.teacher_tokenizer is empty: name it" in refused(both, teacher_tokenizer="")
    assert "data.teacher_max_length=64, but" in refused(both, teacher_max_length=64)
    assert "data.teacher_separator=' ', but" in refused(both, teacher_separator=" ")
    other = folder / "other"
    bpe_tokenizer(words=290).save_pretrained(other)
    assert "has another vocabulary than data.prepared" in refused(both, teacher_tokenizer=str(other))


@pytest.mark.parametrize(
    "kind", ["another tokenizer", "fewer tokens", "fewer positions", "decoder", "tokenizer"]
)
def test_a_teacher_that_does_not_fit_is_refused(
    config: RunConfig, folder: Path, tmp_path: Path, kind: str
) -> None:
    path, data = tmp_path / "teacher", config.data
    if kind == "another tokenizer":
        tiny_decoder().save_pretrained(path)
        bpe_tokenizer(words=290).save_pretrained(path)
        words = r"another vocabulary than .*Prepare the data with data\.teacher_tokenizer of this model$"
    elif kind == "fewer tokens":
        tiny_decoder(words=299).save_pretrained(path)
        words = r"embeds 299 tokens, .* up to 300: prepare again with data\.teacher_tokenizer of this model"
    elif kind == "fewer positions":
        tiny_decoder(max_position_embeddings=64).save_pretrained(path)
        words = r"at most 64 tokens, .*data\.teacher_max_length=128: prepare again with a smaller one"
    elif kind == "decoder":
        tiny_decoder().save_pretrained(path)
        data = replace(data, prepared=str(folder / "plain"), teacher_tokenizer="")
        words = (
            r"embeds 300 tokens, the prepared data has \d+ of .* with data\.teacher_tokenizer of this model"
        )
    else:
        path = folder / "decoder"
        data = replace(data, prepared=str(folder / "plain"), teacher_tokenizer="")
        words = r"another vocabulary .*data\.tokenizer of this model, or name it in data\.teacher_tokenizer"
    with pytest.raises(UserError, match=words):
        teacher_of(replace(config, data=data), path)


def test_a_decoder_of_the_students_own_tokenizer_teaches_by_logits_alone(
    config: RunConfig, folder: Path, tmp_path: Path
) -> None:
    manifest = load_manifest(folder / "plain")
    tiny_decoder(words=manifest.vocab_size).save_pretrained(tmp_path / "own")
    data = replace(config.data, prepared=str(folder / "plain"), teacher_tokenizer="")
    plain = replace(config, data=data, teacher=replace(config.teacher, path=str(tmp_path / "own")))
    parts = build_teacher(plain, manifest, CPU)
    assert isinstance(parts, DecoderParts)
    assert parts.pad_token_id == manifest.pad_token_id
    shape = teacher_shape(plain)
    assert shape.layers == 3
    assert why_no_saliency(plain, [shape]) == "a decoder's tokens see only those before them"
    assert not asks_saliency(plain, [shape])
    encoder = replace(shape, is_decoder=False)
    assert [asks_saliency(with_saliency(plain, value), [encoder]) for value in (None, True, False)] == [
        True,
        True,
        False,
    ]
    assert "data.teacher_tokenizer" in str(why_no_saliency(config, [encoder]))
    assert "[16, 32] wide" in str(
        why_no_saliency(plain, [replace(encoder, embedding_size=n) for n in (16, 32)])
    )
    asks_more = (
        replace(plain, method="pkd"),
        replace(plain, method="gkd"),
        replace(plain, weight=replace(plain.weight, attribution=0.1)),
        replace(plain, weight=replace(plain.weight, noise=0.1)),
        with_saliency(plain, True),
    )
    for asked in asks_more:
        with pytest.raises(UserError, match=r"is a decoder \(llama\), which teaches by its logits alone"):
            teacher_shape(asked)


def test_a_student_is_no_decoder(config: RunConfig, folder: Path) -> None:
    for changes in (
        {"path": str(folder / "decoder")},
        {"shape": replace(config.student.shape, model_type="llama")},
    ):
        asked = replace(config, student=replace(config.student, **changes))
        with pytest.raises(
            UserError, match=r"is a decoder \(qwen2\), and students are encoders|supported encoder"
        ):
            build_student(asked, load_manifest(folder / "both"))


def test_scores_of_both_models(config: RunConfig, folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(folder / "both")
    build_student(config, manifest).model.save_pretrained(tmp_path / "student")  # type: ignore[operator]
    asked = Asked(str(tmp_path / "student"), str(folder / "decoder"))
    found = score(config, asked).record
    assert found["rows"] == 10
    assert set(found["loyalty"]) == {"ll", "pl"}
    assert found["teacher"]["loss"] != found["student"]["loss"]
    with pytest.raises(UserError, match="--saliency compares what both models make of the same tokens"):
        score(config, replace(asked, saliency=True))
    with pytest.raises(UserError, match="--consistency changes the tokens that both models read"):
        score(config, replace(asked, consistency=True))

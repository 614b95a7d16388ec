"""A run's best model as a folder to take away: what `launcher/export.py` does. The run itself is only read."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from distill_dist.assemble.card_facts import gather
from distill_dist.assemble.evaluated_models import find_teachers, weights_digest
from distill_dist.assemble.export_measures import measure_latency, write_onnx
from distill_dist.assemble.score import Asked, score
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest, load_manifest
from distill_dist.errors import UserError
from distill_dist.export.card import CARD, model_card
from distill_dist.export.facts import CardFacts
from distill_dist.export.latency import as_text
from distill_dist.export.model_files import WEIGHTS, copy_model, save_tokenizer
from distill_dist.export.place import new_folder, sizes, write_record
from distill_dist.models.build import load_classifier, set_attention
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.report.run_record import RunRecord, read_run, value_at
from distill_dist.run_folder import BEST


@dataclass(frozen=True)
class ExportAsked:
    """What `launcher/export.py` is asked for, besides the configuration."""

    run: Path
    out: Path
    evaluate: bool = True  # score the model where no evaluation of it is there
    onnx: bool = False
    latency: bool = False
    rounds: int = 5


def export_run(config: RunConfig, asked: ExportAsked) -> dict[str, Any]:
    """Write the folder; what is in it, as JSON. Raises UserError; then nothing was written."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run = _finished(asked.run)
    model = asked.run / "model"
    best = _best(model)
    manifest = _manifest(config, asked, run, model)
    with new_folder(asked.out) as folder:
        copy_model(model, folder, sha256=best["sha256"])
        student = _student(model)
        save_tokenizer(
            model, folder, max_length=config.data.max_length, takes_token_types=student.takes_token_types
        )
        evaluation = _evaluation(config, asked, run, model)
        found, missing = find_teachers(config)
        if missing is not None:
            _say(f"the run's teacher is not there any more, so nothing is measured of it: {missing}")
        facts = gather(
            config,
            run,
            evaluation,
            manifest,
            name=Path(asked.out).resolve().name,
            labels=_labels(student.model.config),
            parameters=sum(each.numel() for each in student.model.parameters()),
            sha256=best["sha256"],
            teachers={path: place for path, _, place in found},
            lower_cases=_lower_cases(folder),
        )
        facts = _measured(config, asked, facts, manifest, student, folder, found)
        model_card(facts).save(folder / CARD)
        record = _record(facts, best)
        write_record(folder, record)
        files = sizes(folder)
    if facts.latency is not None:
        _say(as_text(facts.latency))
    _say(
        f"{asked.out}: {len(files)} files, {sum(files.values()) / 1e6:.2f} MB; {asked.out / CARD} is its model card"
    )
    return {"export": str(asked.out), "files": files, **record}


def _finished(path: Path) -> RunRecord:
    run = read_run(path)
    if run.state != "done":
        reason = f" ({run.reason})" if run.reason else ""
        remedy = {
            "running": "wait for its end",
            "lost": "its process is gone; the command that started it goes on from its last checkpoint",
            "stopped": "the command that started it goes on from its last checkpoint",
            "failed": "see its logs, then start it again",
        }.get(run.state, "give the run_dir of a launcher/train.py that ended")
        raise UserError(f"{path} is not done, its state is `{run.state}`{reason}: {remedy}, then export")
    if not run.summary:
        raise UserError(
            f"{path} has no summary.json ({'; '.join(run.problems) or 'it is gone'}), which says what the model is: "
            "put it back, or run launcher/train.py with its config.yaml again"
        )
    return run


def _best(model: Path) -> dict[str, Any]:
    try:
        found = json.loads((model / BEST).read_text(encoding="utf-8"))
        if not isinstance(found["sha256"], str):
            raise TypeError("no checksum")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{model} is not the model that a run exported ({BEST}: {error}): put the run's model folder back"
        ) from error
    return dict(found)


def _manifest(config: RunConfig, asked: ExportAsked, run: RunRecord, model: Path) -> Manifest | None:
    """Of the prepared rows; None where they are gone and nothing has to be computed on them."""
    try:
        return load_manifest(Path(config.data.prepared))
    except UserError as error:
        scores = asked.evaluate and not _fits(run, model)
        wants = [name for name, is_on in (("--onnx", asked.onnx), ("--latency", asked.latency)) if is_on]
        if scores or wants:
            remedy = f"or leave {' and '.join(wants)} away" if wants else "or give --no-evaluate"
            what = ", ".join([*wants, *(["scoring"] if scores else [])])
            raise UserError(
                f"{error}; {what} computes on these rows: give their place as data.prepared=FOLDER, {remedy}"
            ) from error
        return None


def _student(model: Path) -> EncoderParts:
    """On the CPU, in the kernel that `from_pretrained` takes by itself."""
    return with_own_kernel(encoder_parts(load_classifier(str(model), attention="eager")))


def with_own_kernel(parts: EncoderParts) -> EncoderParts:
    """The fast kernel where the family has one: what whoever loads the folder computes with."""
    set_attention(parts.model, parts.attention_kernels[-1])
    return parts


def _fits(run: RunRecord, model: Path) -> bool:
    """Whether evaluation.json is of these weights."""
    scored = value_at(run.evaluation, "models", "student", "sha256")
    splits = value_at(run.evaluation, "splits")
    return bool(splits) and scored == weights_digest(str(model))


def _evaluation(config: RunConfig, asked: ExportAsked, run: RunRecord, model: Path) -> dict[str, Any] | None:
    """evaluation.json where it is of this model, else what evaluate.py would find; None: neither."""
    if _fits(run, model):
        return run.evaluation
    kind = "is of another model" if run.evaluation else "is not there"
    remedy = f"python launcher/evaluate.py {asked.run} --saliency"
    if not asked.evaluate:
        _say(f"{asked.run}/evaluation.json {kind}: the card has no intervals ({remedy} makes them)")
        return None
    _say(f"{asked.run}/evaluation.json {kind}: scoring now ({remedy} would keep it for the next time)")
    _, missing = find_teachers(config)
    defined = value_at(run.summary, "loyalty", "sl_spearman_norm") is not None
    return score(config, Asked(student=str(model), saliency=defined and missing is None)).record


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def _lower_cases(folder: Path) -> bool:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return bool(config.get("do_lower_case"))


def _measured(
    config: RunConfig,
    asked: ExportAsked,
    facts: CardFacts,
    manifest: Manifest | None,
    student: EncoderParts,
    folder: Path,
    teachers: list[tuple[str, float, str]],
) -> CardFacts:
    """``facts`` with what ONNX and latency add."""
    if manifest is None or not (asked.onnx or asked.latency):
        return facts
    if asked.onnx:
        _say("writing ONNX and comparing it with PyTorch on dev")
        facts = replace(facts, onnx=write_onnx(config, manifest, student, folder))
    if asked.latency:
        _say("timing")
        table = measure_latency(
            config, manifest, facts, student, folder, teachers=teachers, rounds=asked.rounds
        )
        facts = replace(facts, latency=table)
    return facts


def _record(facts: CardFacts, best: dict[str, Any]) -> dict[str, Any]:
    """export.json but for the files; also what is printed."""
    return {
        "name": facts.name,
        "task": facts.task,
        "method": facts.method,
        "labels": list(facts.labels),
        "parameters": facts.parameters,
        "max_length": facts.max_length,
        "weights": {"file": WEIGHTS, "sha256": best["sha256"]},
        "manifest": facts.manifest,
        "splits": {split.name: asdict(split) for split in facts.splits},
        "onnx": None if facts.onnx is None else asdict(facts.onnx),
        "latency": None if facts.latency is None else asdict(facts.latency),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

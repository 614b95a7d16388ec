"""A run's best model as a folder to take away: what `launcher/export.py` does. The run itself is only read."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill_dist.assemble.card_facts import architecture, gather
from distill_dist.assemble.evaluated_models import find_teachers
from distill_dist.assemble.export_latency import measure_latency
from distill_dist.assemble.export_onnx import write_onnx
from distill_dist.assemble.finished_run import (
    check_rows,
    evaluation_missing,
    finished_run,
    noted_best,
    prepared_rows,
)
from distill_dist.assemble.score import Asked, score
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest
from distill_dist.export.card import CARD, model_card
from distill_dist.export.facts import CardFacts
from distill_dist.export.latency import as_text
from distill_dist.export.model_files import WEIGHTS, check_model, copy_model
from distill_dist.export.place import new_folder, sizes, write_record
from distill_dist.export.settings_file import SETTINGS, write_settings
from distill_dist.models.build import check_finite, load_classifier, quiet_loading, use_own_kernel
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.tokenizer import save_tokenizer
from distill_dist.report.run_record import RunRecord, read_object, value_at


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
    quiet_loading()
    run = finished_run(asked.run)
    best = noted_best(run.path / "model")
    check_model(run.path / "model", sha256=best["sha256"], others=best["files"])
    manifest, no_rows = prepared_rows(config, run)
    missing = evaluation_missing(config, run, manifest)
    check_rows(no_rows, needed_by=_needs_rows(asked, missing))
    with new_folder(asked.out) as folder:
        copy_model(run.path / "model", folder, sha256=best["sha256"])
        facts = _Export(config, asked, run, manifest, missing, folder).facts(best)
        model_card(facts).save(folder / CARD)
        write_settings(run.config, folder / SETTINGS, folder=run.started_in)
        record = _record(facts)
        write_record(folder, record)
        files = sizes(folder)
    if facts.latency is not None:
        _say(as_text(facts.latency))
    size = sum(files.values()) / 1e6
    _say(f"{asked.out}: {len(files)} files, {size:.2f} MB; {asked.out / CARD} is its model card")
    return {"export": str(asked.out), "files": files, **record}


def _needs_rows(asked: ExportAsked, missing: str) -> list[str]:
    needs = {
        f"scoring, since evaluation.json {missing} (--no-evaluate leaves it out)": asked.evaluate and missing,
        "--onnx": asked.onnx,
        "--latency": asked.latency,
    }
    return [name for name, is_on in needs.items() if is_on]


@dataclass(frozen=True)
class _Export:
    """One export under way, into ``folder``, where weights and configuration lie already.

    ``missing``: why evaluation.json cannot be taken; "": it can.
    """

    config: RunConfig
    asked: ExportAsked
    run: RunRecord
    manifest: Manifest | None
    missing: str
    folder: Path

    def facts(self, best: dict[str, Any]) -> CardFacts:
        """All that the card says; writes the tokenizer and the ONNX files on the way."""
        model = self.run.path / "model"
        student = _student(model)
        max_length, segments = self.config.data.max_length, student.takes_token_types
        save_tokenizer(model, self.folder, max_length=max_length, takes_token_types=segments)
        teachers, missing = find_teachers(self.config)
        if missing is not None:
            _say(f"the run's teacher is not there any more, so nothing is measured of it: {missing}")
        facts = gather(
            self.config,
            self.run,
            self._evaluation(teacher_is_there=missing is None),
            self.manifest,
            name=self.asked.out.resolve().name,
            labels=_labels(student.model.config),
            parameters=sum(each.numel() for each in student.model.parameters()),
            architecture=architecture(read_object(self.folder / "config.json", [])),
            sha256=best["sha256"],
            teachers={path: place for path, _, place in teachers},
            lower_cases=_lower_cases(self.folder),
        )
        return self._measured(facts, student, teachers)

    def _evaluation(self, *, teacher_is_there: bool) -> dict[str, Any] | None:
        """evaluation.json where it is of this model, else what evaluate.py would find; None: neither."""
        if not self.missing:
            return self.run.evaluation
        path = self.run.path
        defined = value_at(self.run.summary, "loyalty", "sl_spearman_norm") is not None
        remedy = f"python launcher/evaluate.py {path}{' --saliency' if defined else ''}"
        if not self.asked.evaluate:
            _say(f"{path}/evaluation.json {self.missing}: the card has no intervals ({remedy} makes them)")
            return None
        _say(f"{path}/evaluation.json {self.missing}: scoring now ({remedy} would keep it for the next time)")
        wanted = Asked(student=str(path / "model"), saliency=defined and teacher_is_there)
        return score(self.config, wanted).record

    def _measured(
        self, facts: CardFacts, student: EncoderParts, teachers: list[tuple[str, float, str]]
    ) -> CardFacts:
        """``facts`` with what ONNX and latency add."""
        if self.asked.onnx:
            assert self.manifest is not None
            _say("writing ONNX and comparing it with PyTorch on dev")
            facts = replace(facts, onnx=write_onnx(self.config, self.manifest, student, self.folder))
        if self.asked.latency:
            assert self.manifest is not None
            _say("timing")
            table = measure_latency(
                self.config,
                self.manifest,
                facts,
                student,
                self.folder,
                teachers=teachers,
                rounds=self.asked.rounds,
            )
            facts = replace(facts, latency=table)
        return facts


def _student(model: Path) -> EncoderParts:
    parts = encoder_parts(load_classifier(str(model), attention="eager"))
    check_finite(parts.model, what=str(model))
    use_own_kernel(parts)
    return parts


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def _lower_cases(folder: Path) -> bool:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return bool(config.get("do_lower_case"))


def _record(facts: CardFacts) -> dict[str, Any]:
    """export.json but for the files; also what is printed."""
    return {
        "name": facts.name,
        "task": facts.task,
        "method": facts.method,
        "labels": list(facts.labels),
        "parameters": facts.parameters,
        "max_length": facts.max_length,
        "weights": {"file": WEIGHTS, "sha256": facts.weights_sha256},
        "manifest": facts.manifest,
        "splits": {split.name: asdict(split) for split in facts.splits},
        "onnx": None if facts.onnx is None else asdict(facts.onnx),
        "latency": None if facts.latency is None else asdict(facts.latency),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

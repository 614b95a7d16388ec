"""The model card: README.md with YAML front matter, by huggingface_hub's own classes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from distill_dist.export.facts import CardFacts, Measured, OnnxFacts, SplitFigures
from distill_dist.export.latency import LatencyTable, conditions
from distill_dist.export.markdown import block, code, hide_places, one_line, table
from distill_dist.export.settings_file import SETTINGS

CARD = "README.md"
# name in our records -> (the hub's name of the metric, how people write it)
METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "f1": ("f1", "F1 of class 1"),
    "matthews": ("matthews_correlation", "Matthews correlation"),
}
_OTHERS = {
    "loss": "cross-entropy (nats)",
    "ece": "calibration error (15 bins)",
    "ll": "label loyalty: share of rows with the teacher's label",
    "pl": "probability loyalty: 1 − √(Jensen-Shannon divergence)",
    "sl_spearman_norm": "saliency loyalty: Spearman, norm of gradients",
    "sl_pearson_norm": "saliency loyalty: Pearson, norm of gradients",
    "sl_spearman_dot": "saliency loyalty: Spearman, gradient · embedding",
    "sl_pearson_dot": "saliency loyalty: Pearson, gradient · embedding",
}
METHODS = {
    "finetune": "the labels alone; a teacher, where there is one, was only compared with",
    "kd": "the labels and the logits of its teacher (knowledge distillation)",
    "pkd": "the labels, the logits of its teacher and its [CLS] states in matched layers (patient distillation)",
    "gkd": "the labels, the logits of its teacher and the gradient of its prediction (gradient knowledge distillation, "
    "arXiv 2211.01071)",
    "gkd_cls": "the labels, the logits of its teacher, its [CLS] states in matched layers and the gradients of its "
    "prediction (gradient knowledge distillation, arXiv 2211.01071)",
}


def model_card(facts: CardFacts) -> ModelCard:
    """The card; its text has no absolute path, and nothing from the run can break its YAML or Markdown."""
    text = "\n\n".join(part for part in _parts(facts) if part)
    return ModelCard(f"---\n{_front_matter(facts).to_yaml()}\n---\n\n{text}\n")


def _front_matter(facts: CardFacts) -> ModelCardData:
    results = [
        _result(facts, split, name) for split in facts.splits for name in METRICS if name in split.student
    ]
    metrics = [METRICS[name][0] for name in METRICS if any(name in split.student for split in facts.splits)]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["text-classification", "distillation", "distill-dist", facts.method.replace("_", "-")],
        base_model=facts.base_model,
        datasets=None if facts.dataset is None else [facts.dataset],
        metrics=metrics or None,
        model_name=one_line(facts.name),
        eval_results=results or None,
    )


def _result(facts: CardFacts, split: SplitFigures, name: str) -> EvalResult:
    measured = split.student[name]
    interval = {} if measured.interval is None else {"interval_95": [round(x, 6) for x in measured.interval]}
    rows = {} if split.rows is None else {"rows": split.rows}
    return EvalResult(
        task_type="text-classification",
        task_name=one_line(facts.task),
        dataset_type=facts.dataset or one_line(facts.task),
        dataset_name=one_line(facts.task),
        dataset_config=facts.dataset_config,
        dataset_revision=facts.dataset_revision,
        dataset_split=split.name if split.of_hub is None else split.of_hub,
        dataset_args=rows or None,
        metric_type=METRICS[name][0],
        metric_name=METRICS[name][1],
        metric_value=round(measured.value, 6),
        metric_args=interval or None,
    )


def _parts(facts: CardFacts) -> Iterator[str]:
    yield f"# {code(facts.name)}"
    yield _what(facts)
    yield from ("## Use", _use(facts))
    yield from ("## Method", _method(facts))
    yield from ("## Data", _data(facts))
    yield from ("## Teacher", _teacher(facts))
    yield from ("## Results", _results(facts))
    if facts.latency is not None:
        yield from ("## Speed and size", _latency(facts.latency))
    if facts.onnx is not None:
        yield from ("## ONNX", _onnx(facts.onnx, facts.metric))
    yield from ("## Command", _command(facts))
    yield from ("## Versions", _versions(facts.versions))
    yield from ("## Limits", "\n".join(f"* {limit}" for limit in facts.limits))


def _what(facts: CardFacts) -> str:
    what = "pairs of texts" if len(facts.columns) == 2 else "single texts"
    labels = ", ".join(code(label) for label in facts.labels)
    return (
        f"An encoder of {facts.parameters:,} parameters ({code(facts.architecture)}) that sorts {what} of the task "
        f"{code(facts.task)} into {len(facts.labels)} classes: {labels}. It was made by distill-dist and is a plain "
        "`transformers` folder: nothing but `transformers` and `torch` is needed to run it."
    )


def _use(facts: CardFacts) -> str:
    name = json.dumps(one_line(facts.name), ensure_ascii=False)
    if len(facts.columns) == 2:
        given = (
            "{"
            + f'"text": "the {_word(facts.columns[0])}", "text_pair": "the {_word(facts.columns[1])}"'
            + "}"
        )
        order = (
            f" The order counts: `text` is what the column {code(facts.columns[0])} held, `text_pair` what "
            f"{code(facts.columns[1])} held."
        )
    else:
        given, order = f'"the {_word(facts.columns[0])}"', ""
    lines = (
        "from transformers import pipeline",
        "",
        f'classify = pipeline("text-classification", model={name})  # this folder, or its name on the hub',
        f"print(classify({given}, truncation=True))  # top_k=None: the scores of all classes",
    )
    return (
        block("\n".join(lines), "python")
        + f"\n\n`truncation=True` cuts texts to the {facts.max_length} tokens that the model was trained with; without "
        f"it longer texts are read as the model never learned to, or are an error.{order}"
    )


def _word(column: str) -> str:
    """A column's name as a word inside a Python string."""
    found = "".join(letter if letter.isalnum() else " " for letter in column)
    return " ".join(found.split()) or "text"


def _method(facts: CardFacts) -> str:
    rows = [(title, code(value)) for title, value in facts.settings]
    what = METHODS.get(facts.method, code(facts.method))
    return f"{code(facts.method)}: the student learned {what}.\n\n" + table(("setting", "value"), rows)


def _data(facts: CardFacts) -> str:
    manifest = f" (sha256 of the prepared rows' manifest: `{facts.manifest}`)" if facts.manifest else ""
    columns = " and ".join(code(column) for column in facts.columns)
    said = f"Task {code(facts.task)}, texts from {columns}{manifest}."
    if not facts.sources:
        return f"{said} The prepared rows were not at hand when this was exported, so their numbers are not here."
    rows = [
        (code(each.name), f"{each.rows:,}", f"{each.tokens:,}", f"{each.truncated:,}", code(each.origin))
        for each in facts.sources
    ]
    header = ("split", "rows", "tokens", f"rows cut to {facts.max_length} tokens", "from")
    return f"{said}\n\n{table(header, rows)}"


def _teacher(facts: CardFacts) -> str:
    if not facts.teachers:
        return "None."
    lines = [
        f"{code(hide_places(each.path, folder=facts.command_folder))}"
        + (f" ({code(each.architecture)})" if each.architecture else "")
        + ", sha256 of its weights: "
        + (f"`{each.sha256}`" if each.sha256 else "not known")
        for each in facts.teachers
    ]
    if facts.teacher_parameters is not None:
        together = " together" if len(facts.teachers) > 1 else ""
        lines.append(f"{facts.teacher_parameters:,} parameters{together}")
    lines += [
        f"{METRICS[facts.metric][1]} {_number(split.teacher[facts.metric])} on {code(split.name)}"
        for split in facts.splits
        if facts.metric in split.teacher
    ]
    if facts.teacher_missing:
        has_figures = any(split.teacher or split.loyalty for split in facts.splits)
        kept = (
            "what is said of it is what the run measured at its end"
            if has_figures
            else "nothing is known of it"
        )
        lines.append(f"not at hand when this was exported: {kept}")
    return "\n".join(f"* {line}" for line in lines)


def _results(facts: CardFacts) -> str:
    if not facts.splits:
        return "None are known."
    if facts.intervals is None:
        said = "As the run measured them at its end, without intervals (the export was told `--no-evaluate`)."
    else:
        said = f"In brackets {one_line(facts.intervals)}."
    return "\n\n".join([said, *(_split(split) for split in facts.splits)])


def _split(split: SplitFigures) -> str:
    names = {**{name: title for name, (_, title) in METRICS.items()}, **_OTHERS}
    rows = [
        (names.get(name, code(name)), *(_cell(split, who, name) for who in ("student", "teacher")))
        for name in dict.fromkeys((*split.student, *split.teacher))
    ]
    counted = "" if split.rows is None else f", {split.rows:,} rows"
    text = f"### {code(split.name)}{counted}\n\n{table(('', 'student', 'teacher'), rows)}"
    if split.loyalty:
        fewer = (
            "" if split.saliency_rows is None else f" ({split.saliency_rows:,} of the rows, evenly spaced)"
        )
        loyal = [
            (names.get(name, code(name)) + (fewer if name.startswith("sl_") else ""), _number(value))
            for name, value in split.loyalty.items()
        ]
        text += f"\n\n{table(('how far it behaves as its teacher', ''), loyal)}"
    if split.classes:
        by_class = [
            (
                code(name),
                *(_number(each[key]) if key in each else "" for key in ("precision", "recall", "f1")),
            )
            for name, each in split.classes.items()
        ]
        text += f"\n\n{table(('class', 'precision', 'recall', 'F1'), by_class)}"
    return text


def _cell(split: SplitFigures, who: str, name: str) -> str:
    found: Mapping[str, Measured] = getattr(split, who)
    return _number(found[name]) if name in found else ""


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _number(measured: Measured) -> str:
    if measured.interval is None:
        return f"{measured.value:.3f}"
    low, high = measured.interval
    return f"{measured.value:.3f} ({low:.3f} to {high:.3f})"


def _latency(found: LatencyTable) -> str:
    sizes = list(found.rows)
    header = ["model", "MB on disk", "parameters", "dev accuracy"]
    for size in sizes:
        header += [f"batch {size}: median ms", "p95 ms", "rows/s"]
    rows = []
    for each in found.contenders:
        row = [each.name, f"{each.bytes / 1e6:.2f}", f"{each.parameters:,}", _plain(each.accuracy)]
        for size in sizes:
            timing = each.timings[size]
            row += [f"{timing.median_ms:.2f}", f"{timing.p95_ms:.2f}", f"{timing.rows_per_s:.0f}"]
        rows.append(row)
    return f"{table(header, rows)}\n\n{conditions(replace(found, processor=code(found.processor)))}"


def _onnx(found: OnnxFacts, metric: str) -> str:
    title = METRICS[metric][1]
    rows = [
        (
            f"`{found.file}`",
            _plain(found.dev.get(metric)),
            f"{found.agreement:.4f}",
            f"{found.dev_difference:.2g}",
        ),
        (
            f"`{found.int8_file}`",
            _plain(found.int8.get(metric)),
            f"{found.int8_agreement:.4f}",
            f"{found.int8_difference:.2g}",
        ),
    ]
    program = (
        "import onnxruntime",
        "from transformers import AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")  # this folder',
        f'session = onnxruntime.InferenceSession("{found.file}")',
        'given = tokenizer(["a text"], padding=True, truncation=True, return_tensors="np")',
        'print(session.run(["logits"], dict(given)))  # [rows, classes]',
    )
    header = ("file", f"{title} on dev", "rows with PyTorch's label", "largest difference of a logit")
    return (
        f"{block(chr(10).join(program), 'python')}\n\n{table(header, rows)}\n\n"
        f"Over {found.dev_rows:,} rows of dev in padded batches, by onnxruntime on the CPU. "
        f"The fp32 file was held against PyTorch's logits on {found.checked_rows} of them: they differ by at most "
        f"{found.largest_difference:.2g}, where {found.tolerance:.2g} was allowed (8 times PyTorch's own fp32 rounding "
        "on these rows). The int8 file has int8 weights, and activations that are quantized as they come: its numbers "
        "are others, as the table says. Rows and lengths are free; the inputs are the tokenizer's. Made with "
        + _versions(found.versions)
        + "."
    )


def _command(facts: CardFacts) -> str:
    if not facts.command:
        return "Not recorded."
    words = [hide_places(one_line(word), folder=facts.command_folder) for word in facts.command]
    if len(words) > 1 and words[0].rpartition("/")[2].startswith("python"):
        words[0] = "python"
        if words[1].endswith(("/deepspeed", "/torchrun")):  # the console script that its interpreter runs
            words = [words[1], *words[2:]]
    words[0] = words[0].rpartition("/")[2]
    return (
        f"{block(shlex.join(words), 'sh')}\n\nThe configuration that this resolved to is beside this card as "
        f"`{SETTINGS}`; absolute paths in it are shortened (`…/`)."
    )


def _versions(versions: Mapping[str, str]) -> str:
    if not versions:
        return "Not recorded."
    return ", ".join(code(f"{name} {value}") for name, value in versions.items())

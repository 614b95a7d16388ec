"""Run by an interpreter that cannot import this project: what an exported folder says there, as one JSON line.

fresh_loader.py FOLDER ASKED.json        asked: {"texts": [[[text] or [text, text], …], …], "program": the one
in the folder's README.md}
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


def main(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classify = pipeline("text-classification", model=folder)
    logits, said = [], []
    for texts in asked["texts"]:
        given = [list(column) for column in zip(*texts, strict=True)]
        with torch.no_grad():
            found = model(**tokenizer(*given, padding=True, truncation=True, return_tensors="pt")).logits
        logits.append(found.tolist())
        rows = [dict(zip(("text", "text_pair"), row, strict=False)) for row in texts]
        said.append(classify(rows, truncation=True, top_k=None))
    printed = io.StringIO()
    os.chdir(os.path.dirname(folder))
    with contextlib.redirect_stdout(printed):
        exec(asked["program"], {})
    return {
        "distill_dist": importlib.util.find_spec("distill_dist") is not None,
        "versions": [torch.__version__, transformers.__version__],
        "labels": [model.config.id2label[number] for number in range(model.config.num_labels)],
        "max_length": tokenizer.model_max_length,
        "logits": logits,
        "said": said,
        "printed": printed.getvalue(),
    }


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        print(json.dumps(main(sys.argv[1], json.load(file))))

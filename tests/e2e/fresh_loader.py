"""Run by an interpreter that cannot import this project: what an exported folder says there, as one JSON line.

fresh_loader.py FOLDER TEXTS.json        texts: [[text] or [text, text], …]
"""

from __future__ import annotations

import importlib.util
import json
import sys

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


def main(folder: str, texts: list[list[str]]) -> dict[str, object]:
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = [list(column) for column in zip(*texts, strict=True)]
    with torch.no_grad():
        logits = model(**tokenizer(*given, padding=True, truncation=True, return_tensors="pt")).logits
    classify = pipeline("text-classification", model=folder)
    asked = [dict(zip(("text", "text_pair"), row, strict=False)) for row in texts]
    return {
        "distill_dist": importlib.util.find_spec("distill_dist") is not None,
        "versions": [torch.__version__, transformers.__version__],
        "logits": logits.tolist(),
        "labels": [model.config.id2label[number] for number in range(model.config.num_labels)],
        "max_length": tokenizer.model_max_length,
        "said": classify(asked, truncation=True, top_k=None),
    }


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        print(json.dumps(main(sys.argv[1], json.load(file))))

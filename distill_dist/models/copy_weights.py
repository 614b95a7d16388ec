"""A shallower student filled from a deeper source: same family, or a BERT poured into DistilBERT's shape."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DistilBertConfig

from distill_dist.errors import UserError
from distill_dist.models.encoder import encoder_parts

# BERT layer -> DistilBERT layer; the two compute the same function (HF modeling_bert, modeling_distilbert).
_DISTILBERT_LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def copy_into_same(source: Any, layers: tuple[int, ...], classes: dict[str, Any], *, pooler: bool) -> Any:
    """A classifier of the source's family with its embeddings and ``layers`` (from 1), in that order.

    The classifier is new, and so is the pooler unless ``pooler``.
    """
    config = copy.deepcopy(source.config)
    config.num_hidden_layers = len(layers)
    config.update(classes)
    student = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    base = getattr(source, source.base_model_prefix)
    prefix = _layers_prefix(source)
    renamed: dict[str, Tensor] = {}
    for name, weight in base.state_dict().items():
        if name.startswith("pooler."):
            if pooler:
                renamed[name] = weight
        elif not name.startswith(prefix):
            renamed[name] = weight
        else:
            number, _, rest = name[len(prefix) :].partition(".")
            for place, layer in enumerate(layers):
                if int(number) == layer - 1:
                    renamed[f"{prefix}{place}.{rest}"] = weight
    target = getattr(student, student.base_model_prefix)
    missing, unexpected = target.load_state_dict(renamed, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("pooler.") for name in missing), missing
    return student


def copy_into_distilbert(source: Any, layers: tuple[int, ...], classes: dict[str, Any]) -> Any:
    """A DistilBERT classifier with the embeddings and ``layers`` (from 1) of the BERT ``source``.

    DistilBERT has no segment embedding: that of segment 0 is folded into the positions, so single sentences
    give the source's hidden states exactly; in a pair the second segment misses the segments' difference.
    Raises UserError for a source that is no BERT.
    """
    config = source.config
    if config.model_type != "bert":
        raise UserError(
            f"student.architecture=distilbert needs a BERT at student.path, not a {config.model_type}"
        )
    if config.layer_norm_eps != 1e-12:
        raise UserError(
            "student.architecture=distilbert: DistilBERT's normalisation has eps 1e-12, the source's is "
            f"{config.layer_norm_eps}"
        )
    student = AutoModelForSequenceClassification.from_config(
        DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            n_layers=len(layers),
            n_heads=config.num_attention_heads,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            activation=config.hidden_act,
            pad_token_id=config.pad_token_id,
            **classes,
        ),
        dtype=torch.float32,
    )
    theirs, ours = encoder_parts(source), encoder_parts(student)
    embeddings = theirs.embeddings.state_dict()
    with torch.no_grad():
        ours.embeddings.load_state_dict(
            {
                "word_embeddings.weight": embeddings["word_embeddings.weight"],
                "position_embeddings.weight": embeddings["position_embeddings.weight"]
                + embeddings["token_type_embeddings.weight"][0],
                "LayerNorm.weight": embeddings["LayerNorm.weight"],
                "LayerNorm.bias": embeddings["LayerNorm.bias"],
            }
        )
        for place, layer in enumerate(layers):
            weights = theirs.layers[layer - 1].state_dict()
            ours.layers[place].load_state_dict(
                {
                    f"{new}.{kind}": weights[f"{old}.{kind}"]
                    for old, new in _DISTILBERT_LAYER.items()
                    for kind in ("weight", "bias")
                }
            )
    return student


def _layers_prefix(model: Any) -> str:
    """Name of the layer list inside the base model, with its dot: ``encoder.layer.``."""
    first = encoder_parts(model).layers[0]
    base = getattr(model, model.base_model_prefix)
    name = next(name for name, module in base.named_modules() if module is first)
    return name.removesuffix("0")

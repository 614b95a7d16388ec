"""A smaller student filled from a source: its own family with fewer layers, DistilBERT's shape, or ELECTRA's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DistilBertConfig, ElectraConfig

from distill_dist.errors import UserError
from distill_dist.models.encoder import encoder_parts, layer_list

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


# Parts between the encoder and the last projection that a pretrained model brings along; BERT's is in its base.
_POOLERS = ("pooler", "head")


def copy_into_same(source: Any, layers: tuple[int, ...], classes: dict[str, Any], *, pooler: bool) -> Any:
    """A classifier of the source's family with its embeddings and ``layers`` (from 1), in that order.

    Whatever else the encoder shares between its layers is copied too (relative positions, last normalisation).
    The classifier is new, and so is the pooler unless ``pooler``. Raises UserError for layers that cannot stand
    where they would.
    """
    _check_first(source, layers)
    config = copy.deepcopy(source.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None) is not None:
        # ModernBERT looks far in some layers and near in others: a copied layer goes on as it did
        config.layer_types = [source.config.layer_types[layer - 1] for layer in layers]
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
    for name in _POOLERS if pooler else ():
        if isinstance(getattr(source, name, None), nn.Module):
            getattr(student, name).load_state_dict(getattr(source, name).state_dict())
    return student


def _check_first(source: Any, layers: tuple[int, ...]) -> None:
    """Some families build their first layer unlike the others; it can stand nowhere else, nor another there."""
    first = layer_list(source)[0]
    if isinstance(getattr(first, "attn_norm", None), nn.Identity):
        difference = "has no normalisation before its attention"
    elif encoder_parts(source).layers[0] is not first:
        difference = "is followed by a convolution"
    else:
        return
    if layers[0] != 1 or 1 in layers[1:]:
        raise UserError(
            f"layers {list(layers)} of student.path cannot make a student: the first layer of this "
            f"{source.config.model_type} {difference}, the others' not, so it has to stay the first. Set "
            "student.layer_copy=first, or a student.layer_list that begins with 1"
        )


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


def copy_into_electra(source: Any, shape: dict[str, Any], classes: dict[str, Any]) -> Any:
    """An ELECTRA classifier with the embedding block of ``source`` and random layers of the sizes in ``shape``.

    ``shape`` has hidden_size, num_hidden_layers, num_attention_heads, intermediate_size and may have
    initializer_range; the vocabulary and the longest row are the source's. `embeddings_project`, which ELECTRA
    has where the widths differ, is random too. The embedding output on real tokens is the source's, bit for bit:
    RoBERTa's positions count from behind its padding token, so its table starts there. Raises UserError for a
    source whose embedding block is of another kind, and for sizes that make no model.
    """
    config = source.config
    first_position = {"bert": 0, "electra": 0, "roberta": (config.pad_token_id or 0) + 1}.get(
        config.model_type
    )
    if first_position is None:
        raise UserError(
            "student.architecture=electra needs a BERT, RoBERTa or ELECTRA at student.path: ELECTRA's embedding "
            "block adds words, segments and absolute positions and normalises once, which cannot hold that of a "
            f"{config.model_type}"
        )
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "initializer_range",
    )
    weights = dict(encoder_parts(source).embeddings.state_dict())
    weights["position_embeddings.weight"] = weights["position_embeddings.weight"][first_position:]
    if shape["hidden_size"] % shape["num_attention_heads"]:  # ELECTRA itself would fail in its first forward
        raise UserError(
            f"student.shape.hidden_size={shape['hidden_size']} must be a multiple of "
            f"student.shape.num_attention_heads={shape['num_attention_heads']}"
        )
    student = AutoModelForSequenceClassification.from_config(
        ElectraConfig(
            **{name: shape[name] for name in sizes if name in shape},
            vocab_size=config.vocab_size,
            embedding_size=encoder_parts(source).embedding_size,
            max_position_embeddings=len(weights["position_embeddings.weight"]),
            type_vocab_size=config.type_vocab_size,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act=config.hidden_act,
            pad_token_id=config.pad_token_id,
            **classes,
        ),
        dtype=torch.float32,
    )
    encoder_parts(student).embeddings.load_state_dict(weights)
    return student


def _layers_prefix(model: Any) -> str:
    """Name of the layer list inside the base model, with its dot: ``encoder.layer.``."""
    layers = layer_list(model)
    base = getattr(model, model.base_model_prefix)
    return next(name for name, module in base.named_modules() if module is layers) + "."

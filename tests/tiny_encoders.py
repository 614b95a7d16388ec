"""Encoders and batches small enough for milliseconds, with gradients that are nowhere near zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill_dist.records import Batch

VOCABULARY = 40
FIRST_WORD = 5  # below: special tokens; 1 is RoBERTa's padding
FAMILIES = ("bert", "distilbert", "roberta", "electra", "deberta-v2", "modernbert")
WITH_SDPA = tuple(family for family in FAMILIES if family != "deberta-v2")


def tiny_encoder(
    family: str = "bert",
    *,
    layers: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    classes: int = 3,
    dropout: float = 0.0,
    hidden: int = 16,
    attention: str = "eager",
    **more: Any,
) -> Any:
    """A random classifier in eval mode. Initial weights of 0.3, not 0.02: its layers are far from linear."""
    options = {
        **_SPECIAL.get(family, {}),
        **_sizes(family, hidden, layers),
        **_dropouts(family, dropout),
        **more,
    }
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        max_position_embeddings=40,
        num_labels=classes,
        initializer_range=0.3,
        pad_token_id=pad_token(family),
        **options,
    )
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()


# What the published models of these families have and their configurations' defaults have not.
_SPECIAL: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 4,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": {
        # Layers 2 and 3 look 5 tokens to each side. A window that held padding alone would be NaN in float64 (and
        # only there): the eager kernel rounds the mask's lowest float64 to −inf for its softmax in fp32.
        "local_attention": 10,
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
    },
}


def _sizes(family: str, hidden: int, layers: int) -> dict[str, Any]:
    if family == "distilbert":
        return {"dim": hidden, "n_layers": layers, "n_heads": 2, "hidden_dim": 2 * hidden}
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
    }
    return {**sizes, "embedding_size": hidden} if family == "electra" else sizes


def _dropouts(family: str, dropout: float) -> dict[str, Any]:
    names: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    if family == "distilbert":
        names = ("dropout", "attention_dropout", "seq_classif_dropout")
    elif family == "deberta-v2":
        names = (*names, "pooler_dropout", "cls_dropout")
    elif family == "modernbert":
        names = ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout")
    return dict.fromkeys(names, dropout)


def pad_token(family: str) -> int:
    """The family's padding token; RoBERTa counts positions from it."""
    return 1 if family == "roberta" else 0


def ragged_batch(
    lengths: tuple[int, ...], *, seed: int = 0, pad: int = 0, classes: int = 3, segments: bool = True
) -> Batch:
    """Random rows of these lengths, padded to the longest; with ``segments`` the second half is segment 1."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max(lengths)
    ids_BL = torch.randint(FIRST_WORD, VOCABULARY, (rows, width), generator=generator)
    positions_L = torch.arange(width)
    lengths_B = torch.tensor(lengths)
    mask_BL = (positions_L < lengths_B[:, None]).long()
    segment_BL = ((positions_L >= lengths_B[:, None] // 2) & mask_BL.bool()).long()
    return Batch(
        ids_B=torch.arange(rows),
        input_ids_BL=ids_BL.masked_fill(mask_BL == 0, pad),
        attention_mask_BL=mask_BL,
        token_type_ids_BL=segment_BL if segments else torch.zeros_like(segment_BL),
        labels_B=torch.randint(classes, (rows,), generator=generator),
        is_real_B=torch.ones(rows, dtype=torch.bool),
    )


def take_rows(batch: Batch, rows: list[int], *, fillers: int = 0) -> Batch:
    """Some rows of ``batch``, cut to their own longest, and ``fillers`` copies of the first that are not real."""
    index = torch.tensor(rows + [rows[0]] * fillers)
    width = int(batch.attention_mask_BL[index].sum(dim=1).max())

    def cut(tensor: Tensor) -> Tensor:
        return tensor[index][:, :width] if tensor.ndim == 2 else tensor[index]

    def cut_if_there(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else cut(tensor)

    return Batch(
        cut(batch.ids_B),
        cut(batch.input_ids_BL),
        cut(batch.attention_mask_BL),
        cut(batch.token_type_ids_BL),
        cut(batch.labels_B),
        torch.arange(len(index)) < len(rows),
        reliance_B=cut_if_there(batch.reliance_B),
        positions_B=cut_if_there(batch.positions_B),
    )


def undecided(model: Any, batch: Batch) -> Any:
    """``model`` with its classifier's bias moved so that no class is ahead on all rows of ``batch``.

    A random encoder gives nearly the same logits for every row, so that signals of different names agree.
    """
    classifier = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        classifier.bias.sub_(forward(model, batch).logits.mean(dim=0))
        assert len(set(forward(model, batch).logits.argmax(dim=-1).tolist())) > 1
    return model


def forward(model: Any, batch: Batch, **options: Any) -> Any:
    """The plain Hugging Face forward, segments where the family has them."""
    if model.config.model_type not in ("distilbert", "modernbert"):
        options["token_type_ids"] = batch.token_type_ids_BL
    return model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, **options)

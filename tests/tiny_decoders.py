"""Decoders with a classification head and a byte-level BPE of their own, small enough for milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

END = "<|endoftext|>"  # as Qwen2's class adds it to a vocabulary without one
BEGIN = "<|begin|>"
TEXTS = [
    "every dog runs and some dog barks loudly",
    "no large cat sleeps near the house",
    "good film bad",
] * 9


def bpe_tokenizer(*, template: bool = False, words: int = 300, padding: bool = False) -> Any:
    """A byte-level BPE trained on a few texts. Like Qwen's it adds nothing, and joins pairs with nothing; with
    ``template``, like Llama's, a token begins every text. It has an end token, and one to pad only with ``padding``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=[BEGIN, END, "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token="<|pad|>" if padding else None,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_decoder(
    family: str = "llama",
    *,
    words: int = 300,
    classes: int = 3,
    dtype: torch.dtype = torch.float32,
    pad_token_id: int | None = None,
    hidden: int = 32,
    **more: Any,
) -> Any:
    """A random classifier in eval mode, of grouped heads. Initial weights of 0.3: far from linear."""
    options = {
        "hidden_size": hidden,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **more,
    }
    config = AutoConfig.for_model(
        family, vocab_size=words, num_labels=classes, pad_token_id=pad_token_id, **options
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()


def save_decoder(folder: Path, family: str = "llama", *, template: bool = True, **more: Any) -> Path:
    """A decoder with its tokenizer in ``folder``, as it would come from the hub."""
    tokenizer = bpe_tokenizer(template=template)
    tiny_decoder(family, words=len(tokenizer), **more).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

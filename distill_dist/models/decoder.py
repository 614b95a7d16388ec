"""Decoders with a classification head as teachers: their logits, and nothing from inside of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.records import at_least_fp32

# Dense ones with transformers' generic head, which tests/unit/models/test_decoder.py runs. A mixture of experts deals
# the tokens of a whole batch, so that a row's last bits would depend on its neighbours.
DECODERS = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class DecoderParts(EncoderParts):
    """Handles into a decoder: no token types, no [CLS].

    Its head reads a row's last token whose id is not ``pad_token_id``, whatever the attention mask says.
    """

    pad_token_id: int

    @property
    def logits_alone(self) -> bool:
        """See EncoderParts."""
        return True

    def logits_BC(self, input_ids_BL: Tensor, attention_mask_BL: Tensor, token_type_ids_BL: Tensor) -> Tensor:
        """See EncoderParts. Whatever stands on padding becomes the token that the head looks past; rows are padded on
        the right, so that no real token sees it."""
        ids_BL = torch.where(attention_mask_BL.bool(), input_ids_BL, self.pad_token_id)
        output = self.model(input_ids=ids_BL, attention_mask=attention_mask_BL, use_cache=False)
        return at_least_fp32(output.logits)


def is_decoder(model_config: Any) -> bool:
    """Whether a Hugging Face configuration is a supported decoder's."""
    return model_config.model_type in DECODERS


def teacher_parts(model: nn.Module, *, pad_token_id: int) -> EncoderParts:
    """The parts of a teacher, encoder or decoder. Raises UserError for other shapes.

    ``pad_token_id`` is the tokenizer's, for a decoder whose configuration names none; one that does was trained with
    that, whatever its tokenizer says.
    """
    config: Any = model.config
    if not is_decoder(config):
        return encoder_parts(model)
    base: Any = getattr(model, str(model.base_model_prefix))
    if config.pad_token_id is None or config.pad_token_id < 0:  # early Llamas have -1
        config.pad_token_id = pad_token_id
    if config.pad_token_id >= config.vocab_size:
        raise UserError(
            f"the teacher's padding token {config.pad_token_id} is none of the {config.vocab_size} that it embeds: "
            "set pad_token_id in its config.json to the one that it was fine-tuned with"
        )
    return DecoderParts(
        model=model,
        embeddings=base.embed_tokens,
        layers=tuple(base.layers),
        hidden_size=int(config.hidden_size),
        embedding_size=int(config.hidden_size),
        takes_token_types=False,
        pools_cls=False,
        attention_kernels=("eager", "sdpa"),
        pad_token_id=int(config.pad_token_id),
    )

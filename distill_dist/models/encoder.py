"""Where an encoder keeps its parts: the embedding block and the layers, whatever the family calls them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import Tensor, nn

from distill_dist.errors import UserError
from distill_dist.records import at_least_fp32


@dataclass(frozen=True)
class EncoderParts:
    """Handles into one Hugging Face classifier; nothing is copied."""

    model: nn.Module
    embeddings: nn.Module
    layers: tuple[nn.Module, ...]  # layer j of the papers is layers[j - 1]
    hidden_size: int
    takes_token_types: bool  # DistilBERT and ModernBERT know no segments

    def logits_BC(self, input_ids_BL: Tensor, attention_mask_BL: Tensor, token_type_ids_BL: Tensor) -> Tensor:
        """One forward: class logits [B, C] in fp32 or better, graph attached where gradients are on."""
        segments = {"token_type_ids": token_type_ids_BL} if self.takes_token_types else {}
        output = self.model(input_ids=input_ids_BL, attention_mask=attention_mask_BL, **segments)
        return at_least_fp32(output.logits)


def encoder_parts(model: nn.Module) -> EncoderParts:
    """The parts of ``model`` (BERT, RoBERTa, ELECTRA, DistilBERT shaped). Raises UserError for other shapes."""
    base = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    embeddings = getattr(base, "embeddings", None)
    stack = getattr(base, "encoder", None) or getattr(base, "transformer", None)
    layers = getattr(stack, "layer", None)
    if not isinstance(embeddings, nn.Module) or not isinstance(layers, nn.ModuleList):
        raise UserError(
            f"{type(model).__name__} does not have the parts of a supported encoder (an embedding block and a list "
            "of layers); use BERT, RoBERTa, ELECTRA or DistilBERT"
        )
    return EncoderParts(
        model=model,
        embeddings=embeddings,
        layers=tuple(layers),
        hidden_size=int(model.config.hidden_size),  # type: ignore[union-attr, arg-type]
        takes_token_types="token_type_ids" in inspect.signature(model.forward).parameters,
    )

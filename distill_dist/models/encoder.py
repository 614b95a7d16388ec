"""Where an encoder keeps its parts: the embedding block and the layers, whatever the family calls them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from distill_dist.errors import UserError
from distill_dist.records import at_least_fp32


@dataclass(frozen=True)
class EncoderParts:
    """Handles into one Hugging Face classifier; nothing is copied."""

    model: nn.Module
    embeddings: nn.Module
    layers: tuple[nn.Module, ...]  # h_j of the papers is what layers[j - 1] puts out
    hidden_size: int
    embedding_size: int  # width of the embedding block's output; a small ELECTRA's differs from hidden_size
    takes_token_types: bool  # False also where the vocabulary of segments has one entry (RoBERTa) or none
    pools_cls: (
        bool  # False: the classifier reads the mean over tokens, and the last layers' [CLS] means nothing
    )
    attention_kernels: tuple[str, ...]  # of `eager` and `sdpa`

    @property
    def logits_alone(self) -> bool:
        """Whether nothing from inside of it means anything to a student."""
        return False

    def logits_BC(self, input_ids_BL: Tensor, attention_mask_BL: Tensor, token_type_ids_BL: Tensor) -> Tensor:
        """One forward: class logits [B, C] in fp32 or better, graph attached where gradients are on."""
        segments = {"token_type_ids": token_type_ids_BL} if self.takes_token_types else {}
        output = self.model(input_ids=input_ids_BL, attention_mask=attention_mask_BL, **segments)
        return at_least_fp32(output.logits)


def encoder_parts(model: nn.Module) -> EncoderParts:
    """The parts of ``model``: BERT, RoBERTa, ELECTRA, DistilBERT, DeBERTa-v2 or ModernBERT shaped.

    Raises UserError for other shapes.
    """
    layers = layer_list(model)
    base = getattr(model, str(model.base_model_prefix))
    config: Any = model.config
    knows_segments = getattr(config, "type_vocab_size", 2) > 1
    return EncoderParts(
        model=model,
        embeddings=base.embeddings,
        layers=(_first_output(base, layers), *layers[1:]),
        hidden_size=int(config.hidden_size),
        embedding_size=int(
            config.embedding_size if hasattr(base, "embeddings_project") else config.hidden_size
        ),
        takes_token_types=knows_segments and "token_type_ids" in inspect.signature(model.forward).parameters,
        pools_cls=getattr(config, "classifier_pooling", "cls") == "cls",
        attention_kernels=("eager", "sdpa") if getattr(model, "_supports_sdpa", False) else ("eager",),
    )


def has_kinks(model: nn.Module) -> bool:
    """Whether an activation has a jump in its derivative: a difference across it is not its second derivative."""
    config: Any = model.config
    names = ("hidden_act", "activation", "hidden_activation", "classifier_activation")
    activations = {str(getattr(config, name, "")) for name in names}
    in_head = config.model_type == "distilbert"  # its classifier has a ReLU that is no module of the model
    return in_head or any("relu" in activation for activation in activations)


def layer_list(model: nn.Module) -> nn.ModuleList:
    """The list of layers inside ``model``. Raises UserError where it is no encoder of a supported shape."""
    base = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    stack = getattr(base, "encoder", None) or getattr(base, "transformer", None)
    layers = getattr(base, "layers", None) if stack is None else getattr(stack, "layer", None)
    if not isinstance(getattr(base, "embeddings", None), nn.Module) or not isinstance(layers, nn.ModuleList):
        raise UserError(
            f"{type(model).__name__} does not have the parts of a supported encoder (an embedding block and a list "
            "of layers); use BERT, RoBERTa, ELECTRA, DistilBERT, DeBERTa-v2 or ModernBERT (a teacher by logits alone "
            "may also be a Llama, Mistral, Qwen2 or Qwen3)"
        )
    return layers


def _first_output(base: Any, layers: nn.ModuleList) -> nn.Module:
    """The module that puts out h_1: in the large DeBERTa-v2 a convolution, which reads layer 1 and E."""
    convolution = getattr(getattr(base, "encoder", None), "conv", None)
    return convolution if isinstance(convolution, nn.Module) else layers[0]


def max_positions(config: Any) -> int:
    """The longest row that a model of this Hugging Face configuration can read, in tokens."""
    positions = int(getattr(config, "max_position_embeddings", 1 << 30))
    if config.model_type in ("roberta", "xlm-roberta"):  # they count from behind their padding token
        positions -= config.pad_token_id + 1
    return positions

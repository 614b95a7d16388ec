"""What the methods are made of, as far as a configuration has to know it."""

from __future__ import annotations

from distill_dist.config.schema import DataConfig, RunConfig


def is_gradient_method(method: str) -> bool:
    """Whether the method matches input gradients, so that the student is differentiated twice."""
    return method in ("gkd", "gkd_cls")


def matches_states(method: str) -> bool:
    """Whether the method matches [CLS] states of inner layers."""
    return method in ("pkd", "gkd_cls")


def is_aligned(config: RunConfig) -> bool:
    """Whether any term of the run is a function of the student's own gradients."""
    return is_gradient_method(config.method) or config.weight.attribution > 0


def asks_inside(config: RunConfig) -> list[str]:
    """Keys of what asks a teacher for more than its logits: states, gradients, embeddings of single tokens."""
    asked = {
        "method": is_gradient_method(config.method) or matches_states(config.method),
        "weight.attribution": config.weight.attribution > 0,
        "weight.noise": config.weight.noise > 0,
        "evaluate.saliency": config.evaluate.saliency is True,
    }
    return [key for key, is_asked in asked.items() if is_asked]


def teacher_max_length(data: DataConfig) -> int:
    """Most tokens of a row as its teacher reads it."""
    own = data.teacher_max_length if data.teacher_tokenizer else None
    return data.max_length if own is None else own


def is_sharded(config: RunConfig) -> bool:
    """Whether a teacher process brings the weights to its device layer by layer."""
    return config.teacher.shards > 1 or config.teacher.offload


def has_curriculum(config: RunConfig) -> bool:
    """Whether the order of rows is a plan's, not a new random one every epoch."""
    return config.curriculum.order != "none"


def relies_selectively(config: RunConfig) -> bool:
    """Whether λ differs from row to row."""
    return config.reliance.rule != "constant"


def method_name(config: RunConfig) -> str:
    """The method in the literature's words: `kd_cl_sr` is kd with a curriculum and selective reliance."""
    suffixes = {"_cl": has_curriculum(config), "_sr": relies_selectively(config)}
    return config.method + "".join(suffix for suffix, has in suffixes.items() if has)


def reads_scores(config: RunConfig) -> bool:
    """Whether anything of the run depends on how confident the student (or teacher, or file) is in a row."""
    ranks = config.curriculum.order not in ("none", "random")
    return (
        ranks or relies_selectively(config) or (is_aligned(config) and config.alignment.choose == "hardest")
    )


def aligned_positions(config: RunConfig) -> tuple[bool, bool]:
    """(at the embedding output, at [CLS] of matched layers): where gradients are matched."""
    if not is_gradient_method(config.method):
        return False, False
    positions = config.alignment.positions
    if positions == "auto":
        positions = "embedding" if config.method == "gkd" else "both"
    return positions in ("embedding", "both"), positions in ("cls", "both")

"""Every field of a run's YAML: its type, default and meaning. Nothing here imports torch.

The string below a field is its documentation; ``--help`` and ``configs/README.md`` print it. ``None``
always means "derive it", and the docstring says from what; :func:`distill_dist.config.load.load_config`
returns a tree in which the method's own defaults are filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill_dist.config.schema_curriculum import CurriculumConfig, RelianceConfig
from distill_dist.config.schema_data import DataConfig
from distill_dist.config.schema_teacher import PooledTeacher, TeacherConfig

Method = Literal["finetune", "kd", "pkd", "gkd", "gkd_cls"]


@dataclass(frozen=True)
class ShapeConfig:
    """Shape of a model trained from random weights. Unused where `path` names weights."""

    model_type: str = "bert"
    """Family, by its Hugging Face name."""
    hidden_size: int = 128
    """Width H; a multiple of `num_attention_heads`."""
    num_hidden_layers: int = 4
    """Layers; at least 1."""
    num_attention_heads: int = 4
    """Heads; at least 1."""
    intermediate_size: int = 512
    """Width of the feed-forward block."""
    max_position_embeddings: int = 512
    """Longest row the model can read; at least `data.max_length`."""
    initializer_range: float = 0.02
    """Standard deviation of the random weights; above 0. Tiny models learn sooner with 0.06."""


@dataclass(frozen=True)
class StudentConfig:
    """The model that is trained (with `method: finetune` that may be a future teacher)."""

    path: str = ""
    """Weights to start from: folder, hub name or `pkg://PACKAGE/FOLDER`. Empty: random weights of `shape`."""
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    """Shape for random weights."""
    architecture: Literal["same", "distilbert", "electra"] = "same"
    """`same`: the family of `path`. `distilbert`: DistilBERT's shape (no segment embedding, no pooler)
    filled with the embeddings and layers of a BERT at `path`. `electra`: the embeddings of a BERT at `path`,
    projected to the width of `shape`, and random layers of its sizes: a student narrower than its teacher."""
    layers: int | None = None
    """Layers to keep of `path`. None: all."""
    layer_copy: Literal["first", "even", "list"] = "first"
    """Which layers of `path` are copied: the first k, evenly spaced ones, or `layer_list`."""
    layer_list: tuple[int, ...] = ()
    """Layers of `path`, counted from 1, for `layer_copy: list`; as many as `layers`."""
    dropout: float | None = None
    """Dropout of attention, hidden states and classifier; 0 to below 1. None: 0 for gradient methods
    (METHOD.md §2 says why), 0.1 for the others."""
    freeze_embeddings: bool | None = None
    """Keep the copied embedding block fixed. None: true for gradient methods, false for the others."""
    attention: Literal["auto", "eager", "math", "sdpa"] = "auto"
    """Attention kernel. `math` is torch's plain one, for every attention of the process. `auto`: `eager` where
    a gradient is differentiated twice (no fused kernel has a second derivative), else `sdpa`."""
    checkpointing: bool = False
    """Keep each layer's input alone and run the layer again in the backward: less memory, more time."""
    compile: bool = False
    """Compile each layer with torch.compile. Not with double_backward, nor at ZeRO 3."""


@dataclass(frozen=True)
class WeightConfig:
    """Weights of the objective's terms (METHOD.md §1)."""

    kd: float = 0.5
    """α (λ): share of the teacher's logits against the label's cross-entropy; 0 to 1."""
    patience: float = 100.0
    """β of PKD and GKD-CLS: matched [CLS] states (the term carries 1/H); at least 0."""
    gradient: float | None = None
    """β of GKD, γ of GKD-CLS: matched gradients; at least 0. None: 0.5 for `gkd`, 0.1 for `gkd_cls`."""
    attribution: float = 0.0
    """Matched token attributions (AD-KD), beside any method that distils; at least 0."""
    noise: float = 0.0
    """Distillation at noisy embeddings (Jacobian matching), beside any method that distils; at least 0."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """How the terms are formed."""

    temperature: float = 5.0
    """τ of the distillation term; above 0."""
    kd_scale: Literal["auto", "sum", "mean"] = "auto"
    """KL summed over the classes (`sum`) or divided by their number as the paper's authors did (`mean`).
    `auto`: `mean` for gradient methods, `sum` for the others."""
    teacher_layers: tuple[int, ...] = ()
    """Teacher layers matched at [CLS], counted from 1. Empty: evenly spaced, the last one unmatched."""
    student_layers: tuple[int, ...] = ()
    """Student layers matched to them; as many. Empty: 1 to layers - 1."""

    attribution_top_k: int = 0
    """Dimensions of a token that its attribution counts, the largest ones; 0: all."""
    attribution_norm: Literal["l1", "l2"] = "l2"
    """Distance of two attributions: sum over tokens of absolute (`l1`) or squared (`l2`) differences."""
    noise_std: float = 0.1
    """σ of the noise on every number of the embedding output; above 0."""
    noise_draws: int = 1
    """Draws of noise per sample; each costs a forward of both models; 1 to 64."""


@dataclass(frozen=True)
class AlignmentConfig:
    """How gradients are matched; read where `method` or `weight.attribution` matches them."""

    route: Literal["auto", "double_backward", "central_difference"] = "auto"
    """`double_backward`: exact; eager or math attention. `central_difference`: two forwards beside the point,
    first-order only, so any kernel, ZeRO 3 and compile; fp32 weights. `auto`: the cheapest that is right."""
    signal: Literal["own_max", "teacher_max", "label", "all_classes"] = "own_max"
    """Whose margin is differentiated: of each model's own prediction (the paper), of the teacher's, of the true
    class, or of every class in turn (one backward each). With `own_max` a student is shown another class's gradient
    wherever it disagrees: one that begins undecided may stay so for hundreds of steps, which `teacher_max` avoids."""
    positions: Literal["auto", "embedding", "cls", "both"] = "auto"
    """Where gradients are matched: at the embedding output of every token, at [CLS] of the matched layers, or at
    both. `auto`: `embedding` for `gkd`, `both` for `gkd_cls`."""
    share: float = 1.0
    """Share of the rows of every global batch whose gradients are matched, drawn by the seed and weighted so that
    the loss is right on average: at 0.25 GKD-CLS costs little more than KD; above 0, to 1."""
    choose: Literal["random", "hardest"] = "random"
    """Which rows `share` takes: a draw by the seed, or those of the batch that the last snapshot finds hardest (a draw
    before the first one; their terms are then no unbiased estimate of all rows')."""
    step: float = 0.005
    """How far `central_difference` moves a sample's points, relative to their norm; above 0, to 0.1."""
    probe: bool = True
    """Before the first step, compare the gradient of the whole objective with plain double backward of an fp32
    copy on a few rows, and stop where they differ."""
    tolerance: float | None = None
    """Largest error the probe lets pass, relative to the aligned terms' own gradient; above 0. None: 0.001, 0.02
    for `central_difference`, 0.5 in bf16."""


@dataclass(frozen=True)
class BatchConfig:
    """Global batches and how they are cut."""

    size: int = 32
    """Rows of a global batch, over all students; at least 1. The only batch number that changes results."""
    micro_tokens: int = 4096
    """Most tokens, padding included, that one student computes at once; at least `data.max_length`."""
    length_window: int = 64
    """Global batches inside which rows are grouped by length; 1 keeps the plain random order."""
    pad_to: int = 0
    """Pad every row to this length (0: to the longest of its micro-batch). 128 is what the paper's authors
    did; it costs much and changes nothing."""


@dataclass(frozen=True)
class TrainConfig:
    """The optimizer and the run's length."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`sgd` has no momentum: for comparisons."""
    learning_rate: float = 5e-5
    """Peak learning rate; above 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and normalisation weights are left out; at least 0."""
    warmup_share: float = 0.06
    """Share of all steps in which the learning rate rises linearly; it then falls linearly to 0; 0 to 1."""
    epochs: int = 4
    """Epochs of ceil(rows / batch.size) steps; at least 1."""
    max_steps: int = 0
    """End after so many optimizer steps, on the schedule of `epochs`, with verdict `done`; a larger value goes
    on from there; 0: no limit."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    precision: Literal["fp32", "bf16", "bf16_autocast"] = "fp32"
    """Arithmetic of the students: `bf16` weights with fp32 masters, or fp32 weights and `bf16_autocast` in
    forwards; losses are fp32 in all. fp16 is not offered: unit gradients underflow in it."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest complete checkpoint of `run_dir`; `never` refuses a folder with one."""
    checkpoint_every: int = 0
    """Optimizer steps between checkpoints, besides the one at each epoch's end; 0: only those."""
    keep_last: int = 2
    """Newest checkpoints kept; at least 1. The best epoch's model is kept besides."""
    keep_best: int = 0
    """Of how many epochs, those with the best score on `evaluate.select_on`, the checkpoints are kept besides the
    newest; at least 0."""
    background_save: bool = True
    """Write checkpoints beside the training, which then stands still only while they are copied to host memory;
    student 0 holds a copy of weights and moments meanwhile. `false`: training waits until each is written."""
    log_every: int = 20
    """Optimizer steps between telemetry points; each costs one collective and one device sync."""
    trace: bool = False
    """Write `trace.jsonl`: the sample ids and the losses of every committed step."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured on every split but train."""

    select_on: str = "dev"
    """Split whose score chooses the best epoch, and the checkpoints of `train.keep_best`."""
    at_end: tuple[str, ...] = ()
    """Splits that are scored once, on the best model, not after every epoch: large ones, say. Not `select_on`."""
    skip: tuple[str, ...] = ()
    """Splits that the run leaves to launcher/evaluate.py. Neither `dev`, whose figures are the summary's, nor
    `select_on`."""
    saliency: bool | None = None
    """Saliency loyalty at the end of the run; costs one backward of both models over the dev rows. None: where it is
    defined, which it is not with a decoder, a teacher of its own tokenizer (`data.teacher_tokenizer`), or teachers
    whose embeddings differ in width; `summary.json` then says null, and the log why. True refuses such a run."""


@dataclass(frozen=True)
class ClusterConfig:
    """Roles and deadlines of the launched processes."""

    teachers: int = 0
    """Processes that teach, out of those the launcher starts. 0: each student computes the signals itself."""
    placement: Literal["last", "per_node", "nodes"] = "last"
    """Which ranks teach: the last ones, the last ones of every node, or whole nodes at the end."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where torch finds it."""
    threads: int = 0
    """Arithmetic threads per process on CPU; 0: the cores divided by the node's processes, at least 1."""
    rendezvous_s: float = 120.0
    """Longest wait for all processes to find each other; seconds, above 0."""
    collective_s: float = 600.0
    """Longest wait for a sibling inside a collective; seconds, above 0."""
    silence_s: float = 60.0
    """Longest silence of rank 0's store, which answers at once while that process runs and the way to it is whole: a
    rank that is cut off for longer leaves; seconds, above 0."""
    end_margin_s: float = 60.0
    """How long before the end of a Slurm job (SLURM_JOB_END_TIME) all ranks save and stop, even when no signal comes;
    seconds. 0: only signals stop a run."""


@dataclass(frozen=True)
class RunConfig:
    """One run."""

    method: Method = "gkd_cls"
    """`finetune`: labels only. `kd`: and the teacher's logits. `pkd`: and its [CLS] states. `gkd`: logits and
    the gradient at the embeddings. `gkd_cls`: all of these and the gradients at [CLS]."""
    label: str = ""
    """What tables and reports call a run of these settings. Empty: its method, and in what it differs from others."""
    seed: int = 0
    """Seed of initial weights, order and dropout."""
    run_dir: str = ""
    """Folder of everything the run writes. Required."""
    deepspeed_config: str = "ds_configs/zero1.json"
    """What DeepSpeed alone owns: ZeRO, communication, offload. Batch sizes, clipping and precision stand here
    and are refused there."""
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teachers: tuple[PooledTeacher, ...] = ()
    """Several models that teach together, `[{path: a, weight: 2}, {path: b}]`: folders or hub names as `teacher.path`,
    of the same vocabulary and classes; weights above 0 (1 where none is given), which are divided by their sum.
    `teacher.combine` joins them. Empty: `teacher.path` alone."""
    weight: WeightConfig = field(default_factory=WeightConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    reliance: RelianceConfig = field(default_factory=RelianceConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

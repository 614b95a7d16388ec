"""One member of a sharded teacher, and the whole teacher beside it to compare with. No pytest in here."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from tiny_encoders import pad_token, ragged_batch, tiny_encoder
from torch.distributed.tensor import DTensor

from distill_dist.comm.attempts import Broken
from distill_dist.comm.shard_group import ShardGroup
from distill_dist.models.encoder import encoder_parts, layer_list
from distill_dist.records import NoiseSpec, SignalSpec
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.row_codec import RowCodec, WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.row_keys import teacher_fingerprint
from distill_dist.teacher.shards import ShardedComputer
from distill_dist.teacher.wire import Request, pack_request
from multi.harness import rank_and_size

LAYERS = 4
CLASSES = 3
BOTH = {"cls_gradients": True, "embedding_gradient": True}
SPECS = {
    "logits": SignalSpec(),
    "cls states": SignalSpec((1, 3), cls_states=True),
    "cls gradients": SignalSpec((2, 3), cls_states=True, cls_gradients=True),
    "embedding gradients": SignalSpec(embedding_gradient=True),
    "labels": SignalSpec((1, 3), cls_states=True, signal="label", **BOTH),
    "every class": SignalSpec((1, 4), cls_states=True, signal="all_classes", **BOTH),
    "attribution": SignalSpec(attribution_top_k=4),
    "noise": SignalSpec(noise=NoiseSpec(0.1, 2, 3)),
    "everything": SignalSpec(
        (1, 2), cls_states=True, signal="all_classes", attribution_top_k=0, noise=NoiseSpec(0.1, 1, 3), **BOTH
    ),
}
# fewer rows than members, an odd number, more than fill up a member's 16
ROWS = ((5,), (9, 3, 17, 8, 2, 12, 33), tuple(3 + n % 30 for n in range(50)))


def compares(families: list[str], offload: bool) -> dict[str, Any] | None:
    """How far the sharded teacher's rows are from the whole one's, on the leader; and every member's own bytes."""
    member, size = rank_and_size()
    store = dist.TCPStore(
        "127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=member == 0, timeout=timedelta(seconds=60),
        wait_for_workers=False,
    )  # fmt: skip
    group = ShardGroup(store, member=member, size=size, device=torch.device("cpu"), timeout_s=60)
    found: dict[str, Any] = {}
    for family in families:
        found[family] = _compare(family, group, offload)
    _one_whose_logits_are_not_finite(group, found)
    return found


def _compare(family: str, group: ShardGroup, offload: bool) -> dict[str, Any]:
    whole, model = (_teacher(family) for _ in range(2))
    expected = _computer(whole)
    cut = _computer(model)
    everything = _bytes(model)
    most = sum(-(-len(p) // group.size) * p[0].numel() * p.element_size() for p in model.parameters())
    group.shard(model, list(layer_list(model)), offload=offload)
    sharded = ShardedComputer(cut, group, give_up=_give_up)
    found: dict[str, Any] = {"everything": everything, "most": most, "before": _bytes(model), "errors": {}}
    if group.member:
        sharded.follow()
    else:
        for name, spec in SPECS.items():
            found["errors"][name] = max(_difference(sharded, expected, family, spec, rows) for rows in ROWS)
            sharded.beat()
        rows = _request(family, ROWS[1], labels=False)
        found["description"] = [sharded.introduce(rows), expected.introduce(rows)]
        sharded.end()
    found["after"] = _bytes(model)
    return found


def _one_whose_logits_are_not_finite(group: ShardGroup, found: dict[str, Any]) -> None:
    """Rows of the last member say nothing: an answer, after which the others go on."""
    model = _teacher("bert")
    computer = _computer(model)

    def compute(request: Request, spec: SignalSpec) -> list[bytes]:
        rows = computer(request, spec)
        if group.member == group.size - 1 and spec.layers:
            raise NotSane("its logits are not finite")
        return rows

    group.shard(model, list(layer_list(model)), offload=False)
    sharded = ShardedComputer(cast(Any, compute), group, give_up=_give_up)
    if group.member:
        return sharded.follow()
    request = _request("bert", ROWS[1], labels=False)
    try:
        sharded(request, SPECS["cls states"])
    except NotSane as error:
        found["not sane"] = str(error)
    found["rows after it"] = len(sharded(request, SPECS["logits"]))
    return sharded.end()


def _teacher(family: str) -> Any:
    model = tiny_encoder(family, layers=LAYERS, dtype=torch.float32, classes=CLASSES, hidden=64)
    return model.requires_grad_(False)


def _computer(model: Any) -> RowComputer:
    parts = encoder_parts(model)
    fingerprint = teacher_fingerprint(parts, tokenizer="t")
    return RowComputer(parts, torch.device("cpu"), types=WireTypes(), fingerprint=fingerprint)


def _request(family: str, rows: tuple[int, ...], *, labels: bool) -> Request:
    return pack_request(ragged_batch(rows, pad=pad_token(family), classes=CLASSES), labels=labels)


def _difference(
    sharded: ShardedComputer, whole: RowComputer, family: str, spec: SignalSpec, rows: tuple[int, ...]
) -> float:
    """The largest difference of any number of the signal, all of which are of unit size."""
    request = _request(family, rows, labels=spec.needs_labels)
    about = whole.describe()
    codec = RowCodec(spec, CLASSES, about["hidden_size"], about["embedding_size"], WireTypes())
    ours, theirs = (codec.decode(each(request, spec)) for each in (sharded, whole))
    differences = []
    for name in vars(theirs):
        a, b = getattr(ours, name), getattr(theirs, name)
        if b is not None:
            assert bool(b.any()), (family, name)
            differences.append(float(((a - b).abs() / b.abs().amax()).max()))
    return max(differences)


def _bytes(model: Any) -> int:
    """What the parameters hold here."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(each.untyped_storage().nbytes() for each in local)


def _give_up(broken: Broken) -> NoReturn:
    raise AssertionError(broken)

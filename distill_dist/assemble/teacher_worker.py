"""The process that owns a teacher's model and device; its host starts it, and starts another when it dies."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

import numpy as np
import torch

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.models import build_teacher
from distill_dist.children import child_job
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.collate import collate
from distill_dist.data.manifest import Manifest, load_manifest
from distill_dist.data.shards import open_split
from distill_dist.errors import UserError
from distill_dist.models.build import quiet_loading
from distill_dist.models.encoder import EncoderParts
from distill_dist.run_folder import RunFolder
from distill_dist.teacher.frames import send
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.row_keys import teacher_fingerprint
from distill_dist.teacher.sanity import PROBE_ROWS, fault
from distill_dist.teacher.wire import Request, pack_request
from distill_dist.teacher.worker import SEND_S, serve_requests


def main() -> None:
    """Load the teacher and answer until the host is gone."""
    job = child_job()
    connection = socket.socket(fileno=job["connection"])
    try:
        config = load_config(Path(job["config"]), [])
        RunFolder(Path(config.run_dir)).log_to_file(job["rank"], "worker")
        quiet_loading()
        device = pick_device(config.cluster.device, job["local_rank"])
        if device.type == "cpu":
            torch.set_num_threads(job["threads"])
        compute, rows = build_computer(config, device), probe_rows(config)
    except UserError as error:
        send(connection, {"refused": str(error)}, timeout_s=SEND_S)
        return
    serve_requests(connection, compute, compute.introduce(rows), functools.partial(compute.probe, rows))


def probe_rows(config: RunConfig) -> Request:
    """Rows of the training data, far from each other, that tell whether a teacher is what it was (sanity.py)."""
    manifest = load_manifest(Path(config.data.prepared))
    split = open_split(Path(config.data.prepared), "train")
    rows = np.unique((2 * np.arange(PROBE_ROWS) + 1) * split.num_rows // (2 * PROBE_ROWS))
    batch = collate(split.read(rows), pad_token_id=manifest.pad_token_id)
    return pack_request(batch, labels=False)


def check_teaches(compute: RowComputer, config: RunConfig) -> Identity:
    """Who teaches. Raises UserError where nobody can learn from it (sanity.py). Costs its gradients on a few rows."""
    probe = compute.probe(probe_rows(config))
    reason = fault(probe)
    if reason is not None:
        raise UserError(f"nobody can learn from the teacher: {reason}")
    return Identity(compute.fingerprint, probe)


def build_computer(config: RunConfig, device: torch.device) -> RowComputer:
    """The run's teacher on ``device``, behind rows. Raises UserError."""
    manifest = load_manifest(Path(config.data.prepared))
    return computer_of(config, manifest, build_teacher(config, manifest, device), device)


def computer_of(
    config: RunConfig, manifest: Manifest, parts: EncoderParts, device: torch.device
) -> RowComputer:
    """A teacher that is on ``device`` already, behind rows."""
    wire = config.teacher.wire
    return RowComputer(
        parts,
        device,
        types=WireTypes(wire.states, wire.cls_gradients, wire.embedding_gradients),
        fingerprint=teacher_fingerprint(parts, tokenizer=manifest.read_by_teacher.tokenizer),
    )


if __name__ == "__main__":
    main()

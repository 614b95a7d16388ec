"""A record of committed steps: which samples, which losses. For proofs and for looking into a run."""

from __future__ import annotations

import json
from pathlib import Path

from distill_dist.durable import write_durable
from distill_dist.errors import UserError
from distill_dist.objectives.objective import LossTerms
from distill_dist.records import Step


class Trace:
    """Lines of JSON, one per committed step of one rank: `step` (from 0), `ids`, `sums` of the loss terms.

    A resumed run cuts the file where its checkpoint stands, so that every step stands in it once.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        """Keep the lines before ``first_step`` and append. Raises UserError where the file is not a trace."""
        try:
            kept = [line for line in _whole_lines(path) if json.loads(line)["step"] < first_step]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is not the trace of a run ({error}): move it away, or set train.trace=false"
            ) from error
        text = "".join(line + "\n" for line in kept)
        write_durable(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._path = path

    def __call__(self, step: Step, micro_batches: list[LossTerms]) -> None:
        """Record ``step``. Reads the losses, which waits for the device."""
        ids = [batch.ids_B[batch.is_real_B].tolist() for batch in step.batches]
        sums: dict[str, float] = {}
        for terms in micro_batches:
            for name, value in terms.sums.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step.number, "ids": ids, "sums": sums}) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Lines that end; a kill may have torn the last one."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]

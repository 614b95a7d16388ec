"""What one process at a time may write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distill_dist.durable import hold_while
from distill_dist.errors import UserError


@contextmanager
def one_writer(lock: Path, *, name: str, kind: str, wait_s: float = 0.0) -> Iterator[None]:
    """Inside the block nobody else writes what the file ``lock`` stands for; the folder that it lies in is made.

    ``name``: what is written, as the user gave it (`--out x`); ``kind``: of work, another of which may hold it, for
    whose end it waits ``wait_s``. Raises UserError where that is not enough, or nothing can be written there.
    """
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(hold_while(lock, wait_s=wait_s))
        except OSError as error:
            raise UserError(
                f"{name} cannot be written: {error.strerror} ({error.filename}): give another place"
            ) from error
        if holder is not None:
            raise UserError(f"{name} is being written by another {kind} ({holder}): wait for its end")
        yield

"""Confidence from a user's own file (`curriculum.source: file`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill_dist.errors import UserError

_REMEDY = "curriculum.file needs an .npy of one number per train row, larger is easier"


def scores_from_file(path: Path, num_rows: int) -> np.ndarray:
    """The confidence of every row, float32 [num_rows]; NaN is a row without one.

    A file that is float32 already is mapped, not read. UserError unless it holds so many numbers that fit.
    """
    values = _load(path)
    if values.ndim != 1 or len(values) != num_rows:
        raise UserError(
            f"{path} has the shape {list(values.shape)}, the train rows are {num_rows}: {_REMEDY}"
        )
    if values.dtype.kind not in "iuf":
        raise UserError(f"{path} holds {values.dtype}, not numbers: {_REMEDY}")
    with np.errstate(over="ignore"):
        scores = values.astype(np.float32, copy=False)
    if scores.dtype != values.dtype and bool(np.any(np.isinf(scores) & np.isfinite(values))):
        raise UserError(f"{path} has numbers beyond ±{np.finfo(np.float32).max:.2g}: scale them down")
    return np.asarray(scores)  # a memmap's own indexing is slow


def _load(path: Path) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"curriculum.file: {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_REMEDY}") from error
    if not isinstance(values, np.ndarray):  # an .npz, which holds several
        values.close()
        raise UserError(f"{path} is an archive of arrays: {_REMEDY}")
    return values

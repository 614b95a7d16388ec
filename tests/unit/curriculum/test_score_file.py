"""A user's own scores: taken as they are, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill_dist.curriculum.score_file import scores_from_file
from distill_dist.errors import UserError


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8", "|u1"])
def test_numbers_of_any_type_are_taken(tmp_path: Path, dtype: str) -> None:
    values = np.array([3, 0, 7], dtype=dtype)
    np.save(tmp_path / "x.npy", values)
    found = scores_from_file(tmp_path / "x.npy", 3)
    assert found.dtype == np.float32
    assert found.tolist() == [3, 0, 7]
    (tmp_path / "x.npy").write_bytes(
        (tmp_path / "x.npy").read_bytes()[: -values.nbytes] + bytes(values.nbytes)
    )
    mapped = found.tolist() == [0, 0, 0]
    assert mapped == (dtype == "<f4")  # 1e9 rows need not fit into memory


def test_values_that_are_not_finite_are_the_users_own(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([np.nan, np.inf, -np.inf, 0.5]))
    np.testing.assert_array_equal(
        scores_from_file(tmp_path / "x.npy", 4), np.float32([np.nan, np.inf, -np.inf, 0.5])
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(2), r"the shape \[2\], the train rows are 3"),
        (np.zeros((3, 1)), r"the shape \[3, 1\]"),
        (np.float64(3), r"the shape \[\]"),
        (np.array(["a", "b", "c"]), "holds <U1, not numbers"),
        (np.zeros(3, complex), "complex128, not numbers"),
        (np.zeros(3, bool), "bool, not numbers"),
        (np.array([0, 1e300, 0]), "numbers beyond ±3.4e[+]38"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UserError, match=r"x\.npy has|x\.npy holds") as caught:
        scores_from_file(tmp_path / "x.npy", 3)
    assert caught.match(message)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with pytest.raises(UserError, match=r"curriculum\.file: .*x\.npy: No such file"):
        scores_from_file(path, 3)
    for content in (b"", b"1 2 3\n", b"\x93NUMPY\x01\x00v\x00"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.npy cannot be read .*needs an \.npy"):
            scores_from_file(path, 3)
    np.save(path, np.array([1, None, 2], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"x\.npy cannot be read"):
        scores_from_file(path, 3)
    np.savez(tmp_path / "x.npz", np.zeros(3))
    with pytest.raises(UserError, match=r"x\.npz is an archive of arrays"):
        scores_from_file(tmp_path / "x.npz", 3)
    with pytest.raises(UserError, match=r"Is a directory"):
        scores_from_file(tmp_path, 3)

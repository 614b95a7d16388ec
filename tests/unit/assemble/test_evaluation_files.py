"""evaluation.json and its predictions: together or not at all, and by one process at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_disk import small_disk
from tiny import environment

from distill_dist.assemble.evaluation_files import evaluated_folder, left_behind, write_evaluation
from distill_dist.assemble.score import Scored
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.evaluation.predictions import Predictions


def scored(*splits: str, rows: int = 4) -> Scored:
    probabilities_NC = np.full((rows, 2), 0.5)
    found = Predictions(np.zeros(rows, dtype=np.int64), probabilities_NC, None, {})
    return Scored({"split": splits[0], "rows": rows}, dict.fromkeys(splits, found))


def check_whole(folder: Path) -> None:
    record = json.loads((folder / "evaluation.json").read_text())
    listed = {entry["file"]: entry["sha256"] for entry in record["predictions"].values()}
    there = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.glob("predictions/*")}
    assert there == listed


def test_the_splits_of_an_evaluation_before_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with evaluated_folder(folder):
        write_evaluation(folder, scored("dev", "tune"))
    check_whole(folder)
    with evaluated_folder(folder):
        record = write_evaluation(folder, scored("dev"))
    check_whole(folder)
    assert record["predictions"].keys() == {"dev"}
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "predictions"}


def test_what_is_lost_by_evaluating_again_is_said(tmp_path: Path) -> None:
    full = {"loyalty": {"ll": 1.0, "sl_spearman_norm": 0.5}, "consistency": {"deleted": {}}}
    bare: dict[str, Any] = {"loyalty": {"ll": 1.0}}
    before = scored("dev", "tune")
    before.record["splits"] = {"dev": full, "tune": bare}
    now = scored("dev")
    now.record["splits"] = {"dev": bare}
    assert left_behind(tmp_path, now) == []
    with evaluated_folder(tmp_path):
        write_evaluation(tmp_path, before)
    assert left_behind(tmp_path, now) == ["split tune", "saliency", "consistency"]
    assert left_behind(tmp_path, before) == []


def test_a_block_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model"), evaluated_folder(tmp_path / "new"):
        raise UserError("no model")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_its_place_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(UserError, match=r"evaluation\.json is in the place"), evaluated_folder(tmp_path):
        pass
    (tmp_path / "evaluation.json").rmdir()
    (tmp_path / "predictions").touch()
    with pytest.raises(UserError, match="predictions is in the place"), evaluated_folder(tmp_path):
        pass
    file = tmp_path / "predictions"
    with pytest.raises(UserError, match=f"^{re.escape(str(file))} cannot be written"), evaluated_folder(file):
        pass


HOLD = """
import sys, time
from pathlib import Path
from distill_dist.assemble.evaluation_files import evaluated_folder
with evaluated_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            said = f"another evaluation .process {other.pid} "
            with pytest.raises(UserError, match=said), evaluated_folder(tmp_path):
                pass
        finally:
            other.kill()
    with evaluated_folder(tmp_path):
        write_evaluation(tmp_path, scored("dev"))
    check_whole(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", size="64k") as place:
        yield place


def test_a_full_disk_leaves_the_evaluation_before(disk: Path) -> None:
    with evaluated_folder(disk / "e"):
        write_evaluation(disk / "e", scored("dev"))
    before = {path: path.read_bytes() for path in (disk / "e").rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="No space left") as full, evaluated_folder(disk / "e"):
        write_evaluation(disk / "e", scored("dev", "tune", rows=20_000))
    assert full.value.filename in [
        str(disk / "e" / "predictions" / f"{name}.tsv") for name in ("dev", "tune")
    ]
    assert {path: path.read_bytes() for path in (disk / "e").rglob("*") if path.is_file()} == before
    check_whole(disk / "e")

"""What confidence says of rows whose difficulty, or whose wrong label, is known: the generated corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny import launch

from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.data.shards import PreparedSplit, open_split

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
SIZES = (
    "data.source=synthetic_nli", "data.max_length=64", "data.synthetic.dev_rows=500", "batch.size=64",
    "cluster.device=cpu", "cluster.threads=1", "evaluate.saliency=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows pairs which differ in one word: 0.92 on new ones."""
    folder = tmp_path_factory.mktemp("expert")
    rows = (f"data.prepared={folder}/rows", "data.synthetic.max_steps=1", "data.synthetic.train_rows=12000")
    shape = ("hidden_size=64", "intermediate_size=256", "initializer_range=0.06")
    scored(
        folder, *rows, "method=finetune", *(f"student.shape.{value}" for value in shape), "student.dropout=0",
        "batch.size=32", "train.learning_rate=1e-3", "train.warmup_share=0.1", "train.epochs=6",
    )  # fmt: skip
    return folder / "run" / "model"


def scored(folder: Path, *arguments: str) -> Path:
    """Prepare and train; the run's folder."""
    common = [*SIZES, *arguments, f"run_dir={folder}/run"]
    for launcher in ("prepare.py", "train.py"):
        done = launch(launcher, common, logs=folder / launcher, timeout_s=400)
        assert done.processes[0].returncode == 0, done.text()
    return folder / "run"


def learnt(expert: Path, folder: Path, *corpus: str) -> tuple[PreparedSplit, np.ndarray]:
    """The rows of a corpus, and how sure of each a student is that learnt it from the expert for one epoch."""
    prepared = folder / "rows"
    run_dir = scored(
        folder, *corpus, "method=kd", f"data.prepared={prepared}", "data.synthetic.train_rows=6000",
        "student.path=${teacher.path}", f"teacher.path={expert}", "student.dropout=0", "train.learning_rate=1e-3",
        "train.epochs=1", "curriculum.order=easy_to_hard", "curriculum.final_snapshot=true",
    )  # fmt: skip
    snapshot = Snapshot.open(run_dir / "snapshots" / "snapshot-00001")
    return open_split(prepared, "train"), snapshot.scores_at(np.arange(snapshot.num_rows))


def test_rows_are_as_hard_as_they_are_known_to_be(expert: Path, tmp_path: Path) -> None:
    """Words that differ, one to six, against 1 - p(true class). From random weights no such relation appears."""
    split, confidence = learnt(expert, tmp_path, "data.synthetic.max_steps=6")
    found = spearmanr(split.difficulties, 1 - confidence).statistic
    print(f"Spearman of known difficulty and 1 - confidence after one epoch: {found:.3f}")
    assert found >= 0.3


def test_wrong_labels_are_among_the_least_confident(expert: Path, tmp_path: Path) -> None:
    noisy = ("data.synthetic.max_steps=1", "data.synthetic.label_noise=0.2", "data.synthetic.seed=1")
    split, confidence = learnt(expert, tmp_path, *noisy)
    wrong = split.labels != split.clean_labels
    least = np.argsort(confidence)[: len(confidence) // 5]
    share, base = wrong[least].mean(), wrong.mean()
    print(f"wrong labels: {base:.3f} of all rows, {share:.3f} of the 20 % least confident ones")
    assert base == pytest.approx(0.2)
    assert share >= 3 * base

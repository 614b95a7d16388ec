from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill_dist.errors import UserError
from distill_dist.slurm.script import MARKER, Part, choose, read_script

PATH = {"PATH": os.environ["PATH"]}
TEXT = f"""#!/bin/bash
# a job
#SBATCH --nodes=2-3   # or more
##SBATCH --account=nobody
#SBATCH --ntasks-per-node=4 --gpus-per-node=a100:4
#SBATCH --requeue
#SBATCH hetjob
#SBATCH --ntasks-per-node=2

#SBATCH --time=1
config=${{CONFIG:-c.yaml}}
run_dir=${{RUN_DIR:-runs/x}}
#SBATCH --nodes=99
settings=(a=1 "b=two words")
{MARKER}
exit 1
"""


def script(folder: Path, text: str = TEXT) -> Path:
    path = folder / "job.sh"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_are_read_as_sbatch_reads_them(tmp_path: Path) -> None:
    found = read_script(script(tmp_path))
    assert found.parts[0] == {
        "nodes": "2-3",
        "ntasks-per-node": "4",
        "gpus-per-node": "a100:4",
        "requeue": "",
    }
    assert found.parts[1] == {"ntasks-per-node": "2", "time": "1"}
    assert found.shape() == (Part((2, 3), 4, 4), Part((1,), 2, 0))
    assert read_script(script(tmp_path), ["--nodes=5"]).shape()[0].nodes == (5,)
    assert found.array == ()


def test_what_the_first_part_sets(tmp_path: Path) -> None:
    found = read_script(script(tmp_path))
    chosen = choose(found, PATH)
    assert (chosen.config, chosen.run_dir) == ("c.yaml", "runs/x")
    assert chosen.settings == ("a=1", "b=two words")
    assert choose(found, {**PATH, "CONFIG": "d.yaml"}).config == "d.yaml"
    none = read_script(script(tmp_path, f"config=a run_dir=b\nsettings=()\n{MARKER}\n"))
    assert choose(none, PATH).settings == ()


@pytest.mark.parametrize(
    ("array", "expected"),
    [("0-3", (0, 1, 2, 3)), ("0-8:4,11%2", (0, 4, 8, 11)), ("7", (7,))],
)
def test_an_array(tmp_path: Path, array: str, expected: tuple[int, ...]) -> None:
    found = read_script(script(tmp_path), [f"--array={array}"])
    assert found.array == expected
    task = script(tmp_path, f"config=a run_dir=b/$SLURM_ARRAY_TASK_ID\nsettings=()\n{MARKER}\n")
    assert choose(read_script(task), PATH, task=7).run_dir == "b/7"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-N3"], r"'-N3': write Slurm's options in their long form"),
        (["--nodes=many"], r"--nodes: 'many' is no whole number from 1"),
        (["--nodes=0"], r"--nodes: '0' is no whole number from 1"),
        (["--nodes=3-2"], r"--nodes=3-2: the first number is above the second"),
        (["--gpus-per-node=a100"], r"--gpus-per-node: 'a100'"),
        (["--array=a"], r"--array=a: 'a' is no task"),
        (["--array=0-4:0"], r"'0-4:0' is no task"),
        (["--array=0,5-2"], r"--array=0,5-2: the first number of '5-2' is above the second"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):  # noqa: PT012 - whichever of the two reads it
        found = read_script(script(tmp_path), options)
        _ = found.array, found.shape()


def test_a_script_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no line `# ---- from here on"):
        read_script(script(tmp_path, "#!/bin/bash\nsrun true\n"))
    with pytest.raises(UserError, match="No such file"):
        read_script(tmp_path / "none.sh")


def test_a_first_part_that_fails_says_why(tmp_path: Path) -> None:
    found = read_script(script(tmp_path, f"config=$unheard_of\n{MARKER}\n"))
    with pytest.raises(UserError, match=r"first part fails: .*unheard_of: unbound variable"):
        choose(found, PATH)

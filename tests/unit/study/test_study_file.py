from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_dist.errors import UserError
from distill_dist.study import run as run_module
from distill_dist.study.run import Running, check_study
from distill_dist.study.study_file import read_study
from study.study_cases import STUDY, write_study

REPOSITORY = Path(__file__).parents[3]


def test_what_a_file_says(tmp_path: Path) -> None:
    found = read_study(write_study(tmp_path))
    assert found.arms["gkd"] == ("method=gkd", "weight.kd=0.4")
    large, small = found.blocks
    assert (large.config, large.arms, large.seeds) == (tmp_path / "base.yaml", ("kd", "gkd", "kd_cl"), (1, 2))
    assert large.tune[0].grid == (("weight.kd", ("0.3", "0.6")), ("objective.temperature", ("2", "5")))
    assert (large.tune[0].seeds, large.tune[0].used_by) == ((7, 8), ("kd", "kd_cl", "gkd"))
    assert (large.tune[1].seeds, large.tune[1].used_by) == ((0,), ("gkd",))
    assert (small.arms, small.tuned_as, small.tune) == (("kd", "gkd"), "large", ())
    assert (found.splits, found.saliency_rows, found.baseline, found.split) == (
        ("dev", "held_out"),
        9,
        "kd",
        "held_out",
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("out: OUT", "outt: OUT", "outt: no such key; it takes out, teachers"),
        ("out: OUT\n", "", "out is missing"),
        ("  kd: {method: kd}", "  kd: [a]", "arms.kd: names with a value each"),
        ("  kd: {method: kd}", "  ../kd: {method: kd}", "'../kd' must be letters"),
        ("seeds: [1, 2]", "seeds: []", "blocks.large.seeds: at least one seed"),
        ("seeds: [1, 2]", "seeds: [1, -2]", "'-2' is no whole number"),
        ("seeds: [1, 2]", "seeds: [3, 3]", "none of them twice"),
        ("teacher: t\n    seeds", "teacher: u\n    seeds", "'u' is none of teachers (t)"),
        ("arms: [kd, gkd]", "arms: [kd, gdk]", "'gdk' is no arm; there are kd, gkd, kd_cl"),
        ("arms: [kd, gkd]", "arms: [kd, kd]", "named twice"),
        ("grid: {weight.gradient: [0.1, 1]}", "grid: {weight.gradient: 1}", "a list is needed"),
        ("grid: {weight.gradient: [0.1, 1]}", "grid: {}", "fields with a list of values each"),
        ("tuned_as: large", "tuned_as: small", "a block above that tunes (large)"),
        ("baseline: kd", "baseline: pkd", "'pkd' is no block's arm"),
        ("saliency_rows: 9", "saliency_rows: some", "'some' is no whole number"),
        ("out: OUT", "out: [", "not valid YAML"),
        ("  gkd: {method: gkd", "  kd: {method: gkd", "kd is there twice"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in STUDY
    with pytest.raises(UserError) as caught:
        read_study(write_study(tmp_path, STUDY.replace(old, new, 1)))
    assert said in str(caught.value)
    assert "study.yaml" in str(caught.value)


def test_every_run_is_checked_before_any_starts(tmp_path: Path) -> None:
    assert len(check_study(read_study(write_study(tmp_path)))) == 1 + 8 + 2 + 6 + 2
    wrong = STUDY.replace("method: gkd, weight.kd: 0.4", "method: gkd, weight.kd: 4")
    with pytest.raises(UserError, match=r"(?s)large/tune2-gkd/.*weight.kd = 4.0: must be 0 to 1"):
        check_study(read_study(write_study(tmp_path, wrong)))
    with pytest.raises(UserError, match="scores strange, which is no split of its data"):
        check_study(read_study(write_study(tmp_path, STUDY.replace("[dev, held_out]", "[dev, strange]"))))


def test_runs_that_would_share_a_folder_and_a_split_without_scores_are_refused(tmp_path: Path) -> None:
    twice = STUDY.replace("weight.gradient: [0.1, 1]", "weight.gradient: [0.1, 0.1]")
    with pytest.raises(UserError, match=r"tune2-gkd/gradient=0.1-seed0 would be two runs"):
        check_study(read_study(write_study(tmp_path, twice)))
    with pytest.raises(UserError, match=r"report.split=held_out is not among evaluate.splits \(dev\)"):
        check_study(read_study(write_study(tmp_path, STUDY.replace("[dev, held_out]", "[dev]"))))


def test_what_chose_the_weights_is_not_reported(tmp_path: Path) -> None:
    both = STUDY.replace("[dev, held_out]", "[dev, tune]").replace("split: held_out", "split: tune")
    with pytest.raises(
        UserError, match=r"blocks.large is tuned on tune \(evaluate.select_on\), and report.split=tune"
    ):
        check_study(read_study(write_study(tmp_path, both)))


def test_a_baseline_that_no_block_has_is_refused(tmp_path: Path) -> None:
    lost = STUDY.replace("  kd_cl:", "  other: {method: pkd}\n  kd_cl:").replace(
        "baseline: kd,", "baseline: other,"
    )
    lost = lost.replace("    seeds: [1, 2]", "    seeds: [1, 2]\n    arms: [kd, gkd, kd_cl]")
    with pytest.raises(UserError, match=r"'other' is no block's arm; they have kd, gkd, kd_cl"):
        read_study(write_study(tmp_path, lost))


def test_a_report_says_what_failed_and_does_without_a_baseline_that_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        run_module, "write_report", lambda runs, out, choice, **more: asked.update(choice=choice, **more)
    )
    running = Running(read_study(write_study(tmp_path)), "python", 1, False, lambda: False, print)
    gkd, kd = (tmp_path / "out" / "large" / arm / "seed1" for arm in ("gkd", "kd"))
    running._failed = {"large": [str(kd)], "small": []}
    running._report({"large": [gkd]})
    assert asked["choice"].baseline == ""
    assert asked["notes"] == {"large": f"1 of its runs failed and are left out: {kd}"}
    assert asked["more"]["failed"] == [str(kd)]
    running._report({"large": [gkd, kd]})
    assert asked["choice"].baseline == "kd"


def test_the_shipped_study_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    study = read_study(Path("configs/study/first_round.yaml"))
    configs = check_study(study)
    assert len(configs) == 83
    for config in configs:
        # neither the best epoch nor a weight is chosen on what is reported
        assert config.evaluate.select_on == "tune" not in study.splits
        assert config.data.hold_out == {"tune": 2000, "held_out": 10000}
        assert config.data.draw_seed == 0

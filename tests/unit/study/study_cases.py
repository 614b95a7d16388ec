"""A small study as a file."""

from __future__ import annotations

from pathlib import Path

BASE = """\
method: kd
data: {source: synthetic_nli, prepared: prepared/p, hold_out: {tune: 20, held_out: 30}}
student: {path: "${teacher.path}", layers: 2}
teacher: {path: t}
evaluate: {select_on: tune, at_end: [held_out]}
run_dir: unused
"""
TEACHER = """\
method: finetune
data: {source: synthetic_nli, prepared: prepared/p, hold_out: {tune: 20, held_out: 30}}
run_dir: unused
"""
STUDY = """\
out: OUT
teachers: {t: teacher.yaml}
arms:
  kd: {method: kd}
  gkd: {method: gkd, weight.kd: 0.4}
  kd_cl: {method: kd, curriculum.order: easy_to_hard}
blocks:
  large:
    config: base.yaml
    teacher: t
    seeds: [1, 2]
    tune:
      - {arm: kd, grid: {weight.kd: [0.3, 0.6], objective.temperature: [2, 5]}, seeds: [7, 8], used_by: [kd_cl, gkd]}
      - {arm: gkd, grid: {weight.gradient: [0.1, 1]}}
  small: {config: base.yaml, teacher: t, seeds: [1], arms: [kd, gkd], tuned_as: large}
evaluate: {splits: [dev, held_out], saliency_rows: 9}
report: {baseline: kd, split: held_out}
"""


def write_study(folder: Path, study: str = STUDY) -> Path:
    """The files below ``folder``, and the teacher's of a run that is done; runs go to its `out`."""
    (folder / "out" / "teachers" / "t" / "model").mkdir(parents=True, exist_ok=True)
    (folder / "p").mkdir(exist_ok=True)
    (folder / "p" / "manifest.json").write_text("{}", encoding="utf-8")
    for name, text in (("base", BASE), ("teacher", TEACHER)):
        (folder / f"{name}.yaml").write_text(text.replace("prepared/p", f"{folder}/p"), encoding="utf-8")
    path = folder / "study.yaml"
    path.write_text(study.replace("OUT", str(folder / "out")), encoding="utf-8")
    return path

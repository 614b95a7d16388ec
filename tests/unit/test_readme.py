"""What the README and the comments of shipped configurations tell people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(
            r"\b(?:launcher|configs|ds_configs|slurm|tests|distill_dist)/[\w/.-]*\.(?:py|yaml|json|md|sh)\b",
            text,
        )
    )
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, f"{page.name} names {missing}"
    if page.name == "README.md":
        assert len(named) >= 5, "the README should name launchers and configurations"


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    assert {"demo", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_readme_names_every_method_and_no_other() -> None:
    from distill_dist.objectives.objective import METHODS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == set(METHODS)

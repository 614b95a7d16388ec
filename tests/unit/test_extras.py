"""An extra that is not installed is told with the command that installs it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from distill_dist.errors import UserError
from distill_dist.extras import EXTRAS, require_extra


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_missing_is_named_with_the_remedy(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra(extra, what="it")
    monkeypatch.setitem(EXTRAS, extra, ("json", "onyx", "matplotlob"))
    with pytest.raises(UserError) as caught:
        require_extra(extra, what="it")
    assert str(caught.value) == (
        f"it needs onyx and matplotlob: pip install 'distill-dist[{extra}]' (in a checkout: pip install -e "
        f"'.[{extra}]'), then the same command"
    )


def test_the_extras_are_those_of_the_package() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    offered = pyproject["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        assert [line.split(">=")[0] for line in offered[extra]] == list(packages)

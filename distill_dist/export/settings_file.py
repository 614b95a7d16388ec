"""The run's resolved configuration beside its exported model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill_dist.export.markdown import hide_places

SETTINGS = "training_config.yaml"


def write_settings(config: Mapping[str, Any], out: Path, *, folder: str) -> None:
    """``config`` without absolute paths: those below ``folder``, where the run was started, as seen from there."""
    text = yaml.safe_dump(_shown(dict(config), folder), sort_keys=False, allow_unicode=True)
    out.write_text(text, encoding="utf-8")


def _shown(value: Any, folder: str) -> Any:
    match value:
        case dict():
            return {key: _shown(each, folder) for key, each in value.items()}
        case list():
            return [_shown(each, folder) for each in value]
        case str() if value.startswith(("/", "file:/")):
            return hide_places(value, folder=folder)
    return value

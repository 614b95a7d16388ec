"""The launchers as modules: they lie in no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "launcher"


def load_launcher(name: str) -> ModuleType:
    """`launcher/NAME.py`, imported anew."""
    spec = importlib.util.spec_from_file_location(f"{name}_launcher", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found

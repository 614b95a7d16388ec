"""What comes with an extra of the package: without it there is one clear message."""

from __future__ import annotations

import importlib.util

from distill_dist.errors import UserError

EXTRAS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "report": ("matplotlib", "jinja2")}


def require_extra(extra: str, *, what: str) -> None:
    """Raises UserError naming what of the extra is not installed, which ``what`` needs, and the command for it."""
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}: pip install 'distill-dist[{extra}]' (in a checkout: "
            f"pip install -e '.[{extra}]'), then the same command"
        )

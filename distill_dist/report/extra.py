"""What the page is drawn and written with comes with the extra `report`; without it there is one clear message."""

from __future__ import annotations

import importlib.util

from distill_dist.errors import UserError

PACKAGES = ("matplotlib", "jinja2")


def require_extra() -> None:
    """Raises UserError naming what is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the report needs {' and '.join(missing)}: pip install 'distill-dist[report]' (in a checkout: "
            "pip install -e '.[report]'), then the same command"
        )

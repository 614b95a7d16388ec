"""Python imports this first of all in every process of a run with this folder on its path: a slow disk, on demand.

The file SLOW_WRITES holds two numbers, `STEP SECONDS`: the tensors of checkpoints from that step on take so long to
reach the disk. It is read again meanwhile, and may let go of what it holds.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

_TENSORS = re.compile(r"/\.step-(\d+)\.\d+\.tmp/tensors\.safetensors")
_settings = Path(os.environ["SLOW_WRITES"])
_fsync = os.fsync


def _slow_fsync(file: Any) -> None:
    descriptor = file if isinstance(file, int) else file.fileno()
    found = _TENSORS.search(os.readlink(f"/proc/self/fd/{descriptor}"))
    begin = time.monotonic()
    while found:
        step, seconds = _settings.read_text(encoding="ascii").split()
        if int(found[1]) < int(step) or time.monotonic() - begin >= float(seconds):
            break
        time.sleep(0.005)
    _fsync(descriptor)


os.fsync = _slow_fsync

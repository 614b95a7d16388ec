"""One rank of a multi-process test: python child.py MODULE:FUNCTION ARGUMENTS.json RESULT.json DUMP_AFTER_S.

Run by harness.run_ranks; no pytest in here. Shortly before the hard limit the rank writes where it hangs to its
stderr.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
from pathlib import Path


def main(function: str, arguments: str, result: str, dump_after_s: str) -> None:
    """Call the function with the arguments of the JSON file and write what it returns."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(dump_after_s))
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(**json.loads(Path(arguments).read_text()))
    faulthandler.cancel_dump_traceback_later()
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # A thread of torch's may not have let go of the last collective's tensors yet, and is ended by force where it asks
    # the interpreter for leave to: see command_line.leave_at_once. Groups that a rank destroys have no such threads.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What every launcher does around its work: arguments, configuration, one JSON line, exit code.

Exit codes: 0 done; 2 the user's input is wrong (one message, no traceback); 75 stopped in good order and
resumable; 130 interrupted at the keyboard; 1 with a traceback is a bug. Nothing here imports torch, so
`--help` and a wrong key answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from distill_dist.config.check import Need
from distill_dist.config.describe import help_text
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.errors import EXIT_RESUMABLE, EXIT_USER_ERROR, Interrupted, UserError

EXIT_KEYBOARD = 130  # 128 + SIGINT, as shells count

Main = Callable[[RunConfig, argparse.Namespace], dict[str, Any] | None]


def launch(
    main: Main,
    *,
    description: str,
    flags: Callable[[argparse.ArgumentParser], None] | None = None,
    need: Need = "train",
    config_path: Callable[[argparse.Namespace], Path | None] | None = None,
    folder: str | None = None,
    folder_needed: bool = True,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Read the command line, run ``main(config, args)``, print its result as one JSON line, and exit.

    ``flags`` adds the launcher's own options to the parser; ``need`` says how much of the configuration the
    launcher reads; ``config_path`` names the file where `--config` is absent (say, the run folder's own).
    With ``folder``, its help, a folder is the first word that is no option: ``args.folder``, a Path. With
    ``folder_needed`` False it is None where there is no such word, or the word is a `key=value` and no folder.
    The JSON line comes from rank 0 only (RANK or SLURM_PROCID, both absent in a single process). Always
    raises SystemExit, except for a bug in ``main``, whose exception goes through.
    """
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    # Read when torch is imported: its C++ parts warn on stderr of every socket that closes at the end of a run.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        parser = build_parser(description, flags, folder, folder_needed=folder_needed)
        args, config = _read(parser, config_path, need, argv)
    except UserError as error:
        # every rank reads the same words: one message is enough
        _exit(EXIT_USER_ERROR, f"error: {error}" if rank == "0" else None)
    except OSError as error:
        _exit(EXIT_USER_ERROR, f"error: {_file_problem(error)}" if rank == "0" else None)
    except KeyboardInterrupt:
        _exit(EXIT_KEYBOARD, None)
    _finish(lambda: main(config, args), rank)


def launch_plain(
    main: Callable[[argparse.Namespace], dict[str, Any] | None],
    *,
    description: str,
    flags: Callable[[argparse.ArgumentParser], None],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """:func:`launch` for what reads no configuration: ``flags`` adds every argument. One process."""
    parser = _Parser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flags(parser)
    try:
        args = parser.parse_args(argv)
    except UserError as error:
        _exit(EXIT_USER_ERROR, f"error: {error}")
    _finish(lambda: main(args), "0")


def _finish(work: Callable[[], dict[str, Any] | None], rank: str) -> NoReturn:
    """Do the work, print its result, exit; see :func:`launch`."""
    try:
        result = work()
    except UserError as error:
        logging.getLogger("distill_dist").debug("error: %s", error)  # the rank's own log, where there is one
        _exit(EXIT_USER_ERROR, None if error.said else _label(f"error: {error}", rank))
    except Interrupted as error:
        logging.getLogger("distill_dist").debug("stopped: %s", error)
        _exit(EXIT_RESUMABLE, _label(f"stopped: {error}", rank))
    except OSError as error:
        _exit(EXIT_USER_ERROR, _label(f"error: {_file_problem(error)}", rank))
    except KeyboardInterrupt:
        _exit(EXIT_KEYBOARD, None)
    if result is not None and rank == "0":
        _print_json(result)
    _exit(0, None)


def _file_problem(error: OSError) -> str:
    """`FILE: reason`, the traceback into the log; an error that names no file is a bug, and goes on."""
    if error.filename is None or isinstance(error, BrokenPipeError):
        raise error
    logging.getLogger("distill_dist").debug("a file failed", exc_info=error)
    return f"{error.filename}: {error.strerror}"


def _read(
    parser: argparse.ArgumentParser,
    config_path: Callable[[argparse.Namespace], Path | None] | None,
    need: Need,
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, RunConfig]:
    # intermixed: overrides may stand before, between and after options
    args = parser.parse_intermixed_args(argv)
    _take_folder(args)
    path = args.config or (config_path(args) if config_path else None)
    if path is None and not args.overrides:
        hint = f"see {parser.prog} --help"
        raise UserError(f"no configuration: give --config FILE (configs/ has some) or key=value; {hint}")
    return args, load_config(path, args.overrides, need=need)


def named_path(text: str) -> Path:
    """For `type=`: a path that says something. An empty one, as of a variable that is not set, is a mistake."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name: is a variable not set?")
    return Path(text)


def _take_folder(args: argparse.Namespace) -> None:
    """``args.folder`` becomes a Path, or None where the first word is a `key=value`, which goes to the overrides."""
    word = getattr(args, "folder", None)
    if word is None:
        return
    if args.folder_may_lack and "=" in word and not os.path.isdir(word):
        args.folder, args.overrides = None, [word, *args.overrides]
    else:
        args.folder = Path(word)


def build_parser(
    description: str,
    flags: Callable[[argparse.ArgumentParser], None] | None = None,
    folder: str | None = None,
    *,
    folder_needed: bool = True,
) -> argparse.ArgumentParser:
    """A launcher's parser: `--config`, ``folder``, overrides, ``flags``, and what DeepSpeed's launcher adds."""
    parser = _Parser(
        description=description,
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --conf would work until a launcher adds --confirm
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML of the run")
    if folder is not None:
        parser.add_argument("folder", nargs=None if folder_needed else "?", metavar="DIR", help=folder)
        parser.set_defaults(folder_may_lack=not folder_needed)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="fields of the configuration, over the file's"
    )
    # DeepSpeed's launcher appends it to every script; ranks come from the environment
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    if flags is not None:
        flags(parser)
    return parser


class _Parser(argparse.ArgumentParser):
    """Wrong arguments become UserErrors, so that they read like every other message."""

    def error(self, message: str) -> NoReturn:
        # argparse says so of key=value beside a DIR, but it is never required
        message = message.replace(", key=value", "")
        raise UserError(f"{message} (see {Path(self.prog).name} --help)")


def _label(message: str, rank: str) -> str:
    return message if rank == "0" else f"[rank {rank}] {message}"


def _print_json(result: dict[str, Any]) -> None:
    """One line; a reader that has gone (`| head`) is no error of ours, a full disk is the user's."""
    line = json.dumps(result, allow_nan=False)
    try:
        print(line, flush=True)
    except OSError as error:
        # Python's documentation of SIGPIPE: the interpreter may flush once more at exit; give it a place
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _exit(EXIT_USER_ERROR, f"error: the result cannot be printed: standard output: {error.strerror}")


def leave_at_once(ended: SystemExit) -> NoReturn:
    """End the process with the code of ``ended``, without the interpreter's teardown where that is not 0.

    A thread that comes back from torch's C++ during the teardown, say from a store that nobody answered, is ended by
    force inside it, and C++ answers with SIGABRT: "terminate called without an active exception". Whatever matters is
    written by then.
    """
    if ended.code in (0, None):
        raise ended
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(ended.code if isinstance(ended.code, int) else 1)


def _exit(code: int, message: str | None) -> NoReturn:
    if message is not None:
        with contextlib.suppress(BrokenPipeError):
            print(message, file=sys.stderr, flush=True)
    raise SystemExit(code)

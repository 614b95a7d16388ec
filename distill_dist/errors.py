"""The two ways a run ends early on purpose, and the exit codes that launchers give them."""

from __future__ import annotations

EXIT_USER_ERROR = 2  # the user's input is wrong: one message, no traceback
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: stopped in good order; the same command goes on


class UserError(ValueError):
    """Something the user can mend. The message names the thing, its value and the remedy.

    Launchers print the message without a traceback and exit with ``EXIT_USER_ERROR``. ``said``: another rank
    of the run prints it already.
    """

    said: bool = False


def shared_error(reason: str, *, said: bool) -> UserError:
    """What ends every rank for the same ``reason``; ``said``: another one prints it."""
    error = UserError(reason)
    error.said = said
    return error


class Interrupted(RuntimeError):
    """The run stopped in good order and can be resumed; the message says why.

    Launchers exit with ``EXIT_RESUMABLE``.
    """

"""What a person can mend, and how a program says so."""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from scav_jax.base import interrupts

EXIT_INPUT = 2  # bad input: nothing is wrong with the program
EXIT_SYSTEM = 3  # the machine refused: disk full, no permission
EXIT_FAULT = 4  # the program or a package of it is wrong: no input mends that

# What our own wrong call, or a package of another version, raises: whoever turns exceptions into a
# rejection, a skip or a fallback lets these pass, unless a damaged file is known to provoke them.
OUR_FAULTS = (TypeError, AttributeError, ImportError, NameError, NotImplementedError)


class InputError(ValueError):
    """Bad input that a person can mend.

    The message is one line: what was expected, what came, what to do. Programs print it without
    a traceback (see `run_program`); in Python it is an ordinary `ValueError`.
    """


class ProgramFault(RuntimeError):
    """The program or one of its packages is at fault, whatever the input was.

    The message says in one line what was being done and what went wrong there. Programs print it
    without a traceback and exit with `EXIT_FAULT`.
    """


def did_you_mean(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """`" Did you mean 'x'?"` for the closest known word, else the empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def check_unique(ids: Sequence[str], places: Iterable[str] | None = None) -> None:
    """Raises `InputError` for the first id that comes twice; `places` says where each is."""
    if places is None:
        places = (f"clip {number}" for number in range(1, len(ids) + 1))
    first: dict[str, str] = {}
    for name, where in zip(ids, places, strict=True):
        if name in first:
            raise InputError(
                f"{where}: expected every id once, {name!r} came before in {first[name]}; remove "
                "or change one of them"
            )
        first[name] = where


def _input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` behind an exception that a library wrapped, or None."""
    while error is not None and not isinstance(error, ProgramFault):
        if isinstance(error, InputError):
            return error
        # A fault of ours may come up while bad input is being handled: it is not that input's.
        handled = None if isinstance(error, OUR_FAULTS) else error.__context__
        error = error.__cause__ or handled
    return None


def run_program(main: Callable[[], int | None]) -> None:
    """Runs `main` and exits: 0 on success, else with one line on stderr and a code of its own.

    `SCAV_TRACEBACK=1` in the environment shows the whole traceback instead of the one line.
    """
    try:
        with interrupts.second_ends():
            code = main() or 0
    except KeyboardInterrupt:
        interrupts.leave(interrupts.WORDS)
    except Exception as error:
        if os.environ.get("SCAV_TRACEBACK"):
            raise
        bad_input = _input_error(error)
        if bad_input is not None:
            print(f"error: {bad_input}", file=sys.stderr)
            code = EXIT_INPUT
        elif isinstance(error, ProgramFault):
            print(
                f"error: {error}; this is a fault of scav_jax or of a package that it uses, not of "
                "your files: what was finished is kept. SCAV_TRACEBACK=1 before the same command "
                "shows where it happened",
                file=sys.stderr,
            )
            code = EXIT_FAULT
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" at {error.filename}" if error.filename else ""
            print(
                f"error: the disk is full{where}: what was finished is kept; "
                "free some space and run the same command again",
                file=sys.stderr,
            )
            sys.stderr.flush()
            os._exit(EXIT_SYSTEM)  # a log's own thread would fail on the same disk, at length
        elif isinstance(error, PermissionError):
            print(f"error: no permission: {error}", file=sys.stderr)
            code = EXIT_SYSTEM
        else:
            raise
    sys.stdout.flush()
    sys.exit(code)

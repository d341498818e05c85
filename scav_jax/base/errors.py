"""What a person can mend, and how a program says so."""

import atexit
import contextlib
import errno
import logging
import os
import select
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from scav_jax.base import interrupts
from scav_jax.base.names import from_here, is_text, shown

EXIT_INPUT = 2  # bad input: nothing is wrong with the program
EXIT_SYSTEM = 3  # the machine refused: disk full or read-only, no permission, no memory
EXIT_FAULT = 4  # the program or a package of it is wrong: no input mends that
EXIT_UNREAD = 141  # 128 + SIGPIPE: whoever read standard output has left, as `head` does
MOST_LETTERS = 1800  # of a message

# What our own wrong call, or a package of another version, raises: whoever turns exceptions into a
# rejection, a skip or a fallback lets these pass, unless a damaged file is known to provoke them.
OUR_FAULTS = (TypeError, AttributeError, ImportError, NameError, NotImplementedError)

_HINTS = {  # what words of JAX and Python leave to look up, by their class
    "TracerArrayConversionError": "use jax.numpy, not NumPy, on what is compiled",
    "TracerBoolConversionError": "choose with jnp.where, not with if: it is compiled",
    "TracerIntegerConversionError": "mask with jnp.where, do not index by a length: it is compiled",
    "SystemExit": "this ended the program; raise an exception there, or take it out",
    "ConcretizationTypeError": "it is compiled: keep arrays of jax.numpy, no numbers of Python",
}


class InputError(ValueError):
    """Bad input that a person can mend.

    The message is one line: what was expected, what came, what to do. Programs print it without
    a traceback (see `run_program`); in Python it is an ordinary `ValueError`. Of a message that
    quotes a file at length the middle is left out.
    """

    def __init__(self, message: str = ""):
        words = str(message)
        half = MOST_LETTERS // 2
        super().__init__(
            words if len(words) <= MOST_LETTERS else f"{words[:half]} ... {words[-half:]}"
        )


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


def check_one_of(where: str, value: object, known: Iterable[str]) -> None:
    """Raises `InputError` for a word that is none of those known; `where` is what was set to it."""
    known = list(known)
    if value not in known:
        raise InputError(
            f"{where}: expected one of {', '.join(known)}, got {value!r}."
            + did_you_mean(str(value), known)
        )


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def counted(names: Iterable[str], most: int | None = None) -> str:
    """How often each name comes, or the counts of a `Counter`, the most common first.

    >>> counted(["silent", "still", "silent"])
    'silent 2, still 1'
    """
    return ", ".join(f"{name} {count:,}" for name, count in Counter(names).most_common(most))


def number_of(count: int, what: str) -> str:
    """A count with what is counted.

    >>> number_of(1, "clip"), number_of(1200, "clip")
    ('1 clip', '1,200 clips')
    """
    return f"{count:,} {what}" + "s" * (count != 1)


def counted_reasons(rows: Iterable[Mapping[str, str]]) -> str:
    """How many rows of rejected.csv there are for each category of reason.

    >>> counted_reasons([{"reason": "silent: its peak is 0"}, {"reason": "silent"}])
    'silent 2'
    """
    return counted(row["reason"].partition(":")[0] for row in rows)


def first_line(error: BaseException) -> str:
    """What an exception says in its first line, or else its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_a_line(error: BaseException) -> str:
    """All that an exception says, in one line that is not too long, or else its kind."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def in_their_line(error: BaseException) -> InputError | None:
    """What went wrong in code of a user's own that ours called (a door), with its line.

    None for anything else, and for a program of a user's own.
    """
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    places = [(one.filename, one.lineno, one.name) for one in frames if one.filename != __file__]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno, "<module>"))
    theirs = [place for place in places if _is_theirs(place[0])]
    if not theirs or theirs[0] == places[0]:
        return None
    file, line, name = theirs[-1]
    where = f"{from_here(file)}, line {line}" + ("" if name == "<module>" else f", in {name}")
    kind, hint = type(error).__name__, _HINTS.get(type(error).__name__)
    said = error.msg if isinstance(error, SyntaxError) else str(error) and first_line(error)[:200]
    return InputError(
        f"{where}: {kind}"
        + (f": {said}" if said else "")
        + (f"; {hint}" if hint else "")
        + "; SCAV_TRACEBACK=1 before the same command shows how it came there"
    )


def _is_theirs(file: str) -> bool:
    """Whether code is neither this package's, nor Python's, nor of anything that is installed."""
    import sysconfig
    from pathlib import Path

    path, ours = Path(file), (Path(__file__).parents[1], sysconfig.get_path("stdlib"))
    return not (
        file.startswith("<")
        or {"site-packages", "dist-packages"}.intersection(path.parts)
        or any(path.is_relative_to(folder) for folder in ours)
    )


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
    _open_what_is_closed()
    _show_any_name()
    _drop_late_answers()
    warnings.formatwarning = lambda words, *_, **__: f"warning: {shown(str(words))}\n"
    try:
        with interrupts.second_ends():
            code = main() or 0
            sys.stdout.flush()
    except KeyboardInterrupt as stopped:  # a program that begins anew says so in it
        code = getattr(stopped, "code", interrupts.EXIT_INTERRUPTED)
        interrupts.leave(str(stopped) or interrupts.WORDS, code)
    except SystemExit as ended:
        code = _ended_by_theirs(ended)
    except Exception as error:
        if _nobody_reads(error):
            _silence(1, sys.stdout, sys.__stdout__)
            sys.exit(EXIT_UNREAD)
        found = None if os.environ.get("SCAV_TRACEBACK") else _code_and_words(error)
        if found is None:
            raise
        code, words = found
        print(f"error: {shown(words)}", file=sys.stderr)
        if code == EXIT_SYSTEM:
            _end_quietly(error)
    atexit.register(interrupts.done, code)  # before all else that is done at exit
    sys.exit(code)


def _ended_by_theirs(ended: SystemExit) -> int:
    """Says whose `sys.exit` it was where it was code of a user's own; else goes on with it."""
    theirs = in_their_line(ended)
    if theirs is None:
        raise ended
    if os.environ.get("SCAV_TRACEBACK"):
        raise theirs from ended
    print(f"error: {shown(str(theirs))}", file=sys.stderr)
    return EXIT_INPUT


def _open_what_is_closed() -> None:
    """What is said on a stream that the program was started without (`>&-`) goes nowhere.

    Its number is taken too: the next file would get it, and what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r+")  # noqa: SIM115  # for as long as the process lives
            setattr(sys, name, nowhere)
            try:
                os.fstat(number)
            except OSError:
                os.dup2(nowhere.fileno(), number)


def _drop_late_answers() -> None:
    """Of reads and writes that were given up, in a loop that is closed: nobody waits for them."""
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = partial(_unless_of_a_closed_loop, sys.unraisablehook)


def _unless_of_a_closed_loop(hook: Callable, unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _show_any_name() -> None:
    """Names of files may hold letters that a terminal cannot show: those are escaped."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # somebody's own stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _code_and_words(error: Exception) -> tuple[int, str] | None:
    """How a program ends that failed so; None for what only a traceback explains."""
    bad_input = _input_error(error)
    if bad_input is not None:
        return EXIT_INPUT, str(bad_input)
    if isinstance(error, ProgramFault):
        return EXIT_FAULT, (
            f"{error}; this is a fault of scav_jax or of a package that it uses, not of your "
            "files: whatever was finished is kept. SCAV_TRACEBACK=1 before the same command shows "
            "where it happened"
        )
    if isinstance(error, UnicodeEncodeError) and not is_text(error.object):
        return EXIT_INPUT, (
            f"expected a name that is text in UTF-8, got {shown(error.object)}: rename it"
        )
    if isinstance(error, MemoryError):
        return EXIT_SYSTEM, "there is not enough memory: whatever was finished is kept"
    if isinstance(error, OSError):
        return EXIT_SYSTEM, _refusal(error)
    theirs = in_their_line(error)
    return None if theirs is None else (EXIT_INPUT, str(theirs))


def _refusal(error: OSError) -> str:
    """What the machine said no to, and what to do."""
    where = f" at {error.filename}" if error.filename else ""
    kept = "whatever was finished is kept; {} and run the same command again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "" if error.errno == errno.ENOSPC else " (your quota is used up)"
        return f"the disk is full{why}{where}: {kept.format('free some space')}"
    if error.errno == errno.EROFS:
        return f"the file system is read-only{where}: {kept.format('make it writable')}"
    if error.errno == errno.EFBIG:
        return f"the system does not take a file so large{where}: " + kept.format(
            "raise its limit (ulimit -f), or use another file system,"
        )
    if isinstance(error, PermissionError):
        allow = "have its owner allow it (chmod), or name another place,"
        return f"no permission: {error}: {kept.format(allow)}"
    said = error.strerror or str(error) or type(error).__name__
    return f"the system refused{where}: {said}; {kept.format('mend that')}"


def _nobody_reads(error: Exception) -> bool:
    """Whether it failed because the reader of standard output has left, which is no failure."""
    if not isinstance(error, BrokenPipeError) or not hasattr(select, "poll"):
        return False
    output = select.poll()
    output.register(1, 0)  # that nobody reads is always told
    return any(event & select.POLLERR for _, event in output.poll(0))


def _end_quietly(error: Exception) -> None:
    """What still works in the background shall not say the same again, at length.

    Logs write what they have when the interpreter ends, and fail once more.
    """
    sys.stderr.flush()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        os._exit(EXIT_SYSTEM)  # a log's own thread would fail on the same disk, for long
    _silence(2, sys.stderr, sys.__stderr__)


def _silence(descriptor: int, stream: object, own: object) -> None:
    """Sends what is still written there to nowhere; a test's or a notebook's stream is left."""
    if stream is own:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

"""How programs end: with one line and a code that says whose fault it was."""

import errno
import os
import signal
import subprocess
import sys
import types

import pytest

from scav_jax.base import doors, errors
from scav_jax.base.errors import InputError, ProgramFault
from scav_jax.base.interrupts import EXIT_INTERRUPTED, termination_interrupts


def wrapped(inner, outer, explicit=True):
    """A function that fails with `outer` while `inner` is being handled."""

    def main():
        try:
            raise inner
        except Exception as error:
            raise outer from (error if explicit else outer.__cause__)

    return main


def failing(error):
    def main():
        raise error

    return main


def terminated():
    with termination_interrupts():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda: None, 0, ""),
        (terminated, 143, "interrupted"),
        (failing(KeyboardInterrupt()), EXIT_INTERRUPTED, "interrupted"),
        (failing(InputError("expected x, got y")), errors.EXIT_INPUT, "error: expected x, got y"),
        (wrapped(InputError("x"), RuntimeError("in a library")), errors.EXIT_INPUT, "error: x"),
        (failing(PermissionError(errno.EACCES, "no")), errors.EXIT_SYSTEM, "another place"),
        (failing(OSError(errno.EROFS, "no", "f")), errors.EXIT_SYSTEM, "read-only at f"),
        (failing(OSError(errno.EFBIG, "no")), errors.EXIT_SYSTEM, "ulimit -f"),
        (failing(OSError(errno.EIO, "Input/output")), errors.EXIT_SYSTEM, "refused: Input/output"),
        (failing(OSError("9 requested and 4 written")), errors.EXIT_SYSTEM, "refused: 9 requested"),
        (failing(MemoryError()), errors.EXIT_SYSTEM, "not enough memory"),
        (lambda: "a\udce9".encode(), errors.EXIT_INPUT, "is text in UTF-8, got a\\xe9"),
        (failing(InputError("two\nlines")), errors.EXIT_INPUT, "error: two\\nlines"),
        (failing(ProgramFault("decoding a: TypeError")), errors.EXIT_FAULT, "fault of scav_jax"),
        (wrapped(InputError("x"), ProgramFault("y")), errors.EXIT_FAULT, "error: y"),
    ],
)
def test_each_end_has_its_code_and_at_most_one_line(main, code, words, capsys, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)  # after Ctrl-C
    with pytest.raises(SystemExit) as ended:
        errors.run_program(main)
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert words in said and said.count("\n") == (1 if words else 0)


def test_a_fault_while_bad_input_is_handled_is_not_taken_for_the_input(capsys):
    main = wrapped(InputError("bad file"), TypeError("f() got 3 arguments"), explicit=False)
    with pytest.raises(TypeError, match="3 arguments"):
        errors.run_program(main)
    assert "bad file" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def one(v, a):\n    return v.unsqueeze(0)", "line 2, in one: AttributeError: 'int'"),
        ("import of_nobody", "line 1: ModuleNotFoundError: No module named 'of_nobody'"),
        ("import sys\ndef one(v, a):\n    sys.exit('no')", "in one: SystemExit: no; this ended"),
        ("import sys\nsys.exit()", "line 2: SystemExit; this ended the program"),
        ("def one(v, a:\n    pass", "line 1: SyntaxError: "),
        (
            "import jax\ndef one(v, a):\n    return jax.jit(lambda x: 1 if x else 0)(1.0)",
            "choose with jnp.where, not with if",
        ),
    ],
)
def test_what_fails_in_code_behind_a_door_is_told_with_its_line(
    code, words, capsys, monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    (tmp_path / "theirs.py").write_text(code)

    def main():
        doors.find("distance", "theirs:one", {})(1, 2)

    ours = types.FunctionType(  # as if it stood in the package
        main.__code__.replace(co_filename=errors.__file__.replace("errors.py", "doors.py")),
        globals(),
    )
    with pytest.raises(SystemExit) as ended:
        errors.run_program(ours)
    said = capsys.readouterr().err
    assert ended.value.code == errors.EXIT_INPUT and said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path}/theirs.py, line ") and words in said


def test_a_message_that_quotes_a_file_at_length_is_cut_in_the_middle():
    message = str(InputError(f"list.csv, line 2: expected 1 or 0, got {'9' * 10_000}; correct it"))
    assert len(message) < 2000
    assert message.startswith("list.csv, line 2") and message.endswith("9; correct it")
    assert str(InputError("x" * 1800)) == "x" * 1800


def test_tracebacks_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("SCAV_TRACEBACK", "1")
    with pytest.raises(ProgramFault):
        errors.run_program(failing(ProgramFault("x")))


ENDS = """
import atexit, logging, sys
from scav_jax.base import errors

class Late:
    def __del__(self):  # as tensorstore answers a read that was given up
        raise RuntimeError("Event loop is closed")

def fail():
    raise OSError(27, "File too large")

def main():
    print("x" * int(sys.argv[1]))
    Late()
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    atexit.register(fail)
    fail()

errors.run_program(main)
"""


def test_what_fails_in_the_background_says_nothing_more():
    """And a pipe that nobody reads is no failure, as of `scav doctor | head`."""
    words = [sys.executable, "-c", ENDS, "9"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == errors.EXIT_SYSTEM and done.stdout == "x" * 9 + "\n"
    assert (
        done.stderr.startswith("error: the system does not take") and done.stderr.count("\n") == 1
    )
    words[-1] = "1000000"
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == errors.EXIT_UNREAD and said == b""


CLOSED = """
import os, sys
from scav_jax.base import errors

def main():
    print("said")
    with open(sys.argv[1], "w") as file:
        os.write(1, b"by a library")
        print("said", file=sys.stderr)
        file.write("own")

errors.run_program(main)
"""


def test_a_program_may_be_started_without_streams(tmp_path):
    """As by `>&- 2>&-`; what is printed lies in no file either."""
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(CLOSED)
    words = f"'{sys.executable}' '{program}' '{out}' <&- >&- 2>&-"
    assert subprocess.run(words, shell=True).returncode == 0
    assert out.read_text() == "own"

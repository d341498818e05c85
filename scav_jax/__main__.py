"""`scav NAME ...`, the same as `python -m scav_jax.NAME ...`, but for those of `LIES_IN`."""

import os
import runpy
import sys

from scav_jax.base.commands import LIES_IN, PROGRAMS
from scav_jax.base.errors import InputError, did_you_mean, run_program


def listing() -> str:
    """What `scav --help` says."""
    lines = [f"  scav {name:<18} {words}" for name, words in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: scav PROGRAM ...\n",
            "The programs in the order of the work; `scav PROGRAM --help` says more.\n",
            *lines,
        ]
    )


def program(words: list[str]) -> tuple[str, list[str]]:
    """The program that a command line names, of one word or two, and the words for it."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in PROGRAMS:
            return name, words[count:]
    raise InputError(
        f"expected a program, got {words[0]!r}.{did_you_mean(words[0], list(PROGRAMS))} "
        f"There are {', '.join(PROGRAMS)}"
    )


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, rest = program(words)
    sys.argv[1:] = rest
    module = "scav_jax." + LIES_IN.get(name, name.replace(" ", "."))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def scav() -> None:
    """The command `scav`; as with `python -m`, modules are found in the working directory too."""
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    run_program(main)


if __name__ == "__main__":
    run_program(main)

"""`scav weights --from equiav|cav_mae FILE.pth --out DIR`: released weights as a model of ours.

DIR is what `scav export` writes: evaluate, index, search and web take it. Nothing in FILE is
executed, every tensor in it is accounted for, and a file of another system is refused.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser, at_least
from scav_jax.base.errors import run_program
from scav_jax.export import UNKNOWN_LICENCE


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="scav weights", description=__doc__)
    add = parser.add_argument
    add("file", type=Path, help=".pth, .pt or .safetensors, as it was released")
    add("--from", dest="system", required=True, help="whose: equiav or cav_mae")
    add("--out", type=Path, required=True, help="the directory to write")
    add("--heads", type=at_least(1), help="of attention; default: the width in heads of 64")
    licence = "of the parameters: an SPDX name (default: unknown)"
    add("--licence", default=UNKNOWN_LICENCE, help=licence)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    from scav_jax.export.weights.released import convert
    from scav_jax.export.writing import check_licence, write_model

    check_licence(options.licence)
    run, unused = convert(options.file, options.system, options.heads)
    model = write_model(run, options.out, licence=options.licence)
    for why, count in unused.items():
        print(f"left out {count:,} numbers: {why}")
    print(f"wrote {options.out}: model {model.identity}")
    return 0


if __name__ == "__main__":
    run_program(main)

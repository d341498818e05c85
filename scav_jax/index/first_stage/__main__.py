"""A first stage of search that knows time: `scav sketch --run RUN`.

Learns, in seconds and without touching the run's towers, what makes one vector of each stream of a
clip whose cosine ranks as the run's sequences do, and writes it to RUN/sketch. An index that is
built then has these vectors, and `--retrieval hybrid:K` chooses its K candidates by them. Given
again, it takes the place of what was there; indexes that were built before are to be built again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser, at_least, whole
from scav_jax.base.errors import run_program


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="scav sketch", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="the --workdir of a finished training")
    add("--numbers", type=at_least(1), default=192, help="of a sketch (default 192)")
    add(
        "--steps",
        type=at_least(0),
        default=0,
        help="cells of time (default: those of sequences, to 64)",
    )
    add(
        "--clips",
        type=at_least(1),
        default=2048,
        help="of the training data, at most (default 2048)",
    )
    add("--seed", type=whole, default=0, help="chooses the clips (default 0)")
    add("--json", action="store_true", help="for programs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.retrieval import sketching
    from scav_jax.retrieval.sketch import ABOUT, FOLDER

    names = ("numbers", "steps", "clips", "seed")
    fitting = sketching.Fitting(**{name: getattr(arguments, name) for name in names})
    sketch, figures = sketching.sketch_run(arguments.run, fitting)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return 0
    print(sketching.table(figures["validation"]))
    print(f"\n{arguments.run / FOLDER / ABOUT}: sketch {sketch.name}")
    return 0


if __name__ == "__main__":
    run_program(main)

"""`scav probe --run RUN --data DATA --split test`: a table, probe.json and probe.html."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser, add_run_and_split, add_weights, at_least
from scav_jax.base.errors import run_program


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; anything wrong with it is an `InputError`."""
    parser = Parser(
        prog="scav probe",
        description="What a finished run's features tell: labels (linear probe, neighbours), its "
        "own tasks beside priors and controls, and changed copies of clips (fingerprinting).",
    )
    add_run_and_split(parser, run_required=True)
    add = parser.add_argument
    add("--train-split", default="train", help="where labels are learned from (default train)")
    add("--validation-split", default="validation", help="chooses C (default validation)")
    add(
        "--changed",
        type=at_least(0),
        default=100,
        help="clips that are changed; 0: none (default 100)",
    )
    add("--videos", type=Path, help="where the sources are; default: where they were extracted")
    add_weights(parser)
    add("--out", type=Path, help="default: RUN/probe/<data>-<split>")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.base.files import check_may_be_written
    from scav_jax.extract.backbones import parse_weights
    from scav_jax.probe.probing import ProbeSettings, probe, table, write
    from scav_jax.report import probed
    from scav_jax.retrieval.model import trained

    settings = ProbeSettings(
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
        changed=arguments.changed,
        videos=arguments.videos,
        weights=parse_weights(arguments.weights),
        trust=tuple(arguments.trust),
        batch_size=arguments.batch_size,
    )
    run = trained(arguments.run, settings.trust)
    data = arguments.data or Path(run.config["data"]["path"])
    folder = arguments.out or probed.folder(run.path, data, arguments.split)
    check_may_be_written(folder / probed.FILE)
    document = probe(run, data, arguments.split, settings)
    print(table(document))  # first: where it is written to may be full
    print("", *write(document, folder), sep="\n")
    return 0


if __name__ == "__main__":
    run_program(main)

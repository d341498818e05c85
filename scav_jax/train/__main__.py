"""`scav train --config demo --workdir runs/demo`: trains, or goes on with an interrupted run."""

import argparse
import threading
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import ConfigParser, add_processes
from scav_jax.base.errors import run_program


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ConfigParser(
        prog="scav train",
        description="Train SCAV, CAV or both on extracted features; resumes by itself.",
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, help="where the run is kept, e.g. runs/demo"
    )
    add_processes(parser)
    return parser.parse_args(argv)


def work(arguments: argparse.Namespace) -> int:
    """Trains as the command line says; the exit code."""
    from scav_jax.train.loop import train
    from scav_jax.training import config_files, processes
    from scav_jax.training.runs import AVERAGED, open_workdir
    from scav_jax.training.setup import resolved_config, set_up
    from scav_jax.training.start import weights_to_start_from

    config = config_files.load(arguments)
    processes.start(arguments)
    _silence_threads()
    if (arguments.workdir / AVERAGED).is_dir():
        setup = set_up(config)
        start = weights_to_start_from(setup, arguments.workdir)
        open_workdir(arguments.workdir, resolved_config(setup, start and start.about))
        if processes.is_first():
            print(
                f"{arguments.workdir}: training is finished; evaluate it with "
                f"`scav evaluate --run {arguments.workdir} --split test`"
            )
        return 0
    done = train(config, arguments.workdir)
    return 0 if done else processes.stopped()[1]


def main(argv: Sequence[str] | None = None) -> int:
    return work(parse(argv))


def program() -> None:
    """`main`, as one process of many where there are others."""
    arguments = parse()
    from scav_jax.training import processes

    processes.run_program(lambda: work(arguments))


def _silence_threads() -> None:
    """Orbax and its threads log what is then raised; one line is enough."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    threading.excepthook = lambda _: None


if __name__ == "__main__":
    run_program(program)

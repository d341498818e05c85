"""What the command lines of the index and of the search have in common."""

import argparse
from pathlib import Path

from scav_jax.errors import InputError
from scav_jax.extract.backbones import parse_weights
from scav_jax.model import Model, load


class Parser(argparse.ArgumentParser):
    """What is wrong with a command line is an `InputError`."""

    def error(self, message: str):
        raise InputError(f"{message}; --help says what there is")


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that say which model."""
    parser.add_argument("--model", type=Path, required=required, help="a run, or an export")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="of the model's backbone, as in clip=FOLDER; once for each of its sides with weights",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:NAME",
        help="a side of the model's backbone that is not of scav_jax, and may be imported",
    )


def load_model(arguments: argparse.Namespace) -> Model:
    """The model that the command line names."""
    weights = parse_weights(arguments.weights)
    return load(arguments.model, weights=weights, trust=arguments.trust)

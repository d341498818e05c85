"""What the command lines of the index and of the search have in common."""

import argparse
from pathlib import Path

from scav_jax.errors import InputError
from scav_jax.model import Model, load


class Parser(argparse.ArgumentParser):
    """What is wrong with a command line is an `InputError`."""

    def error(self, message: str):
        raise InputError(f"{message}; --help says what there is")


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that say which model."""
    parser.add_argument("--model", type=Path, required=required, help="a run, or an export")
    parser.add_argument("--clip-weights", help="of the backbone clip_beats")
    parser.add_argument("--beats-weights", help="of the backbone clip_beats")


def load_model(arguments: argparse.Namespace) -> Model:
    """The model that the command line names."""
    return load(
        arguments.model,
        clip_weights=arguments.clip_weights,
        beats_weights=arguments.beats_weights,
    )

"""The command line: the programs and their one parser.

Every program is `scav NAME`, which runs the module `scav_jax.NAME` as `python -m` does; of a few,
`LIES_IN` says where the module lies. Its `__main__.py` reads the command line before it imports
what the work needs: `--help` and a mistake are answered at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scav_jax.base.compiled import keep_compiled, keep_nothing
from scav_jax.base.errors import InputError, did_you_mean
from scav_jax.base.ranges import MOST_WHOLE, read_number, read_whole

PROGRAMS = {  # in the order of the work
    "datasets chimes": "render videos of struck bars: data to try everything on",
    "datasets": "lists of the clips of VGGSound and MUSIC; others' features; smaller copies",
    "extract": "videos -> features",
    "extract backbones": "released weights -> safetensors, which open at once",
    "inspect": "what is in features or videos, and what is wrong with it",
    "plan": "memory, time and disk of a training, before it runs",
    "train": "features -> a run",
    "evaluate": "a run -> retrieval metrics and a report",
    "probe": "a run -> what its features tell: labels, its tasks, changed copies",
    "sketch": "a run -> a first stage of search that knows time",
    "export": "a run -> a model as files that others can load",
    "weights": "the released weights of EquiAV and CAV-MAE -> such a model",
    "index": "an index of one's own videos: build, add, delete, compact, info, tune",
    "search": "a sound or a video -> ranked clips of an index",
    "score": "how well a sound fits a picture, and where it belongs",
    "web": "a local page to search with",
    "doctor": "what this machine has, and what is wrong with it, for a report of a fault",
}
# Where a program's module has another name.
LIES_IN = {
    "sketch": "index.first_stage",
    "weights": "export.weights",
    "doctor": "inspect.doctor",
}
NO_CACHE = "--no-compilation-cache"
USAGE = """\
--config NAME_OR_FILE[:VARIANT], for example demo, vggsound:v100_4096 or mine.py. Any key of it can
be set with --config.SECTION.KEY=VALUE, for example --config.train.steps=100; `--config FILE --help`
lists the keys of FILE. Another distance.name or objective.name brings that one's own options, at
their defaults.
"""


class Parser(argparse.ArgumentParser):
    """argparse whose every complaint is one line, an `InputError`.

    Every program and subcommand has `--no-compilation-cache`, which its namespace does not show.
    """

    also = ""  # what is said beside the options where one is unknown

    def __init__(self, **more):
        more.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **more)
        self.add_argument(
            NO_CACHE,
            action="store_true",
            default=argparse.SUPPRESS,  # or a subcommand's default would undo the program's word
            help="compile anew, and keep nothing of it in the user's cache directory",
        )

    def error(self, message: str):
        raise InputError(f"{message}; --help says what there is")

    def parse_args(  # type: ignore[override]  # argparse overloads it by the namespace's class
        self, args: Sequence[str] | None = None, namespace=None
    ) -> argparse.Namespace:
        """As argparse; an unknown option names the nearest. What is compiled later is kept,
        unless the command line says otherwise.
        """
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = _options(self)
            if os.path.lexists(unknown[0]):
                self.error(f"unknown argument {unknown[0]!r}: that file is called ./{unknown[0]}")
            near = [option for option in options if option not in ("-h", "--help")]
            hint = did_you_mean(unknown[0].split("=")[0], near) + self.also
            self.error(f"unknown argument {unknown[0]!r}.{hint} There are {', '.join(options)}")
        if getattr(arguments, "no_compilation_cache", False):
            del arguments.no_compilation_cache
            keep_nothing()
        else:
            keep_compiled()
        return arguments


def whole(word: str) -> int:
    """The `type` of an option that is a whole number."""
    try:
        return read_whole(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def number(word: str) -> float:
    """The `type` of an option that is a finite number."""
    try:
        return read_number(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an option that is a whole number of a least value."""

    def of_range(word: str) -> int:
        value = whole(word)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {value}")
        if value > MOST_WHOLE:
            raise argparse.ArgumentTypeError(f"expected at most {MOST_WHOLE}, got {value}")
        return value

    return of_range


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Every option, those of subcommands too."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += [option for below in action.choices.values() for option in _options(below)]
    return list(dict.fromkeys(found))


class ConfigParser(Parser):
    """A parser of a program that takes `--config` and `--config.SECTION.KEY=VALUE`.

    The namespace has `config`, the name as given, and `overrides`, the values by dotted key as
    text; `config_files.load` makes the config of it. Where `--config FILE --help` asks for the keys
    of a file, the namespace has `keys_wanted` and nothing of the program's own.
    """

    also = " Keys of the config are set as --config.SECTION.KEY=VALUE (--config.train.steps=100)."

    def __init__(self, **more):
        super().__init__(epilog=USAGE, **more)
        self.add_argument(
            "--config",
            required=True,
            metavar="FILE[:VARIANT]",
            help="the config, for example demo",
        )

    def parse_args(  # type: ignore[override]  # argparse overloads it by the namespace's class
        self, args: Sequence[str] | None = None, namespace=None
    ) -> argparse.Namespace:
        words, overrides = split_overrides(sys.argv[1:] if args is None else list(args))
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        finder.add_argument("--config", nargs="?")
        name = finder.parse_known_args(words)[0].config
        if name is not None and {"-h", "--help"} & set(words):
            self.print_help()
            return argparse.Namespace(config=name, overrides=overrides, keys_wanted=True)
        arguments = super().parse_args(words, namespace)
        arguments.overrides, arguments.keys_wanted = overrides, False
        return arguments


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of a command line."""
    rest, overrides = [], {}
    queue = iter(words)
    for word in queue:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(queue, "--")
            if value.startswith("--"):
                raise InputError(f"--config.{key}: expected a value, as in --config.{key}=VALUE")
        overrides[key] = value
    return rest, overrides


# ---- options that several programs have ------------------------------------------------------


def add_model(parser: argparse.ArgumentParser, *also: str) -> None:
    """The options that `model.load_as_asked` reads; `also` are other names of --model."""
    what = "a run, an export, or OWNER/NAME of the hub"
    parser.add_argument("--model", *also, type=Path, required=True, help=what)
    add_weights(parser)
    add_trust(parser)
    parser.add_argument(
        "--device",
        choices=("auto", "cpu"),
        default="auto",
        help="auto: an accelerator where there is one and what is asked for fits (the default)",
    )


def add_weights(
    parser: argparse._ActionsContainer,
    what: str = "of the model's backbone, as in clip=FOLDER; once for each of its sides with "
    "weights",
) -> None:
    """The option that `backbones.parse_weights` reads; `what` is its help."""
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=PATH", help=what)


def add_trust(parser: argparse._ActionsContainer) -> None:
    """The option that messages of `doors.check_trusted` name."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:NAME",
        help="code that a model names and that is not of scav_jax, and may be imported",
    )


def add_run_and_split(parser: argparse.ArgumentParser, run_required: bool) -> None:
    """A finished training or an export of one, and the clips that it is asked about."""
    add, what = parser.add_argument, "the --workdir of a finished training, or an export of it"
    add("--run", type=Path, required=run_required, help=what)
    add_trust(parser)
    add("--data", type=Path, help="a data set; default: the one that the run was trained on")
    add("--split", required=True, help="which of its splits, for example test")
    add("--batch-size", type=at_least(1), default=64, help="clips embedded at a time (default 64)")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The options that `processes.start` reads."""
    group = parser.add_argument_group("many processes (found by itself on SLURM, GKE, Open MPI)")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0 and a free port there; 'auto' leaves all to JAX (Cloud TPU VMs)",
    )
    group.add_argument("--num-processes", type=whole, metavar="N", help="how many take part")
    group.add_argument("--process-id", type=whole, metavar="I", help="which this is, 0 to N - 1")
    group.add_argument(
        "--coordinator-timeout-seconds",
        type=number,
        default=300.0,
        metavar="S",
        help="how long to wait until all processes have come (default: %(default)s)",
    )
    group.add_argument(
        "--heartbeat-timeout-seconds",
        type=number,
        default=60.0,
        metavar="S",
        help="after how long without a word a process is lost (default: %(default)s)",
    )

"""`scav evaluate --run RUN --data DATA --split test`: a table, metrics.json and report.html."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from reprlib import repr as short  # of words, which may be of any length

from scav_jax.base.commands import Parser, add_run_and_split, at_least, number, whole
from scav_jax.base.errors import InputError, run_program
from scav_jax.base.ranges import read_whole


def _ks(text: str) -> tuple[int, ...]:
    try:
        ks = tuple(read_whole(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas, as in 1,10,100, got {short(text)}"
        ) from None
    if min(ks) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers from 1 on, got {min(ks)}; leave it out")
    return ks


def _size(text: str) -> int:
    """A size of a gallery; 0 is all."""
    try:
        return 0 if text == "all" else at_least(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected 1 or more, or all, got {short(text)}") from None


def _add_options(add: Callable) -> None:
    """All but the run and the split."""
    add(
        "--embeddings",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.npz",
        help="embeddings of the same clips, a row each (scav_jax/evaluate/sources.py)",
    )
    add("--ids", type=Path, metavar="FILE", help="the clips of the split to use, an id a line")
    add(
        "--annotations",
        type=Path,
        metavar="FILE.csv",
        help="of VGGSounder, that `scav datasets vggsound` wrote: figures of its subsets too",
    )
    add(
        "--gallery",
        type=_size,
        nargs="+",
        default=[],
        metavar="N",
        help="also recall in galleries of N clips (or all): the mean over all subsets",
    )
    add("--save", type=Path, metavar="FILE.npz", help="writes the run's embeddings")
    add("--distance", help="ranks sequences; default: the training's (DTW for soft-DTW)")
    add("--resample", help="of the Euclidean distance: visual_to_audio or audio_to_visual")
    add("--static-weight", type=number, metavar="W", help="of the static part, where the model "
        "learned it apart; default: the run's, chosen on validation")  # fmt: skip
    add("--parts", action="store_true", help="also by the static and the dynamic part of the "
        "Euclidean distance, and by both with a deviation of their own")  # fmt: skip
    add("--baselines", action="store_true", help="also what costs nothing: onset envelopes, and "
        "linear CCA in closed form, fitted on the run's training clips")  # fmt: skip
    add("--hubness", choices=("bank", "none"), default="none", help="bank: also by distances "
        "relative to those to training clips, and what that gains (default: none)")  # fmt: skip
    add("--hybrid", type=_ks, metavar="K,K,...", help="default: 1, 10, 100, ... and all")
    add("--out", type=Path, help="default: RUN/evaluation/<data>-<split>, with the options "
        "of ranking that were given")  # fmt: skip
    add(
        "--bootstrap",
        type=at_least(0),
        default=1000,
        help="resamples; 0: no intervals (default 1000)",
    )
    add("--seed", type=whole, default=0, help="of the resampling and of the clips "
        "shown (default 0)")  # fmt: skip
    add(
        "--compare",
        nargs="+",
        default=[],
        metavar="RUN[=DATA]",
        help="more runs, beside it; DATA has the same clips in features that the run takes",
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; anything wrong with it is an `InputError`."""
    parser = Parser(
        prog="scav evaluate",
        description="Retrieval metrics of finished runs, and of embeddings that anything else has "
        "made: a table, metrics.json and report.html. Of classifiers, accuracy or mAP: a table and "
        "classification.json.",
    )
    add_run_and_split(parser, run_required=False)
    _add_options(parser.add_argument)
    arguments = parser.parse_args(argv)
    if arguments.run is not None:
        return arguments
    if not arguments.embeddings:
        raise InputError("--run: expected a run, or --embeddings, got neither")
    if arguments.data is None:
        raise InputError("--data: expected a data set with --embeddings, got none")
    for option in ("save", "compare"):
        if getattr(arguments, option):
            raise InputError(f"--{option}: expected --run with it, got none")
    return arguments


def output_folder(arguments: argparse.Namespace, split) -> Path:
    """Where the results go: a folder of its own for each data set, split and way of ranking."""
    from scav_jax.training.runs import AVERAGED

    if arguments.out is not None:
        return arguments.out
    words = [split.data.resolve().name, split.split, arguments.distance, arguments.resample]
    words += [arguments.ids and arguments.ids.stem]
    if arguments.static_weight is not None:
        words += [f"static_weight={arguments.static_weight:g}"]
    words += [name for name in ("parts", "baselines") if getattr(arguments, name)]
    words += ["hubness"] * (arguments.hubness != "none")
    name = "-".join(word for word in words if word)
    if arguments.run is None:
        return arguments.embeddings[0].with_suffix(".evaluation") / name
    if (arguments.run / AVERAGED).is_dir():
        return arguments.run / "evaluation" / name
    # An export is handed on as it is, and one of the hub lies in a cache: beside it, or here.
    beside = arguments.run if arguments.run.exists() else Path(arguments.run.name)
    if beside.name in ("", ".."):  # the working directory, or above it
        beside = beside.resolve()
    return beside.with_name(f"{beside.name}.evaluation") / name


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.base.files import check_may_be_written
    from scav_jax.datasets.vggsounder import divisions, read_annotations
    from scav_jax.evaluate import classified, sources
    from scav_jax.evaluate.evaluation import EvaluationSettings, evaluate, write
    from scav_jax.features import store
    from scav_jax.retrieval import results
    from scav_jax.retrieval.model import trained

    annotations = arguments.annotations and read_annotations(arguments.annotations)
    run = [trained(arguments.run, arguments.trust)] if arguments.run else []
    data = arguments.data or Path(run[0].config["data"]["path"])
    split = sources.chosen(store.read(data, arguments.split), arguments.ids)
    settings = EvaluationSettings(
        distance=arguments.distance,
        resample=arguments.resample,
        ks=arguments.hybrid,
        bootstrap=arguments.bootstrap,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        divisions=divisions(annotations, split.ids, split.labels) if annotations else (),
        parts=arguments.parts,
        baselines=arguments.baselines,
        static_weight=arguments.static_weight,
        galleries=tuple(arguments.gallery),
        hubness=arguments.hubness == "bank",
    )
    rows, splits = list(run), [split] * len(run)
    for text in arguments.compare:
        # A run's own name may have the sign, as `lr=0.1`.
        path, _, other = (text, "", "") if Path(text).exists() else text.partition("=")
        rows.append(trained(path, arguments.trust))
        splits.append(sources.same_clips(store.read(Path(other), split.split), split)
                      if other else split)  # fmt: skip
    rows += [sources.load(path) for path in arguments.embeddings]
    splits += [split] * len(arguments.embeddings)
    folder = output_folder(arguments, split)
    check_may_be_written(folder / "metrics.json", arguments.save)
    if any(classified.classifies(source) for source in rows):
        classified.check_options(rows, arguments)
        document = classified.evaluate(rows, splits, settings)
        print(classified.table(document))
        print(f"\n{classified.write(folder, document)}")
        return 0
    document, shown, first = evaluate(rows, splits, settings)
    print(results.table(document))  # first: where it is written to may be full
    write(folder, document, shown, first)
    if arguments.save is not None:
        sources.write(arguments.save, first.embedded, rows[0])
    print(f"\n{folder / 'metrics.json'}\n{folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_program(main)

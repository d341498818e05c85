"""`scav evaluate --run RUN --data DATA --split test`: a table, metrics.json and report.html."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser
from scav_jax.base.errors import run_program


def _ks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas, as in 1,10,100, got {text!r}"
        ) from None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; anything wrong with it is an `InputError`."""
    parser = Parser(
        prog="scav evaluate",
        description="Retrieval metrics of a finished run: a table, metrics.json and report.html.",
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="the --workdir of a finished training")
    add("--data", type=Path, help="a data set; default: the one that the run was trained on")
    add("--split", required=True, help="which of its splits, for example test")
    add("--distance", help="ranks sequences; default: the training's (DTW for soft-DTW)")
    add("--resample", help="of the Euclidean distance: visual_to_audio or audio_to_visual")
    add("--hybrid", type=_ks, metavar="K,K,...", help="default: 1, 10, 100, ... and all")
    add("--out", type=Path, help="default: RUN/evaluation/<data>-<split>")
    add("--bootstrap", type=int, default=1000, help="resamples; 0: no intervals (default 1000)")
    add("--seed", type=int, default=0, help="of the resampling and of the clips shown")
    add("--batch-size", type=int, default=64, help="clips embedded at a time (default 64)")
    add("--compare", type=Path, nargs="+", default=[], metavar="RUN", help="more runs, beside it")
    return parser.parse_args(argv)


def output_folder(arguments: argparse.Namespace, split) -> Path:
    """Where the results go: a folder of its own for each data set, split and other distance."""
    if arguments.out is not None:
        return arguments.out
    words = [split.data.resolve().name, split.split, arguments.distance, arguments.resample]
    return arguments.run / "evaluation" / "-".join(word for word in words if word)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.evaluate.evaluation import Settings, evaluate, write
    from scav_jax.features import store
    from scav_jax.retrieval import results
    from scav_jax.training.runs import load_run

    settings = Settings(
        distance=arguments.distance,
        resample=arguments.resample,
        ks=arguments.hybrid,
        bootstrap=arguments.bootstrap,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    runs = [load_run(path) for path in (arguments.run, *arguments.compare)]
    data = arguments.data or Path(runs[0].config["data"]["path"])
    split = store.read(data, arguments.split)
    folder = output_folder(arguments, split)
    document, shown = evaluate(runs, split, settings)
    write(folder, document, shown)
    print(results.table(document))
    print(f"\n{folder / 'metrics.json'}\n{folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_program(main)

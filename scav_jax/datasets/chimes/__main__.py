"""`scav datasets chimes --preset demo --out VIDEOS`: renders the data set."""

from collections import Counter

from scav_jax.base.commands import Parser, at_least, whole
from scav_jax.base.errors import run_program
from scav_jax.datasets.chimes.presets import PRESETS, clips, override, preset
from scav_jax.datasets.chimes.rendering import render


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, renders, and says where the clips are."""
    parser = Parser(
        prog="scav datasets chimes",
        description="Renders the chimes videos: instruments struck by mallets, seen and heard.",
    )
    parser.add_argument(
        "--preset", default="demo", help=f"one of {', '.join(PRESETS)} (default demo)"
    )
    parser.add_argument("--out", required=True, help="the folder for the videos and clips.csv")
    parser.add_argument("--seed", type=whole, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--workers", type=at_least(1), help="processes (default: one a core)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="NAME=VALUE",
        help="a parameter, as flash=0.3; repeat it for more (presets.py lists and explains them)",
    )
    options = parser.parse_args(arguments)
    path = render(
        options.out,
        preset=options.preset,
        seed=options.seed,
        workers=options.workers,
        overrides=options.overrides,
    )
    rows = clips(override(preset(options.preset), options.overrides))
    counts = Counter(row["split"] for row in rows)
    print(f"{path}: {', '.join(f'{count} clips in {split}' for split, count in counts.items())}")
    return 0


if __name__ == "__main__":
    run_program(main)

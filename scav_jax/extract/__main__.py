"""`python -m scav_jax.extract --videos DIR --out DATA`: a folder of videos -> a data set."""

import argparse
from pathlib import Path

from scav_jax.errors import InputError, run_program

EPILOG = """\
The same command goes on where a killed one stopped. What cannot be used is listed with its reason
in DATA/rejected.csv. A CSV has the columns file,start,end,id,label,split (all but file may be left
out); without --clips, clips.csv in the folder of videos is taken if it is there.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    from scav_jax.extract.backbones import BACKBONES

    parser = argparse.ArgumentParser(
        prog="python -m scav_jax.extract", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--videos", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--out", type=Path, required=True, help="the data set to write")
    parser.add_argument("--clips", type=Path, help="a CSV of clips instead of the whole folder")
    parser.add_argument(
        "--clip-seconds", type=float, help="cut whole videos into clips of this length"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="NAME=SHARE",
        help="cut the files into splits, as in: --split train=0.8 validation=0.1 test=0.1",
    )
    parser.add_argument("--backbone", default="plain", help=f"one of {', '.join(BACKBONES)}")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    parser.add_argument(
        "--timeout-seconds", type=float, default=300.0, help="limit for one clip (default: 300)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    for name in ("workers", "timeout_seconds"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise InputError(f"--{name.replace('_', '-')}: expected more than 0, got {value:g}")
    from scav_jax.extract.manifest import parse_shares
    from scav_jax.extract.program import extract

    extract(
        options.videos,
        options.out,
        clips=options.clips,
        clip_seconds=options.clip_seconds,
        shares=parse_shares(options.split) if options.split else None,
        backbone=options.backbone,
        workers=options.workers,
        timeout_s=options.timeout_seconds,
    )


if __name__ == "__main__":
    run_program(main)

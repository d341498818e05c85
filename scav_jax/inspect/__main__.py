"""`scav inspect DATA` or `--videos DIR`: what is in it, and what is wrong with it."""

import argparse
from pathlib import Path

from scav_jax.base.commands import Parser, at_least, number
from scav_jax.base.errors import InputError, run_program

EPILOG = """\
Counts by split and label, lengths, frame rates, what is silent, still, too short or damaged,
duplicates and near-duplicates within and across splits, sources that several splits share,
and disk use.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="scav inspect", description=__doc__, epilog=EPILOG)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA", help="a data set of features")
    parser.add_argument("--videos", type=Path, help="a folder of videos instead")
    parser.add_argument("--clips", type=Path, help="with --videos: a CSV of clips")
    parser.add_argument("--clip-seconds", type=number, help="with --videos: cut whole videos")
    parser.add_argument("--workers", type=at_least(1), help="with --videos: processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes everything as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="writes a page to look at")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if (options.data is None) == (options.videos is None):
        raise InputError("expected a data set or --videos FOLDER, one of the two")
    for_videos = (options.clips, options.clip_seconds, options.workers)
    if options.data is not None and any(option is not None for option in for_videos):
        raise InputError("--clips, --clip-seconds and --workers: expected with --videos only")
    from scav_jax.base.files import check_may_be_written, write_atomically, write_json

    check_may_be_written(options.json, options.html)
    found = _inspect(options)
    from scav_jax.inspect import page

    print(page.text(found))
    if options.json:
        write_json(options.json, found)
    if options.html:
        write_atomically(options.html, page.html(found))


def _inspect(options: argparse.Namespace) -> dict:
    if options.data is not None:
        from scav_jax.inspect.features import inspect_features

        return inspect_features(options.data)
    from scav_jax.extract.pool import cores
    from scav_jax.inspect.videos import inspect_videos

    return inspect_videos(
        options.videos,
        clips=options.clips,
        clip_seconds=options.clip_seconds,
        workers=options.workers or cores(),
    )


if __name__ == "__main__":
    run_program(main)

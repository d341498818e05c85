"""`scav extract --videos DIR --out DATA`: a folder of videos -> a data set."""

import argparse
from pathlib import Path
from typing import Any

from scav_jax.base.commands import Parser, add_weights, at_least, number, whole
from scav_jax.base.errors import InputError, check_one_of, run_program
from scav_jax.base.ranges import ABOVE_0, WAIT, check_range

EPILOG = """\
The same command goes on where a killed one stopped. What cannot be used is listed with its reason
in DATA/rejected.csv. A CSV has the columns file,start,end,id,label,split (all but file may be left
out); without --clips, clips.csv in the folder of videos is taken if it is there.

The paper's features:
  scav extract --videos DIR --out DATA --backbone clip_beats \\
      --weights clip=openai/clip-vit-base-patch32 \\
      --weights beats=BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt

Other pairs, and frames by a class of one's own (see scav_jax/extract/backbones/sides.py):
  ... --visual plain --audio beats --weights beats=FILE
  ... --visual my_package.dino:Dino --audio plain --weights my_package.dino:Dino=FILE

Frames and log-mel as they are, for towers that are trained from pixels on (EquiAV):
  ... --backbone pixels --frames 10 --side 224

Many machines: each runs a part, on a file system that all see, and one of them joins the parts.
  scav extract ... --num-shards 8 --shard-index 3      # and 0, 1, 2, 4, 5, 6, 7
  scav extract --videos DIR --out DATA --num-shards 8 --merge
As a SLURM array (scripts/slurm_extract.sh):
  sbatch --array=0-7 scripts/slurm_extract.sh

`scav extract --selfcheck` compares this machine's decoders, resizing and models with
values that were stored with the program: before a hundred hours of extraction, and after updates.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="scav extract", description=__doc__, epilog=EPILOG)
    parser.add_argument("--videos", type=Path, help="a folder of videos")
    parser.add_argument("--out", type=Path, help="the data set to write")
    parser.add_argument("--clips", type=Path, help="a CSV of clips instead of the whole folder")
    parser.add_argument(
        "--clip-seconds", type=number, help="cut whole videos into clips of this length"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="NAME=SHARE",
        help="cut the files into splits, as in: --split train=0.8 validation=0.1 test=0.1",
    )
    parser.add_argument(
        "--split-by",
        default="file",
        metavar="WHAT",
        help="what must not be in two splits: file, folder, or a column of --clips (default: file)",
    )
    _add_models(parser.add_argument_group("models"))
    _add_work(parser.add_argument_group("work"))
    return parser.parse_args(arguments)


def _add_models(models: argparse._ArgumentGroup) -> None:
    from scav_jax.extract.backbones import AUDIO, PAIRS, VISUAL

    models.add_argument("--backbone", help=f"a pair: {', '.join(PAIRS)} (default: plain)")
    for stream, known in (("visual", VISUAL), ("audio", AUDIO)):
        models.add_argument(
            f"--{stream}",
            help=f"a side: {', '.join(known)} or package.module:Class; 'none' leaves it out",
        )
    add_weights(
        models,
        "clip=FOLDER (config.json, safetensors) or a hub id, beats=FILE (.pt, .safetensors)",
    )
    models.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="dtype=bfloat16, output=projected (of clip: to compare frames with text); audio.dtype "
        "or visual.dtype for that side only",
    )
    for name, what in (("frames", "a clip"), ("side", "pixels along an edge")):
        models.add_argument(
            f"--{name}", type=whole, metavar="N", help=f"of pixels: {what}, as --option {name}=N"
        )


def _add_work(work: argparse._ArgumentGroup) -> None:
    from scav_jax.extract.program import ENGINES

    work.add_argument(
        "--workers", type=at_least(1), help="decoding processes (default: one a core)"
    )
    work.add_argument(
        "--timeout-seconds", type=number, default=300.0, help="limit for one clip (default: 300)"
    )
    work.add_argument("--num-shards", type=whole, metavar="N", help="in how many parts")
    work.add_argument("--shard-index", type=whole, metavar="I", help="which of them, from 0")
    work.add_argument("--merge", action="store_true", help="write the data set of finished shards")
    work.add_argument(
        "--engine", default="local", help=f"one of {', '.join(ENGINES)} (default local)"
    )
    work.add_argument(
        "--selfcheck", action="store_true", help="compare with stored values; no more"
    )


def check(options: argparse.Namespace) -> None:
    """Raises `InputError` for options that do not make sense, alone or together."""
    from scav_jax.extract.program import ENGINES

    for name in ("videos", "out"):
        if getattr(options, name) is None:
            raise InputError(f"--{name}: expected a folder, got none; see --help")
    check_range("--timeout-seconds", options.timeout_seconds, WAIT)
    check_range("--num-shards", options.num_shards, ABOVE_0)
    check_one_of("--engine", options.engine, ENGINES)
    if options.merge and options.shard_index is not None:
        raise InputError("--merge: expected no --shard-index, got one; merge joins all shards")
    both = options.merge or options.shard_index is not None
    if both != (options.num_shards is not None):
        raise InputError(
            "--num-shards: expected together with --shard-index (one part) or --merge (all), got "
            f"{'one' if options.num_shards is not None else 'neither'} without the other"
        )
    if options.backbone and (options.visual or options.audio):
        raise InputError("--backbone: expected no --visual and no --audio beside it, got some")
    if "none" in (options.visual, options.audio):  # then the other one may go without saying
        options.visual, options.audio = options.visual or "plain", options.audio or "plain"
    if bool(options.visual) != bool(options.audio):
        raise InputError("--visual, --audio: expected both, got one; 'none' leaves a stream out")


def load_backbone(options: argparse.Namespace) -> Any:
    """The `Backbone` that the command line names."""
    from scav_jax.extract import backbones

    both = {"visual": options.visual, "audio": options.audio} if options.visual else {}
    return backbones.load(
        "" if both else options.backbone or "plain",
        **both,
        weights=backbones.parse_weights(options.weights),
        options=_side_options(options),
    )


def _side_options(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    from scav_jax.extract import backbones

    found = backbones.parse_options(options.option)
    given = {name: getattr(options, name) for name in ("frames", "side")}
    given = {name: value for name, value in given.items() if value is not None}
    return found | {"visual": found.get("visual", {}) | given} if given else found


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.selfcheck:
        from scav_jax.extract.selfcheck import selfcheck

        return 0 if selfcheck() else 1
    check(options)
    from scav_jax.extract import program
    from scav_jax.extract.manifest import ClipOptions, parse_shares
    from scav_jax.extract.shards import Shard

    shares = parse_shares(options.split) if options.split else None
    wanted = ClipOptions(
        options.clips,
        options.clip_seconds,
        shares,
        options.split_by,
        sounds=options.visual == "none",
    )
    if options.merge:
        program.merge(options.videos, options.out, wanted, count=options.num_shards)
        return 0
    shard = None
    if options.num_shards is not None:
        shard = Shard(options.shard_index, options.num_shards)
    if not options.videos.is_dir():  # before minutes of loading
        raise InputError(f"--videos: expected a folder of videos, {options.videos} is not one")
    program.extract(
        options.videos,
        options.out,
        wanted,
        backbone=load_backbone(options),
        workers=options.workers,
        timeout_s=options.timeout_seconds,
        shard=shard,
        engine=options.engine,
    )
    return 0


if __name__ == "__main__":
    run_program(main)

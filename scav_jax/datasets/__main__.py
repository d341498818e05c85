"""`scav datasets vggsound|music|import|resample`: lists of clips, others' features, smaller copies.

vggsound, music   a published list and a folder -> the list that `scav extract --clips` takes
import            features that others have extracted -> a data set of features
resample          features on disk -> a copy whose visual steps lie at the audio steps
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser, at_least
from scav_jax.base.containers import declared_seconds
from scav_jax.base.errors import InputError, number_of, run_program
from scav_jax.base.files import check_may_be_written, ids_sha256
from scav_jax.base.names import shown
from scav_jax.datasets import clip_lists, music, sizes, vggsound, vggsounder
from scav_jax.datasets.clip_lists import Listed, Located

VGGSOUND_DATA = "data/vggsound"  # and these weights: what configs/vggsound.py trains on
BEATS_FILE = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    rendered = "Videos that are rendered instead: scav datasets chimes --help"
    parser = Parser(prog="scav datasets", description=__doc__, epilog=rendered)
    programs = parser.add_subparsers(required=True, metavar="vggsound|music|import|resample")

    def program(name: str, words: str) -> argparse.ArgumentParser:
        return programs.add_parser(name, help=words, description=words)

    one = program("vggsound", "VGGSound from its lists and a folder of clips")
    one.add_argument(
        "lists", nargs="+", metavar="LIST", help="vggsound.csv, or train=LIST test=LIST"
    )
    _list_options(one, vggsound.VALIDATION_CLIPS, "clips", "ID_START.mp4")
    one.add_argument(
        "--vggsounder",
        type=Path,
        metavar="CSV",
        help="its annotations, vggsounder.csv: annotations.csv is written beside clips.csv",
    )
    one.set_defaults(program=build_vggsound)
    one = program("music", "MUSIC or MUSIC21-solo from its list and a folder")
    one.add_argument("list", type=Path, metavar="LIST", help="MUSIC21_solo_videos.json")
    _list_options(one, music.VALIDATION_VIDEOS, "videos", "ID.mp4")
    one.add_argument(
        "--test",
        type=at_least(0),
        default=music.TEST_VIDEOS,
        help="videos to test on (default %(default)s)",
    )
    one.set_defaults(program=build_music)
    one = program("import", "others' features, by a manifest (CSV)")
    one.add_argument("manifest", type=Path, metavar="MANIFEST", help="see docs/data.md")
    one.add_argument("--out", type=Path, required=True, help="the data set to write")
    one.add_argument("--name", required=True, help="what made the features, as in vggish+dino")
    one.add_argument("--sources", default="", help="the folder that sources are relative to")
    one.set_defaults(program=import_features)
    one = program("resample", "a copy with the visual steps at the audio steps")
    one.add_argument("data", type=Path, metavar="DATA", help="a data set of features")
    one.add_argument("--out", type=Path, required=True, help="the copy")
    which = "what is resampled to the steps of what (the default, and all there is)"
    one.add_argument(
        "--resample", choices=["visual_to_audio"], default="visual_to_audio", help=which
    )
    aligned = "by their seconds (the default) or by their numbers, as data.align says in training"
    one.add_argument("--align", choices=["time", "index"], default="time", help=aligned)
    one.set_defaults(program=resample)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.program(options)


def _list_options(parser: argparse.ArgumentParser, validation: int, unit: str, name: str) -> None:
    parser.add_argument(
        "--videos",
        type=Path,
        required=True,
        help=f"the folder with the files, called {name} or by another ending, at any depth",
    )
    parser.add_argument("--out", type=Path, required=True, help="the list of clips to write")
    parser.add_argument(
        "--validation",
        type=at_least(0),
        default=validation,
        help=f"{unit} to hold out of train (default %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written only")


def build_vggsound(options: argparse.Namespace) -> None:
    listed, repeated = vggsound.read_lists(options.lists)
    wanted = vggsound.hold_out(listed, options.validation)
    sources = [vggsound.split_and_path(word)[1] for word in options.lists]
    others = ("missing", "annotations") if options.vggsounder else ("missing",)
    _check_out(options, [*sources, options.vggsounder or sources[0]], others)
    annotations = options.vggsounder and vggsounder.read_vggsounder(options.vggsounder)
    files, unfit = clip_lists.video_files(options.videos)
    located = clip_lists.locate(wanted, files, vggsound.key_of)
    seconds = {name: float(vggsound.CLIP_SECONDS) for name in located.files}
    print(f"VGGSound: {_described(wanted, 'clips')}")
    if repeated:
        print(f"{repeated:,} rows of the list repeat another to the letter")
    shared = vggsound.shared_videos(wanted)
    if shared:
        print(f"{shared:,} videos have clips in train and in test of the list itself")
    _say_drawn(wanted, "validation", vggsound.VALIDATION_SEED)
    _say_table(wanted, located, seconds, unfit)
    print("\n".join(sizes.prediction(len(located.files), vggsound.CLIP_SECONDS)))
    if options.dry_run:
        return
    clip_lists.write_clip_list(options.out, wanted, located)
    _say_written(options.out, wanted, located)
    if annotations:
        path = clip_lists.beside(options.out, "annotations")
        ids = [clip.id for clip in wanted]
        known, others = vggsounder.write_annotations(path, annotations, ids)
        print(f"{path}: {known:,} clips annotated ({others:,} annotated clips are not in the list)")
    print(
        f"next: {_extract(options, VGGSOUND_DATA)} --backbone clip_beats "
        f"--weights clip=openai/clip-vit-base-patch32 --weights beats={BEATS_FILE}\n"
        f"then: scav train --config vggsound --workdir RUN"
    )


def build_music(options: argparse.Namespace) -> None:
    wanted = music.partition(music.read_list(options.list), options.test, options.validation)
    _check_out(options, [options.list], ("missing",))
    files, unfit = clip_lists.video_files(options.videos)
    located = clip_lists.locate(wanted, files, lambda stem: stem)
    seconds = {
        name: declared_seconds(options.videos / file) for name, file in located.files.items()
    }
    print(f"MUSIC: {_described(wanted, 'videos')}; {music.describe_list(wanted)}")
    for split in ("test", "validation"):
        _say_drawn(wanted, split, music.PARTITION_SEED)
    _say_table(wanted, located, seconds, unfit)
    length = music.CLIP_SECONDS
    clips = sum(max(1, int((s + 0.1) // length)) for s in seconds.values() if s)
    print("\n".join(sizes.prediction(clips, length)))
    unknown = sum(s is None for s in seconds.values())
    if unknown:
        print(f"(without {unknown:,} files that do not say how long they are)")
    if options.dry_run:
        return
    clip_lists.write_clip_list(options.out, wanted, located)
    _say_written(options.out, wanted, located)
    print(f"next: {_extract(options)} --clip-seconds {length}")


def import_features(options: argparse.Namespace) -> None:
    from scav_jax.datasets.imported import read_manifest
    from scav_jax.features import store

    if not options.name.strip():
        raise InputError("--name: expected what made the features, as in vggish+dino, got none")
    imported = read_manifest(options.manifest)
    store.write(
        imported.clips(),
        options.out,
        fingerprint=imported.fingerprint(options.name),
        videos=options.sources,
        rejected=imported.rejected,
        name="imported",
        manifest=imported.sha256,
    )
    counts = store.splits(options.out)
    print(f"{options.out}: {store.splits_in_words(options.out)} of {options.name}")
    if imported.rejected:
        first = imported.rejected[0]
        print(
            f"{len(imported.rejected):,} could not be used, see {options.out}/rejected.csv; the "
            f"first: {shown(first['id'])}: {shown(first['reason'])}"
        )
    print(_next_of_imported(options.out, imported.streams, counts))


def _next_of_imported(out: Path, streams: Sequence[str], counts: dict[str, int]) -> str:
    """What such a data set is good for."""
    if len(streams) < 2:
        return (
            f"its clips have {streams[0]} features only: scav inspect {out} shows them; to train "
            "and to evaluate, name the visual and the audio array of each clip in the manifest"
        )
    lacking = [split for split in ("train", "validation") if split not in counts]
    if lacking:
        return (
            f"to train on it, name the clips of {' and '.join(lacking)} in the manifest's column "
            f"split; to evaluate: scav evaluate --run RUN --data {out} --split {next(iter(counts))}"
        )
    return f"next: scav train --config demo --config.data.path={out} --workdir RUN"


def resample(options: argparse.Namespace) -> None:
    from scav_jax.features.resampled import write_resampled

    write_resampled(options.data, options.out, align=options.align)
    before, after = (
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in (options.data, options.out)
    )
    print(
        f"{options.out}: {after / 1e9:.3g} GB, {before / after:.2f} times smaller than "
        f"{options.data}; train on it with encoders.pre_resample 'visual_to_audio' and "
        f"data.align {options.align!r}"
    )


def _check_out(options: argparse.Namespace, lists: Sequence[Path], others: Sequence[str]) -> None:
    """The list of clips may be written, and it is none of those that are read."""
    out = options.out
    if out.suffix != ".csv" or out.is_dir():
        raise InputError(f"--out: expected a CSV file to write, as in clips.csv, got {out}")
    sources = {path.resolve() for path in lists}
    for written in (out, *(clip_lists.beside(out, what) for what in others)):
        if written.resolve() in sources:
            raise InputError(
                f"--out: expected another file than the list itself, it would write over {written}"
            )
    if not options.dry_run:
        check_may_be_written(out)


# ---- what is said -----------------------------------------------------------------------------


def _described(wanted: Sequence[Listed], unit: str) -> str:
    videos = len({clip.video for clip in wanted})
    of = f" of {videos:,} videos" if unit == "clips" else ""
    return f"{len(wanted):,} {unit}{of} in {len({clip.label for clip in wanted}):,} classes"


def _say_drawn(wanted: Sequence[Listed], split: str, seed: str) -> None:
    ids = [clip.id for clip in wanted if clip.split == split]
    if ids:
        print(
            f"{split}: {len(ids):,} drawn from the list with the seed {seed!r}, sha256 of the ids "
            f"{ids_sha256(ids)}"
        )


def _say_table(
    wanted: Sequence[Listed],
    located: Located,
    seconds: dict[str, float | None],
    unfit: Sequence[str],
) -> None:
    """Listed, there, missing and hours of each split."""
    print(f"{'split':<12}{'listed':>10}{'on disk':>10}{'missing':>10}{'hours':>10}")
    for split in (*clip_lists.SPLITS, "all"):
        ids = [clip.id for clip in wanted if split in (clip.split, "all")]
        there = [name for name in ids if name in located.files]
        hours = sum(seconds[name] or 0.0 for name in there) / 3600
        figures = f"{len(ids):>10,}{len(there):>10,}{len(ids) - len(there):>10,}{hours:>10,.1f}"
        print(f"{split:<12}{figures}")
    if located.repeated:
        print(f"{located.repeated:,} are there more than once: the file named as usual was taken")
    if located.other:
        print(f"video files that are not in the list, passed over: {located.other:,}")
    if unfit:
        print(f"passed over {clip_lists.unfit_in_words(unfit)}")


def _say_written(out: Path, wanted: Sequence[Listed], located: Located) -> None:
    missing = len(wanted) - len(located.files)
    print(f"{out}: {number_of(len(located.files), 'clip')}")
    print(f"{clip_lists.beside(out, 'missing')}: {missing:,} of the list are not on disk")


def _extract(options: argparse.Namespace, data: str = "DATA") -> str:
    videos, out = (shlex.quote(str(path)) for path in (options.videos, options.out))
    return f"scav extract --videos {videos} --clips {out} --out {data}"


if __name__ == "__main__":
    run_program(main)

"""What the subcommands of `scav index` do."""

import argparse
import json
import sys
from collections.abc import Container, Iterator

import numpy as np

from scav_jax import datasets
from scav_jax.embed import Embedded, embed
from scav_jax.errors import InputError
from scav_jax.files import write_json
from scav_jax.index import tune as tuning
from scav_jax.index.layout import read_header
from scav_jax.index.store import Index, create, open_index
from scav_jax.model import Model, load_as_asked
from scav_jax.progress import progress_bar

CLIPS_AT_ONCE = 1024  # of features on disk: their latents are in memory together


def split_of(arguments: argparse.Namespace) -> datasets.Split | None:
    """The features on disk that the command line names; None where it names videos."""
    if (arguments.data is None) == (arguments.videos is None):
        raise InputError("expected --videos FOLDER or --data DATA --split SPLIT, one of them")
    if arguments.data is None:
        return None
    if arguments.split is None:
        raise InputError("--data: expected --split too, for example --split test")
    return datasets.read(arguments.data, arguments.split)


def parts(
    arguments: argparse.Namespace, model: Model, done: Container[str] = ()
) -> Iterator[Embedded]:
    """The clips that the command line names, embedded, some at a time; ids in `done` are left."""
    split = split_of(arguments)
    if split is not None:
        yield from _of_split(split, model, done)
        return
    videos = arguments.videos[0] if len(arguments.videos) == 1 else arguments.videos
    for part in model.stream(
        videos,
        clip_seconds=arguments.clip_seconds,
        workers=arguments.workers,
        streams=("visual", "audio"),
    ):
        for row in part.rejected:
            print(f"rejected {row['file']}: {row['reason']}", file=sys.stderr)
        if len(part.ids):
            yield part


def _of_split(split: datasets.Split, model: Model, done: Container[str]) -> Iterator[Embedded]:
    left = np.array([number for number, name in enumerate(split.ids) if name not in done], int)
    with progress_bar(f"embed {split.split}", len(left), "clip") as bar:
        for first in range(0, len(left), CLIPS_AT_ONCE):
            some = split.take(left[first : first + CLIPS_AT_ONCE])
            yield embed(model.run, some)
            bar.update(len(some))


def _grow(index: Index, clips: Iterator[Embedded], on_duplicate: str) -> int:
    """Adds what comes, a commit for each part."""
    count = 0
    for part in clips:
        count += index.add(part, on_duplicate)
        print(f"{len(index):,} clips in {index.path}", file=sys.stderr)
    return count


def build(arguments: argparse.Namespace) -> int:
    model = load_as_asked(arguments)
    if (arguments.index / "index.json").exists():
        header = read_header(arguments.index)
        if header.storage != arguments.storage:
            raise InputError(
                f"{arguments.index}: expected storage {header.storage}, as it was begun, got "
                f"{arguments.storage}; remove the index to build it anew"
            )
        index = open_index(arguments.index, model.identity)
    else:
        index = create(
            arguments.index,
            identity=model.identity,
            distance=model.distance,
            storage=arguments.storage,
        )
    count = _grow(index, parts(arguments, model, set(index.ids())), "skip")
    print(f"{arguments.index}: {count:,} clips added, {len(index):,} in all")
    return 0


def add(arguments: argparse.Namespace) -> int:
    model = load_as_asked(arguments)
    index = open_index(arguments.index, model.identity)
    split = split_of(arguments)
    if split is not None and not arguments.replace:
        index.check_new(split.ids)  # before any part of it is added
    count = _grow(index, parts(arguments, model), "replace" if arguments.replace else "refuse")
    print(f"{arguments.index}: {count:,} clips added, {len(index):,} in all")
    return 0


def delete(arguments: argparse.Namespace) -> int:
    index = open_index(arguments.index)
    count = index.delete(arguments.ids)
    print(f"{arguments.index}: {count:,} clips deleted, {len(index):,} left")
    return 0


def compact(arguments: argparse.Namespace) -> int:
    done = open_index(arguments.index).compact()
    print(
        f"{arguments.index}: {done['bytes_before']:,} -> {done['bytes_after']:,} bytes, "
        f"{len(done['swept'])} segments removed"
    )
    return 0


def info(arguments: argparse.Namespace) -> int:
    index = open_index(arguments.index)
    about = index.info()
    if arguments.verify:
        about["verified"] = index.verify()
    if arguments.json:
        print(json.dumps(about, indent=2))
        return 0
    for name, value in about.items():
        print(f"{name:16} {value:,}" if isinstance(value, int) else f"{name:16} {value}")
    return 0


def tune(arguments: argparse.Namespace) -> int:
    model = load_as_asked(arguments)
    index = open_index(arguments.index, model.identity)
    queries = _sampled(arguments, model)
    found = tuning.tune(index, queries, arguments.direction, k=arguments.k)
    if arguments.out is not None:
        write_json(arguments.out, found)
    print(tuning.table(found))
    return 0


def _sampled(arguments: argparse.Namespace, model: Model) -> Embedded:
    """Some clips at random; of features on disk, no others are embedded."""
    split = split_of(arguments)
    if split is None:
        return tuning.sample(next(parts(arguments, model)), arguments.queries)
    numbers = tuning.chosen(len(split), arguments.queries)
    return embed(model.run, split.take(numbers), progress=True)


COMMANDS = {
    "build": build,
    "add": add,
    "delete": delete,
    "compact": compact,
    "info": info,
    "tune": tune,
}

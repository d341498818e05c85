"""What the subcommands of `scav index` do."""

import argparse
import contextlib
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace

import numpy as np

from scav_jax.base.errors import InputError, counted_reasons, number_of
from scav_jax.base.files import check_may_be_written, write_json
from scav_jax.base.names import shown
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.index.catalog import WHOLE, Header, read_header
from scav_jax.index.store import Index, create, open_index
from scav_jax.index.transfer import export_index, import_index
from scav_jax.index.writing import SEGMENT_BYTES
from scav_jax.retrieval.embed import Embedded, join
from scav_jax.retrieval.files import CLIPS_AT_ONCE as PART
from scav_jax.retrieval.files import (
    Wanted,
    below,
    by_streams,
    check_times,
    joined,
    requests_for,
)
from scav_jax.retrieval.hubness import bank_of, caution
from scav_jax.retrieval.model import Model, load_as_asked
from scav_jax.sequences import STREAMS

CLIPS_AT_ONCE = 1024  # of features on disk: their latents are in memory together
COMMIT_SECONDS = 60.0  # of work that a kill may lose
MANY_SEGMENTS = 64  # small ones: opening and searching takes milliseconds for each
LOOKED_AT = 100  # clips whose files a move expects in their new place
WANTED = 0.99  # recall that a proposed k has


def split_of(arguments: argparse.Namespace) -> store.Split | None:
    """The features on disk that the command line names; None where it names videos."""
    if (arguments.data is None) == (arguments.videos is None):
        raise InputError("expected --videos FOLDER or --data DATA --split SPLIT, one of them")
    if arguments.data is None:
        return None
    if arguments.split is None:
        raise InputError("--data: expected --split too, for example --split test")
    return store.read(arguments.data, arguments.split)


@dataclass(frozen=True)
class ClipsToIndex:
    """The clips that the command line names, and where they belong in an index.

    Attributes:
      ids: of the clips, below the root.
      files: id -> the file and where the clip begins in it; of videos only.
      parts: embeds all but some, a part at a time.
    """

    ids: list[str]
    files: dict[str, tuple[str, float]]
    parts: Callable[[Container[str]], Iterator[Embedded]]


def root_of(arguments: argparse.Namespace, split: store.Split | None) -> str | None:
    """The root of an index that begins with these clips: what they have in common."""
    if arguments.root is not None:
        return os.path.abspath(arguments.root)
    if split is not None:
        return os.path.abspath(split.videos) if split.videos else None
    videos = [os.path.abspath(path) for path in arguments.videos]
    if len(videos) == 1 and os.path.isdir(videos[0]):
        return videos[0]
    return os.path.commonpath([os.path.dirname(path) for path in videos])


def clips_to_index(
    arguments: argparse.Namespace, model: Model, split: store.Split | None, root: str | None
) -> ClipsToIndex:
    """What is to be added, with ids below the root of the index."""
    if split is not None:
        way = below(split.videos, root) if root and split.videos else "."
        ids = [joined(way, name) for name in split.ids]
        return ClipsToIndex(ids, {}, functools.partial(_of_split, split, ids, model))
    check_times(0.0, None, arguments.clip_seconds)
    _ = model.backbone  # another extractor is refused before anything is written
    cut = arguments.clip_seconds, 0.0, None
    wanted = requests_for(arguments.videos, *cut, STREAMS, root, sounds=True)
    if wanted.passed_over:
        print(shown(wanted.passed_over), file=sys.stderr)
    paths = {one.id: (wanted.folder / one.file).absolute() for one in wanted.requests}
    files = {one.id: (str(paths[one.id]), one.start) for one in wanted.requests}
    return ClipsToIndex(list(files), files, functools.partial(_of_videos, arguments, wanted, model))


def _of_videos(
    arguments: argparse.Namespace, wanted: Wanted, model: Model, done: Container[str]
) -> Iterator[Embedded]:
    todo = wanted._replace(requests=[one for one in wanted.requests if one.id not in done])
    groups, count = by_streams(todo), len(todo.requests) + len(todo.rejected)
    rejected: list[dict] = []
    with progress_bar("embed", count, "clip", shown=count > PART) as bar:
        for alike in groups:
            for part in model.embed_requests(
                alike.requests,
                alike.folder,
                streams=alike.streams,
                workers=arguments.workers,
                rejected=alike.rejected,
            ):
                for row in part.rejected:
                    rejected.append(row)
                    bar.write(shown(f"rejected {row['file']}: {row['reason']}"), file=sys.stderr)
                bar.update(len(part) + len(part.rejected))
                if len(part.ids):
                    yield part
    if rejected:
        told = f"rejected {len(rejected):,}: {counted_reasons(rejected)}"
        print(shown(told), file=sys.stderr)


def _of_split(
    split: store.Split, ids: list[str], model: Model, done: Container[str]
) -> Iterator[Embedded]:
    left = np.array([number for number, name in enumerate(ids) if name not in done], int)
    with progress_bar(f"embed {split.split}", len(left), "clip") as bar:
        for first in range(0, len(left), CLIPS_AT_ONCE):
            some = left[first : first + CLIPS_AT_ONCE]
            yield replace(model.embed_split(split.take(some)), ids=[ids[one] for one in some])
            bar.update(len(some))


def _grow(index: Index, clips: Iterator[Embedded], on_duplicate: str) -> int:
    """Adds what comes, some parts in a commit."""
    count = 0
    with contextlib.closing(clips):  # a bar of theirs ends before an error is said
        for part in _gathered(clips):
            count += index.add(part, on_duplicate)
            print(f"{number_of(len(index), 'clip')} in {index.path}", file=sys.stderr)
    return count


def _gathered(parts: Iterator[Embedded]) -> Iterator[Embedded]:
    """Small parts together: each commit leaves segments, all of which later ones look at.

    What is held goes in before an error is said or an interrupted program ends, and after
    `COMMIT_SECONDS` at the latest.
    """
    held: list[Embedded] = []
    begin = time.monotonic()
    try:
        for part in parts:
            if held and held[0].streams != part.streams:
                yield _together(held)
            held.append(part)
            late = time.monotonic() - begin > COMMIT_SECONDS
            if late or sum(map(len, held)) >= CLIPS_AT_ONCE:
                yield _together(held)
                begin = time.monotonic()
    except (Exception, KeyboardInterrupt):
        if held:
            yield _together(held)
        raise
    if held:
        yield _together(held)


def _together(held: list[Embedded]) -> Embedded:
    """The parts as one; none are held then."""
    found = held[0] if len(held) == 1 else join(held)
    held.clear()
    return found


def _index_for(
    index: Index | None, arguments: argparse.Namespace, model: Model, split: store.Split | None
) -> tuple[Index, ClipsToIndex]:
    """The clips of the command line, once they are known to belong into the index.

    Where there is none yet, it is made, after all that can be wrong with the clips has been said.
    """
    declared = None if index is None else index.header.root
    root = arguments.root if declared is not None else root_of(arguments, split)
    cut = None if split is not None else arguments.clip_seconds or WHOLE
    if index is not None:
        index.header.declared(index.path, root and os.path.abspath(root), cut)
    clips = clips_to_index(arguments, model, split, declared or root)
    if index is None:
        bank = None
        if arguments.hubness == "bank":
            bank = bank_of(model.run, progress=True)
            if word := caution(len(bank)):
                print(word, file=sys.stderr)
        index = create(
            arguments.index,
            identity=model.identity,
            distance=model.distance,
            storage=arguments.storage,
            root=root,
            bank=bank,
            sketch=model.sketch.name if model.sketch else "",
            static_weight=arguments.static_weight,
        )
    index.declare(root, cut)
    if clips.files:
        index.check_files(clips.files, getattr(arguments, "replace", False))
    return index, clips


def build(arguments: argparse.Namespace) -> int:
    check_may_be_written(arguments.index / "index.json")
    model, split, index = load_as_asked(arguments), split_of(arguments), None
    if (arguments.index / "index.json").exists():
        check_begun(arguments, read_header(arguments.index))
        index = open_index(arguments.index, model.identity)
    begun_before = index is not None
    index, clips = _index_for(index, arguments, model, split)
    count = _grow(index, clips.parts(set(index.ids())), "skip")
    if not len(index):
        if not begun_before:  # it would hold the next attempt to this one's options
            shutil.rmtree(index.path, ignore_errors=True)
        raise InputError(
            f"{arguments.index}: expected at least one clip that can be used, there is none (see "
            "above); the index is empty"
        )
    return _tell_added(index, count)


def _tell_added(index: Index, count: int) -> int:
    print(f"{index.path}: {number_of(count, 'clip')} added, {len(index):,} in all")
    small = sum(one.bytes < SEGMENT_BYTES for one in index.snapshot.segments.values())
    if small >= MANY_SEGMENTS:
        print(
            f"NOTE: {small:,} small segments: `scav index compact {shown(str(index.path))}` "
            "writes them together, which opens and searches faster",
            file=sys.stderr,
        )
    return 0


def check_begun(arguments: argparse.Namespace, header: Header) -> None:
    """Raises `InputError` for options of a build that went on with others."""
    begun: dict = {"storage": header.storage, "hubness": "bank" if header.bank else "none"}
    if arguments.static_weight is not None:
        begun["static_weight"] = header.options.get("static_weight")
    for name, value in begun.items():
        if getattr(arguments, name) != value:
            raise InputError(
                f"{arguments.index}: expected {name.replace('_', ' ')} {value}, as it was begun, "
                f"got {getattr(arguments, name)}; remove the index to build it anew"
            )


def add(arguments: argparse.Namespace) -> int:
    model, split = load_as_asked(arguments), split_of(arguments)
    index = open_index(arguments.index, model.identity)
    index, clips = _index_for(index, arguments, model, split)
    if arguments.replace:
        count = _grow(index, clips.parts(()), "replace")
    else:
        with index.adding(clips.ids) as begun:  # before any part of it is added
            done = set(index.ids()) if begun else set()
            if begun:
                there = len(done.intersection(clips.ids))
                print(f"going on: {there:,} of {len(clips.ids):,} clips are there already")
            count = _grow(index, clips.parts(done), "refuse")
    return _tell_added(index, count)


def move(arguments: argparse.Namespace) -> int:
    index = open_index(arguments.index)
    index.move(arguments.root)
    print(f"{arguments.index}: its videos lie below {shown(index.header.root)}")
    files = [index.clip(name)["source"] for name in index.ids()[:LOOKED_AT]]
    missing = [file for file in files if not os.path.exists(file)]
    if missing:
        print(
            f"NOTE: of {len(files)} clips that were looked at, {len(missing)} have no file there, "
            f"such as {shown(missing[0])}; the folder is the one that ids begin in",
            file=sys.stderr,
        )
    return 0


def delete(arguments: argparse.Namespace) -> int:
    index = open_index(arguments.index)
    count = index.delete(arguments.ids)
    print(f"{arguments.index}: {number_of(count, 'clip')} deleted, {len(index):,} left")
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
        print(f"{name:16} {value:,}" if isinstance(value, int) else f"{name:16} {shown(value)}")
    return 0


def export(arguments: argparse.Namespace) -> int:
    index = open_index(arguments.index)
    count = export_index(index, arguments.out)
    print(f"{arguments.out}: {number_of(count, 'clip')}, {arguments.out.stat().st_size:,} bytes")
    if index.header.bank:
        print("what clips' scores are relative to (hubness) is left out")
    return 0


def import_(arguments: argparse.Namespace) -> int:
    index = import_index(arguments.file, arguments.index)
    print(f"{arguments.index}: {number_of(len(index), 'clip')}")
    return 0


def tune(arguments: argparse.Namespace) -> int:
    check_may_be_written(arguments.out)
    model = load_as_asked(arguments)
    index = open_index(arguments.index, model.identity)
    queries = _sampled(arguments, model)
    found = tuned(index, queries, arguments.direction, k=arguments.k)
    if arguments.out is not None:
        write_json(arguments.out, found)
    print(tuning_table(found))
    return 0


def _sampled(arguments: argparse.Namespace, model: Model) -> Embedded:
    """Some clips at random; of features on disk, no others are embedded."""
    split = split_of(arguments)
    clips = split
    if split is None:
        clips = next(clips_to_index(arguments, model, None, None).parts(()), None)
        if clips is None:
            raise InputError("expected usable clips to tune with, there are none (see above)")
    count = min(arguments.queries, len(clips))
    numbers = np.sort(np.random.default_rng(0).choice(len(clips), count, replace=False))
    if split is None:
        return clips.take(numbers)
    return model.embed_split(split.take(numbers), progress=True)


def tuned(
    index: Index,
    queries: Embedded,
    direction: str = "a2v",
    *,
    k: int = 10,
    ks: list[int] | None = None,
) -> dict:
    """Recall of hybrid search against exact, and seconds a query, over K.

    Args:
      index: not empty.
      queries: what people will ask, or the clips themselves.
      direction: "a2v" or "v2a".
      k: how many are wanted.
      ks: of hybrid search; by default 10, 20, 50, 100, ... up to all.

    Returns:
      `rows` with k, recall, seconds and what was done; `exact` and `sequence` (seconds, and the
      pruned share); `proposed`, "hybrid:K", or "exact" where that is faster or no K serves.
    """
    if not len(index):
        raise InputError(f"{index.path}: expected clips to tune on, the index is empty; add some")
    ks = sorted(set(ks or _proposed_ks(len(index), k)))
    truth, exact = _timed(index, queries, direction, k, "exact")
    if not any(truth):
        asked = {"a2v": "picture", "v2a": "sound"}[direction]
        raise InputError(f"{index.path}: no clip has a {asked}, which {direction} is to find")
    if index.report.method == "sequence":  # what was just timed: there is nothing to rule out by
        sequence = exact
    else:
        _, sequence = _timed(index, queries, direction, k, "sequence")
    rows = []
    for chosen in progress_bar("tune", len(ks), "K", over=ks):
        hits, seconds = _timed(index, queries, direction, k, f"hybrid:{chosen}")
        row = {"k": chosen, "recall": _recall(truth, hits), "seconds": seconds}
        rows.append({**row, "method": index.report.method})
    best = next((row for row in rows if row["recall"] >= WANTED), None)
    proposed = "exact" if index.header.one_grid and exact <= sequence else "sequence"
    if best and best["seconds"] < min(exact, sequence):
        proposed = f"hybrid:{best['k']}"
    return {
        "clips": len(index),
        "queries": len(queries.ids),
        "direction": direction,
        "wanted": k,
        "rows": rows,
        "exact": exact,
        "sequence": sequence,
        "proposed": proposed,
    }


def _proposed_ks(clips: int, k: int) -> list[int]:
    found, size = [], 1
    while size <= clips:
        found += [size * one for one in (1, 2, 5)]
        size *= 10
    return [one for one in found if k <= one < clips] + [clips]


def _timed(index: Index, queries: Embedded, direction: str, k: int, retrieval: str):
    """Hits, and seconds a query at best of two."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        hits = index.search(queries, direction, k, retrieval)
        seconds.append(time.perf_counter() - begin)
    return hits, min(seconds) / len(queries.ids)


def _recall(truth, hits) -> float:
    """The share of the right k that is among those found."""
    shares = [
        len({one.id for one in right} & {one.id for one in found}) / max(len(right), 1)
        for right, found in zip(truth, hits, strict=True)
    ]
    return float(np.mean(shares))


def tuning_table(found: dict) -> str:
    """The result for people."""
    lines = [f"{found['clips']:,} clips, {found['queries']} queries {found['direction']}", ""]
    lines.append(f"{'retrieval':>14} {'recall@' + str(found['wanted']):>10} {'ms/query':>9}")
    for row in found["rows"]:
        note = "  (compares all)" if row["method"] == "sequence" else ""
        name = f"hybrid:{row['k']}"
        lines.append(f"{name:>14} {row['recall']:>10.3f} {1e3 * row['seconds']:>9.2f}{note}")
    for name in ("exact", "sequence"):
        lines.append(f"{name:>14} {1:>10.3f} {1e3 * found[name]:>9.2f}")
    return "\n".join([*lines, "", f"proposed: --retrieval {found['proposed']}"])


COMMANDS = {
    command.__name__.rstrip("_"): command
    for command in (build, add, delete, compact, move, info, export, import_, tune)
}

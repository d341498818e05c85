"""Does every reader answer any bytes with the value that was written, or with one line?

    python scripts/benchmarks/mutations.py [--mutations 300] [--only NAME ...] [--out FILE]

For each file that this project reads there is a small good one, and a function that reads it and
says what it found. The file is changed in some way (bytes flipped, cut, doubled, put in; values of
JSON of another type, huge, NaN, twice, nested deeply; long fields; an empty file, a folder, a pipe,
nothing) and read again. What may come of it:

  same      the value that was written
  refused   one line, `InputError`, that names the file or its folder
  other     another value, of formats that have no checksum: what the bytes now say
  silent    another value, where the file or its record carries a checksum: wrong
  deep      any other exception: wrong
  slow      longer than the limit: wrong

and no reader may take more memory than the bound. `tests/test_readers.py` runs a few hundred.
"""

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scav_jax.base.documents import write_document
from scav_jax.base.errors import InputError
from scav_jax.extract import manifest
from scav_jax.extract.backbones import beats_weights, clip_pixels, clip_towers, torch_files, weights
from scav_jax.extract.ledger import Ledger
from scav_jax.features import store
from scav_jax.features.clip import Clip
from scav_jax.training.records import METRICS_FILE, read_metrics
from scav_jax.training.runs import CONFIG_FILE, read_config

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
AGAIN = "it is done again"
WRONG = ("silent", "deep", "slow")
LIMIT_S = 20  # of one reading, on a busy machine
MEMORY_BYTES = 256 * 2**20  # that a process may grow by, over all mutations of a reader


@dataclass(frozen=True)
class Reader:
    """A file and how it is read.

    Attributes:
      name: what it is.
      path: of the file that is changed.
      read: reads it, and what it belongs to, anew; what it says must be comparable by `repr`.
      sealed: whether a changed value is an error: there is a checksum.
      part_of: the folder that a refusal may name instead of the file.
      cost: about how many times as long as a small JSON file it takes; fewer mutations are tried.
    """

    name: str
    path: Path
    read: Callable[[], Any]
    sealed: bool = True
    cost: int = 1
    part_of: Path | None = None


# ---- good files ------------------------------------------------------------------------------


def clips(count: int = 5) -> list[tuple[str, Clip]]:
    random_ = np.random.default_rng(0)
    return [
        (
            "test" if number % 3 == 2 else "train",
            Clip(
                id=f"clip {number}, é",
                visual=random_.normal(size=(11 + number, 7)).astype(np.float16),
                visual_span=(0.0, 2.0),
                audio=random_.normal(size=(5, 6)).astype(np.float16),
                audio_span=(0.0, 1.9),
                source=f"folder/{number}.mp4",
                start=1.1 * number,
                end=1.1 * number + 2.0,
                label="bell",
            ),
        )
        for number in range(count)
    ]


def digest(value: Any) -> str:
    """What a value is, to the last digit."""
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return repr(value)


def of_data(folder: Path) -> list[Reader]:
    data = folder / "data"
    rejected = [dict.fromkeys(store.REJECTED_COLUMNS, "x")]
    fingerprint = {"backbone": {"name": "test"}, "audio_rate_hz": 16_000}
    store.write(clips(), data, fingerprint=fingerprint, videos="videos", rejected=rejected)

    def read() -> Any:
        found = [store.read(data, name) for name in ("train", "test")]
        whole = [(vars(split) | {"_records": 0, "_rows": 0}) for split in found]
        return whole, [vars(split[n]) for split in found for n in range(len(split))]

    records = next(data.glob("*-train.array_record-*"))
    names = ("scav.json", "clips.csv", "features.json", "dataset_info.json", records.name)
    readers = [Reader(name, data / name, read, cost=8) for name in names]
    wrong = Reader("rejected.csv", data / "rejected.csv", lambda: store.read_rejected(data))
    return [*readers, wrong]


def of_runs(folder: Path) -> list[Reader]:
    run = folder / "run"
    config = {"data": {"path": "x", "batch_size": 8}, "seed": 0, "features": {"widths": {"a": 1}}}
    write_document(run / CONFIG_FILE, config)
    lines = [
        {"kind": "train", "step": step, "loss": 1 / step, "learning_rate": 1e-3}
        for step in range(1, 9)
    ]
    (run / METRICS_FILE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return [
        Reader("run: config.json", run / CONFIG_FILE, lambda: read_config(run)),
        Reader("metrics.jsonl", run / METRICS_FILE, lambda: read_metrics(run), sealed=False),
    ]


def of_extraction(folder: Path) -> list[Reader]:
    partial, run = folder / "data.partial", {"fingerprint": {"a": 1}, "manifest": "m"}
    ledger = Ledger(partial)
    ledger.open(run)
    ledger.save(0, {0: clips()[0][1]}, {1: {"id": "y"}})
    ledger.save_lengths({"a.mp4": 1.5, "b.mp4": None})

    def read() -> Any:
        again = Ledger(partial)
        again.open(run)
        job = again.path(0)
        kept = job.read_bytes() if job.is_file() else b""
        try:
            done = again.is_done(0)
            content = (vars(again.clip(0, 0)), again.rejected(0)) if done else None
        finally:
            if kept:
                job.write_bytes(kept)  # a damaged one is removed
        lengths = again.lengths()
        return AGAIN if lengths is None or not done else (content, lengths)

    return [
        Reader("run.json", ledger.path_of_run(), read, cost=2),
        Reader("lengths.json", partial / "lengths.json", read, cost=2),
        Reader("a job's .npz", ledger.path(0), read, cost=2),
    ]


def of_lists(folder: Path) -> list[Reader]:
    from scav_jax.datasets import music, vggsound

    rows = 'file,start,end,id,label,split\na.mp4,0,2.5,a,dog,train\n"b,c.mp4",1,3,b,,test\n'
    (folder / "list.csv").write_text(rows)
    names = ["abcdefghij0", "abcdefghij1"]
    (folder / "music.json").write_text(json.dumps({"videos": {"cello": names}}))
    (folder / "vggsound.csv").write_text(
        f'{names[0]},30,"dog, barking",train\n{names[1]},0,x,test\n'
    )
    lists = {
        "clip list": ("list.csv", manifest.read_csv),
        "MUSIC list": ("music.json", music.read_list),
        "VGGSound list": ("vggsound.csv", lambda path: vggsound.read_lists([str(path)])),
    }
    return [
        Reader(name, folder / file, lambda path=folder / file, read=read: read(path), sealed=False)
        for name, (file, read) in lists.items()
    ]


def of_weights(folder: Path) -> list[Reader]:
    model = folder / "model"
    arrays = {
        "a.weight": np.arange(12.0, dtype=np.float32).reshape(3, 4),
        "b": np.ones(5, np.int64),
    }
    weights.write(model / "model-1-of-1.safetensors", arrays, {"x": "y"})
    places = {"weight_map": dict.fromkeys(arrays, "model-1-of-1.safetensors")}
    (model / weights.INDEX).write_text(json.dumps(places))
    (model / "config.json").write_text(json.dumps(CLIP_CONFIG))
    (model / "preprocessor_config.json").write_text(json.dumps(CLIP_PIXELS))
    cfg = {"cfg": beats_weights.ITER3_PLUS.checkpoint_cfg()}
    (model / "beats.json").write_text(json.dumps(cfg))
    for kind in ("new", "old"):
        shutil.copy(FIXTURES / f"torch_{kind}.pt", folder)
    size = model / "preprocessor_config.json"

    def beats() -> Any:
        from scav_jax.base.documents import read_object

        about = read_object(model / "beats.json", "cfg", "x").get("cfg")
        return beats_weights.BeatsConfig.from_checkpoint(about if isinstance(about, dict) else {})

    def beats_config() -> Any:
        try:
            return beats()
        except (InputError, FileNotFoundError) as error:  # as `read_checkpoint` names its file
            raise InputError(f"{model / 'beats.json'}: {error}") from None

    reads = {
        "safetensors": (model / "model-1-of-1.safetensors", lambda: weights.read(model)),
        "index of shards": (model / weights.INDEX, lambda: weights.read(model)),
        "CLIP's config.json": (model / "config.json", lambda: clip_towers.read_config(model)),
        "CLIP's preprocessing": (size, lambda: clip_pixels.read_preprocessing(model, 224)),
        "BEATs' cfg": (model / "beats.json", beats_config),
        ".pt, zip": (folder / "torch_new.pt", lambda: torch_files.read(folder / "torch_new.pt")),
        ".pt, stream": (folder / "torch_old.pt", lambda: torch_files.read(folder / "torch_old.pt")),
    }
    return [Reader(name, path, read, sealed=False) for name, (path, read) in reads.items()]


CLIP_CONFIG = {
    "model_type": "clip",
    "projection_dim": 512,
    "vision_config": {"hidden_size": 768, "patch_size": 32, "hidden_act": "quick_gelu"},
    "text_config": {"hidden_size": 512, "vocab_size": 49408},
}
CLIP_PIXELS = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "rescale_factor": 0.5,
    "image_mean": [0.1, 0.2, 0.3],
    "do_resize": True,
}


def of_index(folder: Path) -> list[Reader]:
    from scav_jax.index import create, open_index

    path, found = folder / "my.index", embedded(9)
    create(path, identity="model").add(found)
    table = [file for file in sorted((path / "rows.lance").rglob("*")) if file.is_file()]

    def read() -> Any:
        index = open_index(path)
        hits = index.search(found, "a2v", 3, "exact")
        return index.verify(), sorted(index.ids()), hits

    segment = path / "segments" / "00000000"
    about = (path / "index.json", path / "segments" / "rows.json")
    ours = [
        Reader(f"index: {file.name}", file, read, cost=20)
        for file in (*about, *sorted(segment.iterdir()))
    ]
    theirs = [
        Reader(f"rows.lance/{file.parent.name}, {number}", file, read, cost=20, part_of=path)
        for number, file in enumerate(table)
    ]
    return [*ours, *theirs]


def of_transfers(folder: Path) -> list[Reader]:
    """An index as one file, which no checksum seals: other tools may write it too."""
    from scav_jax.index import create, transfer

    found, new = embedded(9), itertools.count()
    index = create(folder / "whole.index", identity="model")
    index.add(found)
    readers = []
    for suffix in (".parquet", ".npz"):
        file = folder / f"moved{suffix}"
        transfer.export_index(index, file)

        def read(file: Path = file) -> Any:
            made = transfer.import_index(file, folder / f"{next(new)}.index")
            return sorted(made.ids()), made.search(found, "a2v", 3, "exact")

        readers.append(Reader(f"moved index: {suffix}", file, read, cost=30, sealed=False))
    return readers


def embedded(count: int, steps: int = 7, width: int = 12) -> Any:
    from scav_jax.retrieval.embed import Embedded
    from scav_jax.sequences import Sequences

    random_ = np.random.default_rng(0)
    lengths = np.full(count, steps, np.int32)
    windows = np.stack([0 * lengths, lengths], axis=1).astype(np.float32)
    values = [random_.normal(size=(count, steps, width)).astype(np.float32) for _ in range(2)]
    return Embedded(
        [f"clip{number}" for number in range(count)],
        [f"videos/{number}.mp4" for number in range(count)],
        np.arange(count) * 2.0,
        np.arange(count) * 2.0 + 1.5,
        ["dog"] * count,
        *(Sequences(one, lengths, windows) for one in values),
        *(one.mean(axis=1) for one in values),
    )


def of_exports(folder: Path) -> list[Reader]:
    import jax
    from safetensors.numpy import save

    from scav_jax.export import writing
    from scav_jax.extract.backbones import make_fingerprint
    from scav_jax.retrieval import model
    from scav_jax.training import runs
    from scav_jax.training.config import Config, as_dict

    out, widths = folder / "exported", {"visual": 7, "audio": 6}
    small = {"width": 8, "heads": 2, "visual_blocks": 1, "audio_blocks": 1, "feedforward": 10}
    config = Config().replace(encoders={**small, "visual_hidden": 5, "audio_hidden": 9})
    fingerprint = make_fingerprint("plain")
    document = as_dict(config) | {"features": {"fingerprint": fingerprint, "widths": widths}}
    encoders, objective = runs.build(config)
    shapes = runs.parameter_shapes(encoders, objective, widths)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    made = model.Model(runs.Run(out, document, encoders, objective, params, fingerprint))
    write_document(out / CONFIG_FILE, writing._config(made))
    write_document(out / model.PREPROCESSING_FILE, {"fingerprint": fingerprint})
    (out / model.PARAMETERS_FILE).write_bytes(save(model.flat_parameters(params)))

    def read() -> Any:
        loaded = model.load(out)
        return loaded.identity, loaded.run.config, loaded.run.objective

    names = (CONFIG_FILE, model.PREPROCESSING_FILE, model.PARAMETERS_FILE)
    return [Reader(f"exported: {name}", out / name, read, cost=30) for name in names]


def of_others(folder: Path) -> list[Reader]:
    """What other people's programs hand in: nothing of it has a checksum."""
    from scav_jax.datasets import imported, vggsounder
    from scav_jax.evaluate import sources
    from scav_jax.score import program

    random_ = np.random.default_rng(0)
    arrays = [random_.normal(size=(steps, 4)).astype(np.float32) for steps in (6, 3)]
    np.save(folder / "seen.npy", arrays[0])
    np.savez_compressed(folder / "heard.npz", a=arrays[1])
    rows = ["id,visual,audio,seconds", "a,seen.npy,heard.npz:a,1.5", "b,seen.npy,heard.npz:a,2"]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    (folder / "pairs.csv").write_text('picture,sound\na.mp4,"b,c.wav"\nd.mp4,e.flac\n')
    (folder / "ids.txt").write_text("# of a gallery\nclip 1, é\nclip 0, é\n")
    (folder / "annotations.csv").write_text(
        ",".join(vggsounder.COLUMNS) + '\nx,"dog, barking",1,0,0,1,0\n'
    )
    lengths = np.array([5, 3, 4])
    np.savez(
        folder / "theirs.npz",
        ids=np.array(["a", "b", "c"]),
        **{name: random_.normal(size=(3, 5, 4)) for name in ("visual", "audio")},
        **{f"{name}_lengths": lengths for name in ("visual", "audio")},
        **{f"{name}_embeddings": np.ones((3, 2)) for name in ("visual", "audio")},
        name=np.array("theirs"),
        training=np.array("x"),
        parameters=np.array(7),
        distance=np.array('{"name": "dtw", "options": {}}'),
    )
    about = {"backbone": {"name": "test"}}
    store.write(clips(), folder / "known", fingerprint=about, videos="", rejected=[])
    known = store.read(folder / "known", "train")

    def imports() -> Any:
        found = imported.read_manifest(folder / "manifest.csv")
        return [vars(clip) for _, clip in found.clips()], found.rejected

    def first() -> Any:
        return vars(imported.read_manifest(folder / "manifest.csv").first)

    reads: dict[str, tuple[str, Callable[[], Any]]] = {
        "manifest of features": ("manifest.csv", imports),
        "features, .npy": ("seen.npy", first),
        "features, .npz": ("heard.npz", first),
        "pairs to score": ("pairs.csv", lambda: program.read_pairs(folder / "pairs.csv")),
        "list of ids": ("ids.txt", lambda: sources.chosen(known, folder / "ids.txt").ids),
        "embeddings": ("theirs.npz", lambda: vars(sources.load(folder / "theirs.npz"))),
        "annotations": (
            "annotations.csv",
            lambda: vggsounder.read_annotations(folder / "annotations.csv"),
        ),
    }
    return [Reader(name, folder / file, read, sealed=False) for name, (file, read) in reads.items()]


def of_models(folder: Path) -> list[Reader]:
    """What lies beside a model: its calibration and its sketch."""
    from scav_jax.retrieval import calibration, sketch
    from scav_jax.retrieval.synchrony import Calibration

    nulls = ((2.0, 1.0), (0.5, 0.1), (-1.0, 0.0, 1.0))
    calibration.write(folder, Calibration("m", "c", "data", "new", 60, 2.0, 0.1, 9.0, *nulls))
    random_ = np.random.default_rng(0)
    mean, directions = random_.normal(size=5), random_.normal(size=(5, 5))
    chosen = np.array([[0, 1, 2], [0, 1, 0]])
    maps = mean.astype(np.float32), directions.astype(np.float32), chosen
    made = sketch.Sketch(4, *maps, np.ones(1, np.float32))
    sketch.save_sketch(folder, made, "m", {})

    def read_sketch() -> Any:
        found = sketch.load_sketch(folder, lambda: "m")
        return found and vars(found)

    def read_calibration() -> Any:
        return calibration.load(folder, "m") or AGAIN  # none is none

    maps, about = (folder / sketch.FOLDER / name for name in (sketch.MAPS, sketch.ABOUT))
    return [
        Reader("synchrony.json", folder / calibration.FILE, read_calibration),
        Reader("a sketch's maps", maps, read_sketch),
        Reader("what a sketch is", about, read_sketch),
    ]


MAKERS = (
    *(of_data, of_runs, of_extraction, of_lists, of_weights, of_index, of_transfers, of_exports),
    *(of_others, of_models),
)


# ---- what is done to them --------------------------------------------------------------------


def of_bytes(content: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, whatever they mean."""
    at, size = chance.randrange(len(content) + 1), chance.randrange(1, 40)
    flipped = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 5, 50)) if content else 0):
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return chance.choice(
        (
            bytes(flipped),
            bytes(flipped),
            bytes(flipped),
            content[:at],
            content[:at] + content[at + size :],
            content[:at] + chance.randbytes(size) + content[at:],
            content[:at] + content[max(at - size, 0) : at] + content[at:],
            content + content,
            content[:at] + bytes(len(content) - at),
            chance.randbytes(len(content)),
            b"",
        )
    )


VALUES = (
    *("null", "true", "[]", "{}", '""', '"x"', "-1", "0", "1", "3.5", "1e999", "-1e308", "NaN"),
    *("Infinity", "9" * 30, "9" * 5000, "[" * 3000 + "]" * 3000, "[" * 90_000, '"\\ud800"'),
    *('"' + "x" * 200_000 + '"', '{"a": 1, "a": 2}', "[1, 2]", "1e-400", '"\\u0000"'),
)


def of_text(content: bytes, chance: random.Random) -> bytes:
    """A word or a number of a text changed for what it should not be."""
    import re

    text = content.decode("latin-1")
    words = list(re.finditer(r'"[^"]*"|[-\w.]+|[{}\[\],:\n]', text))
    if not words:
        return chance.choice(VALUES).encode()
    word = chance.choice(words)
    before, after = text[: word.start()], text[word.end() :]
    value = chance.choice(VALUES)
    line = text[text.rfind("\n", 0, word.start()) + 1 :].split("\n")[0]
    made = chance.choice(
        (
            before + value + after,
            before + value + after,
            before + after,
            before + word[0] + word[0] + after,
            before + line + "\n" + word[0] + after,
            value,
            "\ufeff".encode().decode("latin-1") + text,
            text.replace("\n", "\r\n"),
        )
    )
    return made.encode("latin-1")


def in_its_place(path: Path, what: str) -> None:
    """Something else than a file."""
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "loop":
        path.symlink_to(path.name)


PLACES = ("folder", "pipe", "nothing", "loop")


# ---- what comes of it ------------------------------------------------------------------------


class Slow(BaseException):
    pass


def outcome(reader: Reader, expected: str, named: tuple[str, ...]) -> tuple[str, str]:
    """What became of a reading, and why."""

    def too_long(*_):
        raise Slow

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_S)
    try:
        found = digest(reader.read())
    except InputError as error:
        words = str(error)
        good = "\n" not in words and len(words) < 2000 and any(name in words for name in named)
        return ("refused", words) if good else ("deep", f"not a line with a name: {words[:300]}")
    except Slow:
        return "slow", f"more than {LIMIT_S} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "deep", f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
    if found in (expected, digest(AGAIN)):
        return "same", ""
    return ("silent" if reader.sealed else "other"), "another value"


def tried(reader: Reader, count: int, seed: int) -> tuple[Counter, list[str]]:
    """The outcomes of some mutations of one reader, and the wrong ones in words."""
    content, expected = reader.path.read_bytes(), digest(reader.read())
    named = (
        reader.path.name,
        reader.path.parent.name,
        str(reader.part_of or reader.path.parents[1]),
    )
    counts: Counter = Counter()
    wrong = []
    for number in range(count):
        chance = random.Random(f"{seed} {reader.name} {number}")
        how = PLACES[number] if number < len(PLACES) else chance.choice((of_bytes, of_text))
        try:
            if isinstance(how, str):
                in_its_place(reader.path, how)
            else:
                reader.path.write_bytes(how(content, chance))
            what, why = outcome(reader, expected, named)
        finally:
            if reader.path.is_dir() and not reader.path.is_symlink():
                shutil.rmtree(reader.path)
            else:
                reader.path.unlink(missing_ok=True)
            reader.path.write_bytes(content)
        counts[what] += 1
        if what in WRONG:
            said = how if isinstance(how, str) else how.__name__
            wrong.append(f"{reader.name}, mutation {number} ({said}): {what}: {why}")
    return counts, wrong


def memory() -> int:
    """The most bytes that this process ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=300, help="of a file that reads quickly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="readers, by how their names begin")
    parser.add_argument("--out", type=Path, help="also write the counts to this JSON file")
    arguments = parser.parse_args()
    found, all_wrong = {}, []
    print(
        f"{'reader':36}{'tried':>6}{'same':>6}{'refused':>9}{'other':>7}{'wrong':>7}{'MiB':>6}{'s':>7}"
    )
    with tempfile.TemporaryDirectory() as name:
        readers = [reader for make in MAKERS for reader in make(Path(name))]
        for reader in readers:
            if arguments.only and not reader.name.startswith(tuple(arguments.only)):
                continue
            before, begin = memory(), time.perf_counter()
            count = max(arguments.mutations // reader.cost, 8)
            counts, wrong = tried(reader, count, arguments.seed)
            grown, seconds = memory() - before, time.perf_counter() - begin
            if grown > MEMORY_BYTES:
                wrong.append(f"{reader.name}: grew by {grown / 2**20:.0f} MiB")
            row = [counts[kind] for kind in ("same", "refused", "other")]
            print(
                f"{reader.name:36}{count:6}{row[0]:6}{row[1]:9}{row[2]:7}{len(wrong):7}"
                f"{grown / 2**20:6.0f}{seconds:7.1f}",
                flush=True,
            )
            found[reader.name] = dict(counts) | {"grown_bytes": grown, "seconds": seconds}
            all_wrong += wrong
    print("\n".join(["", *all_wrong]))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    sys.exit(1 if all_wrong else 0)


if __name__ == "__main__":
    main()

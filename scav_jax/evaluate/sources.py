"""What a row of the table is made of: a run of ours, or a file of anyone's embeddings.

A file is an npz with, for K clips in any order,

    ids                          K strings: those of the split, each once
    visual, audio                [K, E], or [K, T, E] with visual_lengths, audio_lengths [K]
    name, training               strings: the model, and what it has seen
    parameters                   how many numbers it has learned

and with sequences, where the mean over their steps is not what stands for a clip, or they are laid
onto each other otherwise than from first to last step: visual_embeddings, audio_embeddings
[K, E], visual_windows, audio_windows [K, 2] in steps (begin, extent);
distance, JSON `{"name", "options"}`.

`scripts/adapters/` make such files of other systems, in their own environments.
"""

import json
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scav_jax.base.documents import parse_json, read_arrays, read_text, write_arrays
from scav_jax.base.errors import InputError, listed
from scav_jax.distances import DISTANCES, find
from scav_jax.distances.static import SUFFIX
from scav_jax.features.store import Split
from scav_jax.retrieval.embed import Embedded, clips_of
from scav_jax.sequences import STREAMS, Sequences, masked_mean, unit, whole_windows
from scav_jax.training.runs import Run, seen_by

SHOWN = 3  # ids in a message
NEEDED = ("ids", "visual", "audio", "name", "parameters", "training")


@dataclass(frozen=True)
class EmbeddingsFile:
    """Embeddings that something else has made; `load` checks them.

    Attributes:
      path: of the file.
      name: of the model.
      parameters: how many numbers it has learned; 0 where that is not known.
      training: what it has seen, in words.
      ids: of the clips, in the file's order.
      values: by stream, `[K, E]` or `[K, T, E]`.
      lengths: by stream, `[K]`, where values are sequences.
      windows, embeddings: by stream, where the file has them.
      distance: (name, options) that ranks sequences.
    """

    path: Path
    name: str
    parameters: int
    training: str
    ids: list[str]
    values: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    windows: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]
    distance: tuple[str, dict]

    @property
    def methods(self) -> tuple[str, ...]:
        """Ways of retrieval that make sense."""
        return ("aggregation", "sequence") if self.lengths else ("aggregation",)


def load(path: Path) -> EmbeddingsFile:
    """Reads a file of embeddings; nothing in it is executed.

    Raises:
      InputError: no such file, arrays that are missing, of unequal length or not finite.
    """
    try:
        found = read_arrays(path, "an npz of plain arrays", "write it again")
    except FileNotFoundError:
        raise InputError(f"--embeddings: expected a file, there is no {path}") from None
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise InputError(
            f"{path}: expected the arrays {', '.join(NEEDED)}, got none called {missing[0]!r}"
        )
    ids = _checked_ids(path, found["ids"])
    values, lengths = {}, {}
    for stream in STREAMS:
        values[stream] = _checked(path, stream, found[stream], len(ids))
        if values[stream].ndim == 3:
            lengths[stream] = _checked_lengths(path, stream, found, values[stream])
    if len(lengths) == 1 or values["visual"].shape[-1] != values["audio"].shape[-1]:
        raise InputError(
            f"{path}: expected visual and audio of one form and width, got "
            f"{values['visual'].shape} and {values['audio'].shape}"
        )
    return EmbeddingsFile(
        path=path,
        name=_text(path, found, "name"),
        parameters=_count(path, found, "parameters"),
        training=_text(path, found, "training"),
        ids=ids,
        values=values,
        lengths=lengths,
        windows=_checked_windows(path, found, lengths, len(ids)),
        embeddings=_optional(path, found, "embeddings", (len(ids), None)),
        distance=_distance(path, found),
    )


def _checked_ids(path: Path, ids: np.ndarray) -> list[str]:
    if ids.ndim > 1 or ids.dtype.kind not in "Uiu":
        raise InputError(f"{path}: expected ids as a row of strings, got {_described(ids)}")
    return [str(one) for one in np.atleast_1d(ids)]


def _text(path: Path, found: dict, name: str) -> str:
    value = found[name]
    if value.size != 1 or value.dtype.kind != "U":
        raise InputError(f"{path}: expected {name} as one string, got {_described(value)}")
    return str(value.item())


def _count(path: Path, found: dict, name: str) -> int:
    value = found[name]
    if value.size != 1 or value.dtype.kind not in "iu" or value.item() < 0:
        raise InputError(
            f"{path}: expected {name} as one whole number, 0 or more, got {_described(value)}"
        )
    return value.item()


def _described(values: np.ndarray) -> str:
    return f"{values.dtype} {list(values.shape)}"


def _optional(path: Path, found: dict, what: str, shape: tuple) -> dict[str, np.ndarray]:
    """The arrays that a file may have for each stream, in float32."""
    there = {stream: found.get(f"{stream}_{what}") for stream in STREAMS}
    there = {stream: values for stream, values in there.items() if values is not None}
    for stream, values in there.items():
        fits = values.ndim == 2 and len(values) == shape[0] and shape[1] in (None, values.shape[1])
        fits = fits and values.dtype.kind in "fiu"
        if len(there) < len(STREAMS) or not fits or not np.isfinite(_narrow(values)).all():
            raise InputError(
                f"{path}: expected finite {stream}_{what} with a row for each of the {shape[0]} "
                f"ids, for both streams, got {_described(values)}"
            )
    return {stream: _narrow(values) for stream, values in there.items()}


def _narrow(values: np.ndarray) -> np.ndarray:
    """In float32; what is too large for it is infinite, and told as such."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def _distance(path: Path, found: dict) -> tuple[str, dict]:
    if "distance" not in found:
        return "euclidean", {}
    text = _text(path, found, "distance")
    try:
        told = parse_json(text)
        name, options = told["name"], dict(told["options"])
        if not isinstance(name, str) or name.removesuffix(SUFFIX) not in DISTANCES:
            raise ValueError(f"name is none of {', '.join(DISTANCES)}")  # nor code to import
        find(name, options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected distance as JSON with name and options ({error})"
        ) from None
    return name, options


def _checked(path: Path, stream: str, values: np.ndarray, clips: int) -> np.ndarray:
    if not (values.ndim in (2, 3) and len(values) == clips and values.size):
        raise InputError(
            f"{path}: expected {stream} of shape [{clips}, E] or [{clips}, T, E], one row for each "
            f"of the ids, got {list(values.shape)}"
        )
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"{path}: expected {stream} in floating point, got {values.dtype}")
    return _narrow(values)


def _checked_lengths(path: Path, stream: str, found: dict, values: np.ndarray) -> np.ndarray:
    name = f"{stream}_lengths"
    if name not in found:
        raise InputError(f"{path}: expected {name} with the sequences {stream}, got none")
    lengths = np.asarray(found[name])
    fits = lengths.shape == values.shape[:1] and lengths.dtype.kind in "iu"
    if not (fits and lengths.min() >= 1 and lengths.max() <= values.shape[1]):
        raise InputError(
            f"{path}: expected {name} of {len(values)} whole numbers in 1..{values.shape[1]}, got "
            f"{_described(lengths)}" + (f" from {lengths.min()} to {lengths.max()}" if fits else "")
        )
    return lengths.astype(np.int32)


def _checked_windows(path: Path, found: dict, lengths: dict, clips: int) -> dict[str, np.ndarray]:
    """Where a file has them, the steps of each stream that the other one covers."""
    windows = _optional(path, found, "windows", (clips, 2))
    for stream, (begin, extent) in ((name, some.T) for name, some in windows.items()):
        steps = lengths.get(stream, 1)
        # A step that is covered by half is a step of it: windows may begin and end beside it.
        within = (begin >= -1) & (extent > 0) & (begin + extent <= steps + 1)
        if not within.all():
            row = int(np.flatnonzero(~within)[0])
            raise InputError(
                f"{path}: expected {stream}_windows as begin and extent, in steps, of a part of "
                f"each sequence, got {begin[row]:g} and {extent[row]:g} of row {row}"
            )
    return windows


def embedded_from(file: EmbeddingsFile, split: Split) -> Embedded:
    """The clips of a split, in its order, as a file has them.

    Raises:
      InputError: ids that are not the split's, that come twice or are missing; NaN.
    """
    order = match_ids(file.ids, split.ids, str(file.path))
    streams, means = {}, {}
    for stream in STREAMS:
        values = file.values[stream][order]
        if file.lengths:
            lengths = file.lengths[stream][order]
            values = _finite(file, split, stream, values, lengths)
            windows = file.windows[stream][order] if file.windows else whole_windows(lengths)
            streams[stream] = Sequences(values, lengths, np.asarray(windows))
            means[stream] = np.asarray(masked_mean(jnp.asarray(values), jnp.asarray(lengths)))
            if file.embeddings:
                means[stream] = file.embeddings[stream][order]
        else:
            values = _finite(file, split, stream, values, None)
            means[stream], steps = values, np.ones(len(values), np.int32)
            windows = np.asarray(whole_windows(steps))
            streams[stream] = Sequences(unit(values, stream)[:, None], steps, windows)
    return Embedded(
        **clips_of(split),
        **streams,
        visual_embeddings=means["visual"],
        audio_embeddings=means["audio"],
    )


def _finite(
    file: EmbeddingsFile, split: Split, stream: str, values: np.ndarray, lengths: np.ndarray | None
) -> np.ndarray:
    """The same values, zero in the padding."""
    if lengths is not None:
        real = np.arange(values.shape[1])[None] < lengths[:, None]
        values = np.where(real[..., None], values, np.float32(0))
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise InputError(
            f"{file.path}: expected finite {stream} embeddings, got NaN or infinity for "
            f"{split.ids[int(np.flatnonzero(bad)[0])]!r} ({int(bad.sum())} of {len(bad)} clips)"
        )
    return values


def about_file(file: EmbeddingsFile) -> dict:
    """A file's part of the document that says what it is."""
    return {
        "name": file.name,
        "run": str(file.path),
        "objective": "embeddings",
        "own_method": file.methods[-1],
        "trained_with": f"embeddings of {file.path.name}",
        "training": file.training,
        "parameters": file.parameters,
        "config": {},
    }


def match_ids(given: list[str], wanted: list[str], where: str) -> np.ndarray:
    """Where in `given` each of `wanted` is; every one once, and no others.

    Raises:
      InputError: ids that are missing, not wanted, or there twice; the first ones are named.
    """
    problems = []
    known = set(given)
    missing = [one for one in wanted if one not in known]
    others = sorted(known - set(wanted))
    twice = [one for one, count in Counter(given).items() if count > 1]
    for what, some in (("missing", missing), ("not in the split", others), ("twice", twice)):
        if some:
            problems.append(f"{len(some):,} {what}: {listed(map(repr, some), SHOWN)}")
    if problems:
        raise InputError(
            f"{where}: expected the {len(wanted):,} ids of the split, each once, got "
            f"{len(given):,} ({'; '.join(problems)})"
        )
    place = {one: number for number, one in enumerate(given)}
    return np.array([place[one] for one in wanted], int)


def chosen(split: Split, path: Path | None) -> Split:
    """The clips of a split that a file names, one id a line, in its order; None: all of them.

    Lines that begin with # are remarks, and spaces around an id are none of it, unless an id of
    the split is written so.

    Raises:
      InputError: no such file, ids that are not in the split or come twice.
    """
    if path is None:
        return split
    try:
        text = read_text(path, "a list of clips, an id a line", "correct it")
    except OSError as error:
        raise InputError(f"--ids: expected a text file with an id a line ({error})") from None
    place = {one: number for number, one in enumerate(split.ids)}
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    ids = [one if one in place else one.strip() for one in lines if _is_id(one, place)]
    unknown = [one for one in ids if one not in place]
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if unknown or twice or not ids:
        some, what = unknown or twice, "not in the split" if unknown else "named twice"
        got = f"{len(some):,} of {len(ids):,} {what}: {listed(map(repr, some), SHOWN)}"
        raise InputError(
            f"--ids {path}: expected ids of {split.data}, split {split.split}, each once, got "
            + (got if ids else "none")
        )
    return split.take([place[one] for one in ids])


def _is_id(line: str, known: Container[str]) -> bool:
    return line in known or bool(line.strip() and not line.startswith("#"))


def same_clips(other: Split, split: Split) -> Split:
    """The clips of `split` in another data set's features, in the same order.

    Raises:
      InputError: some are not there.
    """
    place = {one: number for number, one in enumerate(other.ids)}
    wanted = set(split.ids)
    theirs = [one for one in other.ids if one in wanted]
    match_ids(theirs, split.ids, str(other.data))
    return other.take([place[one] for one in split.ids])


def write(path: Path, embedded: Embedded, run: Run) -> None:
    """What a run makes of a split, as such a file."""
    arrays: dict[str, np.ndarray] = {
        "ids": np.array(embedded.ids),
        "name": np.array(run.objective.title),
        "parameters": np.array(parameters_of(run)),
        "training": np.array(trained_on(run)),
    }
    for stream in STREAMS:
        means, latents = getattr(embedded, f"{stream}_embeddings"), getattr(embedded, stream)
        if not run.objective.ranks_sequences:
            arrays[stream] = means
            continue
        arrays |= {stream: latents.values, f"{stream}_lengths": latents.lengths}
        arrays |= {f"{stream}_windows": latents.windows, f"{stream}_embeddings": means}
    name, options = run.objective.ranks_by()
    arrays["distance"] = np.array(json.dumps({"name": name, "options": options}))
    write_arrays(path, arrays)


def parameters_of(run: Run) -> int:
    """How many numbers a run has learned."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(run.params))


def trained_on(run: Run) -> str:
    """What a run has been trained on, in words."""
    return "; before that ".join(seen_by(run.config))

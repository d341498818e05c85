"""A model and features -> latents and embeddings of every clip, in the order of the clips.

`embed` reads features from disk; `embed_clips` takes them from memory, as `model` makes them from
files. Every clip is embedded once: the last batch is filled up so that no further program is
compiled, and what filled it is cut off again. Padding changes nothing (see `encoders`), so a clip
has the same latents alone as in any batch: up to rounding in `embed`, and in `embed_clips`, where
a clip's padding depends on itself only, to the bit.
"""

import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from scav_jax import sharding
from scav_jax.base.errors import InputError, number_of
from scav_jax.base.progress import progress_bar
from scav_jax.encoders import Towers
from scav_jax.features.batches import Padding, evaluation_batches, stack
from scav_jax.features.clip import (
    IMPORTED,
    Clip,
    check_resampled,
    fingerprint_difference,
    original,
    trim,
)
from scav_jax.features.store import Split
from scav_jax.objectives import Objective
from scav_jax.objectives.returns import kept_of, shown_of
from scav_jax.retrieve import aggregation_similarities, sequence_distances
from scav_jax.sequences import STREAMS, AudioVisual, Batch, Sequences
from scav_jax.train_step import bound_heads
from scav_jax.training.runs import Run

SHORTEST_PADDING = 16  # steps
VECTORS = ("embeddings", "sketches")  # of each stream of a clip


@dataclass(frozen=True, repr=False)
class Embedded:
    """The latents of K clips, on the host, and where each clip is.

    A stream that was not asked for, as in a query by sound, is None, and so are its embeddings;
    `partner` then says which steps it is taken to have.

    Attributes:
      ids: of the clips, in their order.
      sources: the file of each, with its folder where that is known.
      starts, ends: `[K]` float64, of each clip in its source, in seconds.
      labels: "" where none is known.
      visual: `[K, N, C]` float32, zero in the padding. Of a model that gives one vector a clip,
        the embedding is the sequence: one step, of length 1, so that its distances rank as cosines.
      audio: `[K, M, C]` float32, zero in the padding.
      visual_embeddings: `[K, E]`, as the objective embeds: the mean over time, not normalised.
      audio_embeddings: `[K, E]`.
      partner: where one stream was embedded alone, the steps and windows of the other one (values
        of width 0), as those of a silence, or of pictures, of its length.
      visual_sketches, audio_sketches: `[K, S]`, where the model has a sketch, `sketched_by`.
      contents: `base.documents.content_sample` of each source; None where nobody looked.
      seconds: how long it took, compiling and reading included.
      rejected: what could not be embedded: rows of `datasets.REJECTED_COLUMNS`.
    """

    ids: list[str]
    sources: list[str]
    starts: Float[np.ndarray, " K"]
    ends: Float[np.ndarray, " K"]
    labels: list[str]
    visual: Sequences | None
    audio: Sequences | None
    visual_embeddings: Float[np.ndarray, "K E"] | None
    audio_embeddings: Float[np.ndarray, "K E"] | None
    visual_sketches: Float[np.ndarray, "K S"] | None = None
    audio_sketches: Float[np.ndarray, "K S"] | None = None
    partner: Sequences | None = None
    sketched_by: str = ""
    contents: list[str] | None = None
    seconds: float = 0.0
    rejected: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        """What there is, and not its numbers: a notebook shows what a cell ends with."""
        words = [f"{name} {list(getattr(self, name).values.shape)}" for name in self.streams]
        counts = [number_of(len(self), "clip"), f"{len(self.rejected):,} rejected"]
        return f"Embedded({', '.join([*counts, *words])})"

    def take(self, numbers: Sequence[int]) -> "Embedded":
        """Some of the clips."""
        chosen = np.asarray(numbers, int)

        def part(value):
            if isinstance(value, list):
                return [value[number] for number in chosen]
            return jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], value)

        names = ["ids", "sources", "contents", "starts", "ends", "labels", "partner", *STREAMS]
        names += [f"{stream}_{what}" for stream in STREAMS for what in VECTORS]
        return replace(self, **{name: part(getattr(self, name)) for name in names})

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that were embedded."""
        return tuple(name for name in STREAMS if getattr(self, name) is not None)

    @property
    def latents(self) -> AudioVisual:
        """Both streams of all clips."""
        if self.visual is None or self.audio is None:
            raise InputError("expected clips with picture and sound, one of them was not embedded")
        return AudioVisual(self.visual, self.audio)


def embed(
    run: Run,
    split: Split,
    batch_size: int = 64,
    *,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Embedded:
    """Encodes every clip of a split.

    Args:
      run: the model; it says how streams are aligned.
      split: features of the extractor that the model was trained with.
      batch_size: how many clips at a time; does not change the result.
      progress: show a bar with the rate and the time left.
      mesh: devices of this process that share each batch; by default the parameters' own.

    Raises:
      InputError: features of another extractor, a broken clip, or latents that are not finite.
    """
    begin = time.perf_counter()
    function = partial(encode, run.encoders, run.objective, STREAMS)
    parts = of_every_clip(run, split, function, batch_size, progress=progress, mesh=mesh)
    streams = _streams(_gathered(parts, len(split)))
    seconds = time.perf_counter() - begin
    result = Embedded(**clips_of(split), **streams, seconds=seconds)
    _check_finite(result)
    return result


def mean_latents(
    run: Run, split: Split, batch_size: int = 64, *, progress: bool = False
) -> dict[str, Float[np.ndarray, "K C"]]:
    """By stream the means over time of what `embed` finds, which of many clips no memory holds."""

    def function(params: PyTree, batch: Batch) -> dict[str, np.ndarray]:
        found = encode(run.encoders, run.objective, STREAMS, params, batch)
        return {name: means_of(latents) for name, (latents, _) in jax.device_get(found).items()}

    parts = of_every_clip(run, split, function, batch_size, progress=progress)
    found = _gathered(parts, len(split))
    for stream, means in found.items():
        _check_means(split.ids, means, stream)
    return found


def means_of(latents: Sequences) -> Float[np.ndarray, "K C"]:
    """Means over time of what is zero in the padding."""
    return latents.values.sum(axis=1) / latents.lengths[:, None]


def clips_of(split: Split) -> dict[str, Any]:
    """The fields of `Embedded` that say which clips there are, and where."""
    folder = Path(split.videos) if split.videos else None
    return {
        "ids": list(split.ids),
        "sources": [str(folder / file) if folder else file for file in split.sources],
        "starts": split.starts,
        "ends": split.ends,
        "labels": list(split.labels),
    }


def of_every_clip(
    run: Run,
    split: Split,
    function: Callable[[PyTree, Batch], PyTree],
    batch_size: int,
    *,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Iterator[PyTree]:
    """What a function makes of all clips of a split, on the host, a batch after the other.

    Read to its end: it looks whether every clip was there.

    Args:
      run, split, batch_size, progress, mesh: as for `embed`.
      function: of parameters and a batch; every leaf of what it returns has the clips first.

    Raises:
      InputError: features of another extractor, or a broken clip.
    """
    check_features(run, split)
    size, params, place = min(batch_size, len(split)), run.params, lambda batch: batch
    if mesh is not None:
        size = -(-size // mesh.size) * mesh.size  # every device gets as many clips
        params = sharding.put_replicated(params, mesh)
        place = partial(sharding.put_batch, mesh=mesh)
    seen: list[np.ndarray] = []
    data = run.config["data"]
    with progress_bar(f"embed {split.split}", len(split), "clip", shown=progress) as bar:
        for batch in evaluation_batches(
            split, batch_size=size, align=data["align"], buckets=data["buckets"]
        ):
            full = jax.tree.map(partial(filled, size=size), batch)
            found = jax.device_get(function(params, place(full)))
            real = slice(len(batch.numbers))
            yield jax.tree.map(operator.itemgetter(real), found)
            seen.append(batch.numbers)
            bar.update(len(batch.numbers))
    assert np.array_equal(np.concatenate(seen), np.arange(len(split))), "clips lost on the way"


def embed_clips(
    run: Run, clips: Sequence[Clip], streams: Sequence[str] = STREAMS, *, batch_size: int = 1
) -> Embedded:
    """Encodes clips that are in memory.

    A clip's latents are the same bytes whatever it is embedded with, as long as `batch_size` is
    the same: it is padded by its own lengths only, beside clips of like lengths.

    Args:
      run: the model.
      clips: at least one, with features of the extractor that the model was trained with.
      streams: which of "visual" and "audio" are encoded; a clip needs features of both, since each
        says when the other one is heard or seen.
      batch_size: how many clips at a time.

    Raises:
      InputError: latents that are not finite.
    """
    begin = time.perf_counter()
    align = run.config["data"]["align"]
    groups: dict[Padding, list[int]] = {}
    for number, clip in enumerate(clips):
        visual, _, audio, _ = trim(clip, align)
        groups.setdefault(Padding(*map(padded_steps, (len(visual), len(audio)))), []).append(number)
    widths = clips[0].visual.shape[1], clips[0].audio.shape[1]

    def encoded() -> Iterator[_Encoded]:
        for padding, members in groups.items():
            for first in range(0, len(members), batch_size):
                some = np.asarray(members[first : first + batch_size])
                batch = stack((clips[number] for number in some), some, widths, padding, align)
                full = jax.tree.map(partial(filled, size=batch_size), batch)
                found = encode(run.encoders, run.objective, tuple(streams), run.params, full)
                yield jax.tree.map(operator.itemgetter(slice(len(some))), jax.device_get(found))

    numbers = [number for members in groups.values() for number in members]
    in_order = operator.itemgetter(np.argsort(numbers))
    result = Embedded(
        ids=[clip.id for clip in clips],
        sources=[clip.source for clip in clips],
        starts=np.array([clip.start for clip in clips], np.float64),
        ends=np.array([clip.end for clip in clips], np.float64),
        labels=[clip.label for clip in clips],
        **jax.tree.map(in_order, _streams(_gathered(encoded(), len(clips)))),
        seconds=time.perf_counter() - begin,
    )
    _check_finite(result)
    return result


def padded_steps(steps: int) -> int:
    """The padded length of a sequence: few different ones, at most a quarter longer.

    >>> [padded_steps(steps) for steps in (3, 24, 25, 62, 250)]
    [16, 24, 28, 64, 256]
    """
    if steps <= SHORTEST_PADDING:
        return SHORTEST_PADDING
    unit = 2 ** max((steps - 1).bit_length() - 3, 0)  # 5 to 8 units
    return -(-steps // unit) * unit


def join(parts: Sequence[Embedded]) -> Embedded:
    """Several results as one; all have the same streams."""
    joined = {}
    for stream in (*STREAMS, "partner"):
        present = [getattr(part, stream) is not None for part in parts]
        if any(present) != all(present):
            raise InputError(f"expected {stream} latents in every part, some have none")
        latents = [getattr(part, stream) for part in parts]
        joined[stream] = _gathered(latents, sum(map(len, parts))) if all(present) else None
    for stream in STREAMS:
        for name in (f"{stream}_{what}" for what in VECTORS):
            vectors = [getattr(part, name) for part in parts]
            joined[name] = None if any(v is None for v in vectors) else np.concatenate(vectors)
    return Embedded(
        ids=[name for part in parts for name in part.ids],
        sources=[source for part in parts for source in part.sources],
        starts=np.concatenate([part.starts for part in parts]),
        ends=np.concatenate([part.ends for part in parts]),
        labels=[label for part in parts for label in part.labels],
        contents=[one for part in parts for one in part.contents or [""] * len(part)],
        **joined,
        sketched_by=parts[0].sketched_by,
        seconds=sum(part.seconds for part in parts),
        rejected=[row for part in parts for row in part.rejected],
    )


def all_against_all(
    embedded: Embedded, name: str, options: dict, *, progress: bool = False
) -> tuple[Float[np.ndarray, "V A"], Float[np.ndarray, "V A"]]:
    """Similarities of embeddings and distances of latents: what every method ranks by.

    Args:
      embedded: all clips.
      name: a distance of `scav_jax.distances`.
      options: its options.
      progress: show a bar with the rate and the time left.
    """
    similarities = aggregation_similarities(embedded.visual_embeddings, embedded.audio_embeddings)
    return similarities, sequence_distances(embedded.latents, name, options, progress=progress)


def check_features(run: Run, split: Split) -> None:
    """Raises `InputError` unless the split has the features that the model was trained on.

    A resampled copy of them serves as well as they do, where the model resamples in the same way.
    """
    align = run.config["data"]["align"]
    check_resampled(split.fingerprint, align=align, **run.encoders.reading)
    differs = fingerprint_difference(original(run.fingerprint), original(split.fingerprint))
    if differs:
        raise InputError(
            f"{split.data}: expected features of the extractor that {run.path or 'the model'} was "
            f"trained with, these differ ({differs}); {_same_again(run.fingerprint)}"
        )


def _same_again(fingerprint: Mapping[str, Any]) -> str:
    """What brings a model more clips with the features that it knows."""
    if IMPORTED in fingerprint.get("backbone", {}):
        return "import all clips with one manifest, and train on that, as splits of one data set"
    return "extract the videos again with its settings"


# For each stream that is encoded: its latents and their means; "partner" is the other one.
_Encoded = dict[str, tuple[Sequences, np.ndarray]]


@partial(jax.jit, static_argnums=(0, 1, 2))
def encode(
    encoders: Towers, objective: Objective, streams: tuple[str, ...], params: PyTree, batch: Batch
) -> dict[str, tuple[Sequences, Float[Array, "B E"]]]:
    shown, variables = shown_of(objective, batch), {"params": params["encoders"]}
    encoded = encoders.apply(variables, shown, deterministic=True)
    heads = bound_heads(encoders, objective, params)
    found = {}
    for stream in STREAMS:
        features = jax.tree.map(jnp.asarray, getattr(batch.features, stream))
        kept = objective.kept(heads, stream, getattr(encoded, stream), features)
        kept = kept_of(objective, kept, len(batch.numbers))
        if stream in streams:
            found[stream] = kept
        else:  # of a stand-in: when it is heard or seen, and nothing else
            found["partner"] = kept[0].replace(values=kept[0].values[..., :0]), kept[1][..., :0]
    return found


def _gathered(parts: Iterable[PyTree], count: int) -> PyTree:
    """Parts with some of the clips first in every leaf -> arrays of all clips, zero in the padding.

    Each part is copied to its place and let go, so that memory holds the latents of a split once.
    """
    whole, first = None, 0
    for part in parts:
        whole = part if whole is None else whole
        whole = jax.tree.map(partial(_with_room, count=count), part, whole)
        jax.tree.map(partial(_put, first=first), part, whole)
        first += len(jax.tree.leaves(part)[0])
    return whole


def _with_room(leaf: np.ndarray, there: np.ndarray, count: int) -> np.ndarray:
    """An array of `count` rows, at least as large as one of both, that holds what is `there`."""
    shape = (count, *np.maximum(leaf.shape[1:], there.shape[1:]))
    if there.shape == shape and there is not leaf:
        return there
    larger = np.zeros(shape, leaf.dtype)
    if there is not leaf:
        larger[tuple(map(slice, there.shape))] = there
    return larger


def _put(leaf: np.ndarray, into: np.ndarray, first: int) -> None:
    into[(slice(first, first + len(leaf)), *map(slice, leaf.shape[1:]))] = leaf


def _streams(encoded: _Encoded) -> dict[str, Sequences | np.ndarray | None]:
    """The fields of `Embedded` that hold latents."""
    found: dict[str, Sequences | np.ndarray | None] = {}
    for stream in STREAMS:
        found[stream], found[f"{stream}_embeddings"] = encoded.get(stream, (None, None))
    return found | {"partner": encoded.get("partner", (None,))[0]}


def filled(leaf: np.ndarray, size: int) -> np.ndarray:
    """A batch of `size` rows: the last row repeated behind what is there."""
    missing = size - len(leaf)
    return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf


def _check_finite(embedded: Embedded) -> None:
    for stream in STREAMS:
        if getattr(embedded, stream) is None:
            continue
        _check_means(embedded.ids, getattr(embedded, f"{stream}_embeddings"), stream)
        # An embedding may be of something else than the latents, as a static part is.
        _check_means(embedded.ids, means_of(getattr(embedded, stream)), stream)


def _check_means(ids: Sequence[str], means: Float[np.ndarray, "K E"], stream: str) -> None:
    finite = np.isfinite(means).all(axis=1)
    if not finite.all():
        first = ids[int(np.flatnonzero(~finite)[0])]
        raise InputError(
            f"clip {first!r}: expected finite {stream} latents, got NaN or infinity "
            f"({int((~finite).sum())} of {len(finite)} clips); the model holds NaN: look at "
            "its training log"
        )

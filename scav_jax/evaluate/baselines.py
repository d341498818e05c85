"""Baselines that cost nothing: what a trained model has to beat, fitted on train in seconds.

onset envelopes   how much the picture brightens, against how much the spectrum rises, in cells of
                  40 ms, each less its mean: their cosine. Nothing is learned but a lag.
linear CCA        canonical correlations of steps, the picture interpolated at those of the sound,
                  in closed form; compared as SCAV compares latents
linear CCA, both parts   one of steps less their clip's mean, one of the clips' means, summed with
                  a weight of the validation split, as the objective "separate" does

A model that does not beat them is not worth its electricity.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.features.batches import evaluation_batches
from scav_jax.features.sides import declared, playable
from scav_jax.objectives.separate import best_weight
from scav_jax.retrieval.embed import Embedded, all_against_all, check_features, clips_of
from scav_jax.retrieval.own_data import own_split
from scav_jax.sequences import Batch, Sequences, resample_pairs, unit, whole_windows
from scav_jax.training.runs import Run

CELL_S = 0.04
LAGS = range(-4, 5)  # of the sound behind the picture, in cells
COMPONENTS = 32
RIDGE = 0.1  # of the mean variance, added to every one
MOST = 1024  # numbers of a step; wider ones are first projected onto as many random directions
BATCH = 64


class Baseline(NamedTuple):
    """One row, or several by parts.

    Attributes:
      name: of the row.
      embedded: the clips of the split.
      methods: ways of retrieval that make sense.
      distance: (name, options) that ranks sequences.
      parameters: how many numbers were fitted.
    """

    name: str
    embedded: Embedded
    methods: tuple[str, ...]
    distance: tuple[str, dict]
    parameters: int


def baselines(
    train: store.Split, validation: store.Split, split: store.Split, align: str
) -> list[Baseline]:
    """All of them, fitted on `train`; the weight of a sum is that of `validation`.

    Args:
      train, validation, split: of one extractor's features.
      align: how streams are laid onto each other, "time" or "index".
    """
    return [
        onsets(train, split, align),
        *correlations(train, validation, split, align),
    ]


def fitted_on(source: object) -> tuple[store.Split, store.Split]:
    """A run's training and validation clips; said before the work: `InputError` of what is no run,
    and of clips that are gone or others now.
    """
    if not isinstance(source, Run):
        raise InputError("--baselines: expected --run, on whose clips they are fitted, got none")
    train, validation = (own_split(source, role) for role in ("train", "validation"))
    check_features(source, train)
    return train, validation


# ---- onset envelopes -----------------------------------------------------------------------------


def onsets(train: store.Split, split: store.Split, align: str) -> Baseline:
    """Cosines of onset envelopes, with the lag that fits the training clips best."""
    visual, audio = envelopes(train, align)
    fits = [
        np.mean(np.sum(centred_unit_rows(visual) * centred_unit_rows(lagged(audio, k)), axis=1))
        for k in LAGS
    ]
    lag = LAGS[int(np.argmax(fits))]
    visual, audio = envelopes(split, align)
    vectors = [centred_unit_rows(visual), centred_unit_rows(lagged(audio, lag))]
    # A still or a silent clip has no onsets: a last number that the other stream has not.
    still = [np.where(np.any(one, axis=1), 0.0, 1.0)[:, None] for one in vectors]
    nothing = np.zeros_like(still[0])
    vectors[0] = np.concatenate([vectors[0], still[0], nothing], axis=1)
    vectors[1] = np.concatenate([vectors[1], nothing, still[1]], axis=1)
    return Baseline(
        "onset envelopes", _embedded(split, *vectors), ("aggregation",), ("euclidean", {}), 1
    )


def envelopes(
    split: store.Split, align: str
) -> tuple[Float[np.ndarray, "K cells"], Float[np.ndarray, "K cells"]]:
    """What appears in the picture and in the sound of each clip, in cells of 40 ms; NaN beyond."""
    frames = playable(split.fingerprint)["audio"]
    stacked = frames if isinstance(frames, int) else 1
    momentary = declared(split.fingerprint, "visual").get("momentary")
    rows = []
    for batch in _batches(split, align, "onset envelopes"):
        for clip in _clips(batch):
            seen, heard = clip.visual, clip.audio
            seen = seen[:, :momentary]  # colours, not their changes
            heard = heard.reshape(len(heard) * stacked, -1)
            cells = max(round(clip.seconds / CELL_S), 2)
            windows = clip.windows[0], clip.windows[1] * stacked
            rows.append([_in_cells(rises(one), window, cells)
                         for one, window in zip((seen, heard), windows, strict=True)])  # fmt: skip
    most = max(len(row[0]) for row in rows)
    filled = [[np.pad(one, (0, most - len(one)), constant_values=np.nan) for one in row]
              for row in rows]  # fmt: skip
    visual, audio = np.asarray(filled, np.float64).transpose(1, 0, 2)
    return visual, audio


def rises(values: Float[np.ndarray, "T C"]) -> Float[np.ndarray, " T"]:
    """How much a step lies above the one before, mean over channels; 0 for the first."""
    return np.maximum(np.diff(values, axis=0, prepend=values[:1]), 0.0).mean(axis=1)


def _in_cells(
    values: Float[np.ndarray, " T"], window: Float[np.ndarray, "2"], cells: int
) -> Float[np.ndarray, " cells"]:
    """Sums of the steps whose centres lie in each cell of a window; several cells share a step."""
    begin, extent = window
    steps = np.arange(len(values))
    if extent < cells:  # longer than a cell each: each cell reads the step at its centre
        at = begin + (np.arange(cells) + 0.5) * extent / cells
        return values[np.clip(np.floor(at).astype(int), 0, len(values) - 1)]
    place = np.floor((steps + 0.5 - begin) * cells / extent).astype(int)
    inside = (place >= 0) & (place < cells)
    return np.bincount(place[inside], values[inside], minlength=cells)


def lagged(values: Float[np.ndarray, "K n"], lag: int) -> Float[np.ndarray, "K n"]:
    """The same so many cells later (earlier below 0); what comes in is the nearest cell.

    NaN lies beyond a clip's end and stays there, so longer clips beside it change nothing.
    """
    there = np.isfinite(values)
    at = np.clip(np.arange(values.shape[1]) - lag, 0, there.sum(axis=1, keepdims=True) - 1)
    return np.where(there, np.take_along_axis(values, at, axis=1), np.nan)


def centred_unit_rows(values: Float[np.ndarray, "K n"]) -> Float[np.ndarray, "K n"]:
    """Rows less their mean, of length 1; 0 where there is nothing, or nothing changes."""
    there = np.isfinite(values)
    mean = np.nansum(values, axis=1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
    moved = np.where(there, values - mean, 0.0)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.where(norms > 1e-9, moved / np.maximum(norms, 1e-9), 0.0)


# ---- linear CCA ----------------------------------------------------------------------------------


class Maps(NamedTuple):
    """Canonical directions: `(x - mean) @ matrix` of both streams; their correlations."""

    means: tuple[Float[np.ndarray, " Dx"], Float[np.ndarray, " Dy"]]
    matrices: tuple[Float[np.ndarray, "Dx k"], Float[np.ndarray, "Dy k"]]
    correlations: Float[np.ndarray, " k"]

    def apply(self, number: int, values: Float[np.ndarray, "*n D"]) -> Float[np.ndarray, "*n k"]:
        """Stream 0 or 1."""
        return (values - self.means[number]) @ self.matrices[number]

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(one.size for one in (*self.means, *self.matrices))


class Moments:
    """Sums of pairs of vectors, from which canonical correlations follow.

    Of vectors less the mean of the first ones: float32 has no digits for a large common part too.
    """

    def __init__(self):
        self.total: np.ndarray | None = None
        self.origin = np.zeros(0)
        self.width = 0

    def add(self, x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"]) -> None:
        """n more pairs."""
        both = np.concatenate([x, y], axis=1)
        if self.total is None:
            self.origin = both.mean(axis=0, dtype=np.float64)
        ones = np.ones((len(x), 1))
        both = np.concatenate([both - self.origin, ones], axis=1).astype(np.float32)
        product = (both.T @ both).astype(np.float64)
        self.total = product if self.total is None else self.total + product
        self.width = x.shape[1]

    def fitted(self, components: int = COMPONENTS) -> Maps:
        """The strongest pairs of directions, each scaled by the root of its correlation.

        The singular value decomposition of `Cxx^-1/2 Cxy Cyy^-1/2` (Hotelling 1936), with a ridge.
        """
        count, width = self.total[-1, -1], self.width
        mean = self.total[-1, :-1] / count
        covariance = self.total[:-1, :-1] / count - np.outer(mean, mean)
        white = [_whitening(covariance[part, part]) for part in
                 (slice(None, width), slice(width, None))]  # fmt: skip
        left, strength, right = np.linalg.svd(white[0] @ covariance[:width, width:] @ white[1])
        k = min(components, len(strength))
        scale = np.sqrt(strength[:k])
        matrices = white[0] @ left[:, :k] * scale, white[1] @ right[:k].T * scale
        mean += self.origin
        return Maps((mean[:width], mean[width:]), matrices, strength[:k])


def _whitening(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    return (vectors / np.sqrt(values + RIDGE * values.mean() + 1e-12)) @ vectors.T


def correlations(
    train: store.Split, validation: store.Split, split: store.Split, align: str
) -> list[Baseline]:
    """CCA of whole steps; and of both parts, which are a row each and summed."""
    moments = {name: Moments() for name in ("whole", "dynamic", "static")}
    for batch in _batches(train, align, "linear CCA"):
        pairs = [_pair(clip) for clip in _clips(_on_one_grid(batch))]
        means = [[one.mean(axis=0) for one in pair] for pair in pairs]
        moved = [[x - mean for x, mean in zip(*both, strict=True)]
                 for both in zip(pairs, means, strict=True)]  # fmt: skip
        for name, some in (("whole", pairs), ("dynamic", moved)):
            moments[name].add(*(np.concatenate(column) for column in zip(*some, strict=True)))
        moments["static"].add(*(np.stack(column) for column in zip(*means, strict=True)))
    maps = {name: one.fitted() for name, one in moments.items()}
    whole = _projected(split, align, maps["whole"])
    width = maps["static"].matrices[0].shape[1]
    options = {"static_width": width, "static_weight": 0.0}
    name = "euclidean+static"
    chosen = _parted(validation, align, maps["dynamic"], maps["static"])
    weight = best_weight(*all_against_all(chosen, name, options))
    parts = _parted(split, align, maps["dynamic"], maps["static"])
    options["static_weight"] = weight
    both = maps["dynamic"].parameters + maps["static"].parameters
    usual = ("sequence", "aggregation")
    return [
        Baseline("linear CCA", whole, usual, ("euclidean", {}), maps["whole"].parameters),
        Baseline("linear CCA, both parts", parts, usual, (name, options), both),
    ]


def _projected(split: store.Split, align: str, maps: Maps) -> Embedded:
    pairs = [
        [maps.apply(number, values) for number, values in enumerate(_pair(clip))]
        for batch in _batches(split, align, "linear CCA")
        for clip in _clips(_on_one_grid(batch))
    ]
    streams = list(zip(*pairs, strict=True))
    means = [np.stack([one.mean(axis=0) for one in clips]) for clips in streams]
    return _embedded(split, *means, [_sequences(clips) for clips in streams])


def _parted(split: store.Split, align: str, dynamic: Maps, static: Maps) -> Embedded:
    """As the objective "separate" keeps clips: a dynamic sequence beside a static vector."""
    columns: list[list[np.ndarray]] = [[], []]
    vectors: list[list[np.ndarray]] = [[], []]
    for batch in _batches(split, align, "linear CCA of both parts"):
        for clip in _clips(_on_one_grid(batch)):
            for number, values in enumerate(_pair(clip)):
                mean = values.mean(axis=0)
                moved = (values - mean) @ dynamic.matrices[number]
                moved /= max(np.sqrt(np.mean(moved**2)), 1e-9)
                vector = unit(static.apply(number, mean)[None])[0]
                beside = np.tile(vector * np.sqrt(moved.shape[1]), (len(moved), 1))
                columns[number].append(np.concatenate([moved, beside], axis=1))
                vectors[number].append(vector)
    sequences = [_sequences(column) for column in columns]
    return _embedded(split, *(np.stack(one) for one in vectors), sequences)


# ---- clips ---------------------------------------------------------------------------------------


class _ClipFeatures(NamedTuple):
    """One clip's features, and the windows of both streams in steps."""

    visual: Float[np.ndarray, "N Dv"]
    audio: Float[np.ndarray, "M Da"]
    windows: Float[np.ndarray, "2 2"]
    seconds: float


def _batches(split: store.Split, align: str, what: str) -> Iterator[Batch]:
    size = min(BATCH, len(split))
    with progress_bar(f"{what}, {split.split}", len(split), "clip") as bar:
        for batch in evaluation_batches(split, batch_size=size, align=align, buckets=4):
            yield batch
            bar.update(len(batch.seconds))


def _on_one_grid(batch: Batch) -> Batch:
    """The pictures at the steps of their own sounds, as SCAV takes them before the towers."""
    wide = [s.replace(values=np.asarray(s.values, np.float32)) for s in batch.features]
    return batch._replace(features=jax.device_get(_resampled(type(batch.features)(*wide))))


_resampled = jax.jit(lambda features: resample_pairs(features, "visual_to_audio"))


def _clips(batch: Batch) -> Iterator[_ClipFeatures]:
    """The clips of a batch, without padding; without a clock, they last as 25 frames a second."""
    visual, audio = (jax.tree.map(np.asarray, stream) for stream in batch.features)
    for row, seconds in enumerate(np.asarray(batch.seconds)):
        of_both = [
            np.asarray(stream.values[row, : stream.lengths[row]], np.float64)
            for stream in (visual, audio)
        ]
        lasts = float(seconds[1] - seconds[0])
        windows = np.stack([stream.windows[row] for stream in (visual, audio)])
        if not np.isfinite(lasts):
            lasts = CELL_S * len(of_both[0])
        yield _ClipFeatures(*of_both, windows, lasts)


def _pair(clip: _ClipFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Steps on one grid, none wider than `MOST`."""
    return tuple(
        one if one.shape[1] <= MOST else one.astype(np.float32) @ _directions(one.shape[1])
        for one in (clip.visual, clip.audio)
    )


@functools.cache
def _directions(width: int) -> Float[np.ndarray, "D most"]:
    """Random directions, the same in every run; float32, as moments are."""
    drawn = np.random.default_rng(width).normal(size=(width, MOST)) / np.sqrt(MOST)
    return drawn.astype(np.float32)


def _sequences(clips: Sequence[np.ndarray]) -> Sequences:
    lengths = np.array([len(one) for one in clips], np.int32)
    values = np.zeros((len(clips), lengths.max(), clips[0].shape[1]), np.float32)
    for row, one in enumerate(clips):
        values[row, : len(one)] = one
    return Sequences(values, lengths, np.asarray(whole_windows(lengths)))


def _embedded(
    split: store.Split,
    visual: Float[np.ndarray, "K E"],
    audio: Float[np.ndarray, "K E"],
    sequences: Sequence[Sequences] | None = None,
) -> Embedded:
    """Vectors, and sequences where there are any; else a vector is a sequence of one step."""
    vectors = [np.asarray(one, np.float32) for one in (visual, audio)]
    if sequences is None:
        sequences = [_sequences(list(unit(one)[:, None])) for one in vectors]
    return Embedded(
        **clips_of(split),
        visual=sequences[0],
        audio=sequences[1],
        visual_embeddings=vectors[0],
        audio_embeddings=vectors[1],
    )

"""A model and features on disk -> latents and embeddings of every clip, in the order of the split.

Every clip is embedded once: the last batch is filled up so that no further program is compiled,
and what filled it is cut off again. Padding changes nothing (see `encoders`), so a clip has the
same latents alone as in any batch.
"""

import operator
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from scav_jax import sharding
from scav_jax.batches import evaluation_batches
from scav_jax.checkpoints import Run
from scav_jax.datasets import Split
from scav_jax.encoders import Encoders
from scav_jax.errors import InputError
from scav_jax.features import check_resampled, fingerprint_difference, original
from scav_jax.progress import progress_bar
from scav_jax.sequences import AudioVisual, Sequences, masked_mean


@dataclass(frozen=True)
class Embedded:
    """The latents of K clips, on the host.

    Attributes:
      ids: of the clips, in the order of the split.
      visual: `[K, N, C]` float32, zero in the padding.
      audio: `[K, M, C]` float32, zero in the padding.
      visual_embeddings: `[K, C]`, the mean over time, not normalised.
      audio_embeddings: `[K, C]`.
      seconds: how long it took, compiling and reading included.
    """

    ids: list[str]
    visual: Sequences
    audio: Sequences
    visual_embeddings: Float[np.ndarray, "K C"]
    audio_embeddings: Float[np.ndarray, "K C"]
    seconds: float

    @property
    def latents(self) -> AudioVisual:
        """Both streams of all clips."""
        return AudioVisual(self.visual, self.audio)


def batches(
    split: Split, batch_size: int, align: str, buckets: int = 4
) -> Iterator[tuple[AudioVisual, Int[np.ndarray, " batch"]]]:
    """All clips of a split once, in order, with their numbers; the last batch is smaller."""
    return evaluation_batches(split, batch_size=batch_size, align=align, buckets=buckets)


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
    check_features(run, split)
    begin = time.perf_counter()
    size, params, place = min(batch_size, len(split)), run.params["encoders"], lambda batch: batch
    if mesh is not None:
        size = -(-size // mesh.size) * mesh.size  # every device gets as many clips
        params = sharding.put_replicated(params, mesh)
        place = partial(sharding.put_batch, mesh=mesh)
    parts: list[tuple[AudioVisual, tuple[np.ndarray, np.ndarray]]] = []
    seen: list[np.ndarray] = []
    data = run.config["data"]
    with progress_bar(f"embed {split.split}", len(split), "clip", shown=progress) as bar:
        for batch, numbers in batches(split, size, data["align"], data["buckets"]):
            full = jax.tree.map(partial(_fill, size=size), batch)
            encoded = jax.device_get(_encode(run.encoders, params, place(full)))
            real = slice(len(numbers))
            parts.append(jax.tree.map(operator.itemgetter(real), encoded))
            seen.append(numbers)
            bar.update(len(numbers))
    assert np.array_equal(np.concatenate(seen), np.arange(len(split))), "clips lost on the way"
    visual, audio = (_join([part[0][stream] for part in parts]) for stream in (0, 1))
    embeddings = [np.concatenate([part[1][stream] for part in parts]) for stream in (0, 1)]
    result = Embedded(list(split.ids), visual, audio, *embeddings, time.perf_counter() - begin)
    _check_finite(result)
    return result


def check_features(run: Run, split: Split) -> None:
    """Raises `InputError` unless the split has the features that the model was trained on.

    A resampled copy of them serves as well as they do, where the model resamples in the same way.
    """
    check_resampled(
        split.fingerprint,
        align=run.config["data"]["align"],
        direction=run.encoders.pre_resample,
    )
    differs = fingerprint_difference(original(run.fingerprint), original(split.fingerprint))
    if differs:
        raise InputError(
            f"{split.data}: expected features of the extractor that {run.path or 'the model'} was "
            f"trained with, these differ ({differs}); extract the videos again with its settings"
        )


@partial(jax.jit, static_argnums=0)
def _encode(
    encoders: Encoders, params: PyTree, features: AudioVisual
) -> tuple[AudioVisual, tuple[Float[Array, "B C"], Float[Array, "B C"]]]:
    encoded = encoders.apply({"params": params}, features, deterministic=True)
    visual, audio = (masked_mean(stream.values, stream.lengths) for stream in encoded)
    return encoded, (visual, audio)


def _fill(leaf: np.ndarray, size: int) -> np.ndarray:
    """A batch of `size` rows: the last row repeated behind what is there."""
    missing = size - len(leaf)
    return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf


def _join(parts: list[Sequences]) -> Sequences:
    """Batches of different padding as one."""
    steps = max(part.values.shape[1] for part in parts)
    values = np.zeros(
        (sum(len(part.lengths) for part in parts), steps, parts[0].values.shape[2]), np.float32
    )
    first = 0
    for part in parts:
        values[first : first + len(part.lengths), : part.values.shape[1]] = part.values
        first += len(part.lengths)
    return Sequences(
        values=values,
        lengths=np.concatenate([part.lengths for part in parts]),
        windows=np.concatenate([part.windows for part in parts]),
    )


def _check_finite(embedded: Embedded) -> None:
    for stream in ("visual", "audio"):
        finite = np.isfinite(getattr(embedded, f"{stream}_embeddings")).all(axis=1)
        if not finite.all():
            first = embedded.ids[int(np.flatnonzero(~finite)[0])]
            raise InputError(
                f"clip {first!r}: expected finite {stream} latents, got NaN or infinity "
                f"({int((~finite).sum())} of {len(finite)} clips); the model holds NaN: look at "
                "its training log"
            )

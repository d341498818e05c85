"""Copies of data sets whose visual steps lie at the audio steps: less to store and to read.

At 25 frames a second the visual stream becomes 4 times smaller, a clip of CLIP and BEATs features
1.3 times (the audio stream is the larger part). What training with `encoders.pre_resample =
"visual_to_audio"` computes at every step is done once, in float32, by the same function
(`sequences.resample_pairs`), and stored in float16. Batches of a copy are those of the original,
resampled, up to that rounding; resampling them again reads each step at its own place.

The fingerprint says what was done (`resampled`), and a copy serves no other setting
(`features.check_resampled`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.features.clip import STORED_DTYPE, Clip, Window, trim, used_span
from scav_jax.sequences import Sequences
from scav_jax.sequences import resample as resample_sequence

PADDED_TO = 32  # steps: so that few programs are compiled, whatever the lengths


def write_resampled(data: Path, out: Path, *, align: str = "time") -> None:
    """Writes the copy of a whole data set; it appears at `out` whole or not at all.

    Args:
      data: a data set of original features.
      out: a path where nothing is, or an empty folder.
      align: "time" or "index", as `data.align` will be in training (see `features.trim`).

    Raises:
      InputError: `data` is no data set, or is a copy already; `out` exists.
    """
    data = Path(data)
    about = store.read_about(data)
    fingerprint = about["fingerprint"]
    if "resampled" in fingerprint:
        raise InputError(f"{data}: expected original features, these are a resampled copy already")
    how = {"direction": "visual_to_audio", "align": align, "points": 1, "rise": 0.0, "revision": 1}
    store.write(
        _clips(data, align),
        out,
        fingerprint={**fingerprint, "resampled": how},
        videos=about["videos"],
        rejected=store.read_rejected(data),
        manifest=about["manifest"],
    )


def _clips(data: Path, align: str) -> Iterator[tuple[str, Clip]]:
    counts = store.splits(data)
    with progress_bar("resampling", sum(counts.values()), "clip") as bar:
        for name in counts:
            split = store.read(data, name)
            split.check_both_streams()
            for number in range(len(split)):
                yield name, resampled(split[number], align)
                bar.update()


def resampled(clip: Clip, align: str = "time") -> Clip:
    """A clip with its visual stream at the steps of its audio stream that are used.

    Args:
      clip: as extracted, with N visual and M audio steps.
      align: see `features.trim`.

    Returns:
      The same clip with m <= M steps in both streams, which cover the same seconds, and with
      `shared` as it was.
    """
    visual, visual_window, audio, audio_window = trim(clip, align)
    values = _at_audio_steps(visual, visual_window, len(audio), audio_window)
    shared = clip.audio_span if align == "index" else used_span(clip)
    step_s = (clip.audio_span[1] - clip.audio_span[0]) / len(clip.audio)
    begin = shared[0] - audio_window[0] * step_s
    span = begin, begin + len(audio) * step_s
    return replace(
        clip,
        visual=values.astype(STORED_DTYPE),
        audio=audio,
        visual_span=span,
        audio_span=span,
        shared=shared,
    )


def _at_audio_steps(
    visual: Float[np.ndarray, "n Dv"], window: Window, steps: int, audio_window: Window
) -> Float[np.ndarray, "m Dv"]:
    """What `sequences.resample_pairs` makes of the visual stream, in float32."""
    padding = -len(visual) % PADDED_TO
    source = Sequences(
        values=np.pad(visual.astype(np.float32), ((0, padding), (0, 0))),
        lengths=np.int32(len(visual)),
        windows=np.array(window, np.float32),
    )
    padded = steps + -steps % PADDED_TO
    values = _resample(source, np.int32(steps), np.array(audio_window, np.float32), padded)
    return np.asarray(values)[:steps]


_resample = jax.jit(resample_sequence, static_argnums=3)

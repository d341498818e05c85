"""Inspects a data set: reads every clip, hashes it, and looks for streams that do not change."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.extract.decoding.usable import MIN_CLIP_S, SILENT_PEAK, STILL_LEVELS
from scav_jax.features import store
from scav_jax.inspect.findings import Facts, Fault, digest, document
from scav_jax.inspect.near import NEAR, signature

CONSTANT_SHARE = 0.01  # talking heads before a still camera have 0.026 (features of `plain`)
THREADS = 4
THRESHOLDS = {
    "constant": f"the steps of a stream differ from their mean by less than {CONSTANT_SHARE:.0%} "
    "of their own size (root mean squares)",
    "silent, still, too short": "were rejected when features were extracted, unknown where they "
    f"were imported: a peak below {SILENT_PEAK:g} of full scale; no cell of an 8 x 8 grid that "
    f"changes by {STILL_LEVELS:g} of 255; less than {MIN_CLIP_S:g} s with picture and sound",
    "duplicates": "equal bytes of the stored features of both streams, or of one",
    "near-duplicates": NEAR,
}


def inspect_features(data: Path) -> dict:
    """The document (see `findings`) of a data set.

    Raises:
      InputError: it is no data set, or its lists do not fit its records.
    """
    data = Path(data)
    about = store.read_about(data)
    counts = store.splits(data)
    clips: list[Facts] = []
    faults = [
        Fault(row["id"], "", row["stage"], row["reason"]) for row in store.read_rejected(data)
    ]
    bar = progress_bar("inspecting", sum(counts.values()), "clip")
    with ThreadPoolExecutor(THREADS) as threads, bar:
        for name in counts:
            split = store.read(data, name)
            for clip, found in threads.map(partial(inspect_clip, split), range(len(split))):
                clips += [clip] if clip else []
                faults += found
                bar.update()
    shown = ("fingerprint", "fingerprint_id", "visual_width", "audio_width", "visual_dtype")
    shown += ("audio_dtype", "videos")
    return document(
        clips,
        faults,
        kind="features",
        path=str(data),
        disk_bytes=sum(file.stat().st_size for file in data.rglob("*") if file.is_file()),
        thresholds=THRESHOLDS,
        about={key: about[key] for key in shown},
    )


def inspect_clip(split: store.Split, number: int) -> tuple[Facts | None, list[Fault]]:
    """The facts of one clip, None where it cannot be read, and its faults."""
    name = split.ids[number]
    try:
        stored = split[number]
    except InputError as error:
        return None, [Fault(name, split.split, "read", f"unreadable: {error}")]
    begin, end = stored.visual_span
    streams = {"picture": stored.visual, "sound": stored.audio}
    streams = {what: values for what, values in streams.items() if len(values)}
    digests = {what: digest(values) for what, values in streams.items()}
    clip = Facts(
        id=name,
        split=split.split,
        label=stored.label,
        source=stored.source,
        seconds=stored.end - stored.start,
        frame_rate=round(len(stored.visual) / (end - begin), 3) if end > begin else 0.0,
        digests={" and ".join(digests): "".join(digests.values()), **digests},
        signatures={w: s for w, v in streams.items() if (s := signature(v)) is not None},
    )
    faults = [
        Fault(name, split.split, "features", f"constant {what}: {share:.2%} change")
        for what, values in streams.items()
        if (share := change(values)) < CONSTANT_SHARE
    ]
    return clip, faults


def change(values: Shaped[np.ndarray, "T C"]) -> float:
    """How far steps lie from their mean over time, relative to their size; 0 when all are equal.

    >>> change(np.ones((3, 2), np.float16)), change(np.array([[-1.0], [1.0]]))
    (0.0, 1.0)
    """
    wide = values.astype(np.float32)
    size = float(np.mean(np.square(wide)))
    mean = float(np.mean(np.square(wide.mean(axis=0, dtype=np.float64))))
    return float(np.sqrt(max(size - mean, 0.0) / size)) if size > 0 else 0.0

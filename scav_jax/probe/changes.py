"""Video fingerprinting: is a clip still found when its copy was changed?

Copies are video files, written and read again by the extractor as a user's would be. A copy asks
with its picture, its sound, or both (the sum of the cosines); all clips of the split, as they were,
answer. An original that another is exactly as near as is not found.
"""

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float, Int, UInt8

from scav_jax.base.containers import encode_sound
from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.media import RATE_HZ, Reader
from scav_jax.features.clip import STREAMS
from scav_jax.features.store import Split
from scav_jax.probe.labels import cosines, unit_or_zero
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.model import Model

GOOD, BAD = (18, 96_000), (42, 16_000)  # constant rate factor of H.264, bits a second of AAC
CROPPED = 0.1  # of each edge
NOISE = 0.08  # of full scale, in picture
NOISE_DB = -15  # of the sound's own level
SPEED = 1.25
CLIPS_AT_ONCE = 32


class Recording(NamedTuple):
    """What becomes a file: frames at a rate, mono sound at 16 kHz, and how good it is."""

    frames: UInt8[np.ndarray, "N h w 3"]
    rate: float
    sound: Float[np.ndarray, " S"]
    quality: tuple[int, int] = GOOD


def crop(film: Recording, random: np.random.Generator) -> Recording:
    """A tenth of the picture's edges is gone."""
    height, width = film.frames.shape[1:3]
    top, left = int(CROPPED * height), int(CROPPED * width)
    return film._replace(frames=film.frames[:, top : height - top, left : width - left])


def reencode(film: Recording, random: np.random.Generator) -> Recording:
    """Picture and sound in as few bits as a bad copy has."""
    return film._replace(quality=BAD)


def noise(film: Recording, random: np.random.Generator) -> Recording:
    """Noise in picture and sound."""
    frames = np.empty_like(film.frames)
    for before, after in zip(film.frames, frames, strict=True):  # noise takes eight times a frame
        after[:] = np.clip(before + random.normal(scale=255 * NOISE, size=before.shape), 0, 255)
    level = np.sqrt(np.mean(film.sound**2)) * 10 ** (NOISE_DB / 20)
    sound = film.sound + random.normal(scale=level, size=film.sound.shape)
    return film._replace(frames=frames, sound=np.clip(sound, -1, 1).astype(np.float32))


def speed(film: Recording, random: np.random.Generator) -> Recording:
    """A quarter faster, as a tape: fewer frames, higher sounds."""
    frames = np.arange(0, len(film.frames) - 1, SPEED).astype(int)
    places = np.arange(0, len(film.sound) - 1, SPEED)
    sound = np.interp(places, np.arange(len(film.sound)), film.sound).astype(np.float32)
    return film._replace(frames=film.frames[frames], sound=sound)


CHANGES: dict[str, Callable[[Recording, np.random.Generator], Recording]] = {
    "crop": crop,
    "reencode": reencode,
    "noise": noise,
    "speed": speed,
}


def chosen(split: Split, videos: Path, count: int) -> Int[np.ndarray, " n"]:
    """The numbers of at most `count` clips, evenly spread over the split.

    Raises:
      InputError: the source of one is not in the folder.
    """
    numbers = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int))
    for source in dict.fromkeys(split.sources[number] for number in numbers):
        if not (videos / source).is_file():
            raise InputError(
                f"{videos / source}: expected a clip's source, there is none; give --videos FOLDER"
            )
    return numbers


def fingerprint(
    model: Model,
    originals: Embedded,
    split: Split,
    videos: Path,
    numbers: Int[np.ndarray, " n"],
) -> dict[str, dict]:
    """R@1 of changed copies, by change and by what they ask with.

    Args:
      model: embeds the copies.
      originals: of all clips of the split.
      split: which clips.
      videos: the folder of their sources.
      numbers: of which clips copies are made, as `chosen`.

    Returns:
      By change, `visual`, `audio`, `both`: the share that finds its original; `n`, and `rejected`,
      copies that could not be read. A change whose copies were all rejected is left out.
    """
    keys = {stream: unit_or_zero(getattr(originals, f"{stream}_embeddings")) for stream in STREAMS}
    right: dict[str, list] = {change: [] for change in CHANGES}
    # Each copy counts when it is written, and when it is read again.
    with progress_bar("changed copies", 2 * len(CHANGES) * len(numbers), "file") as bar:
        for first in range(0, len(numbers), CLIPS_AT_ONCE):
            some = numbers[first : first + CLIPS_AT_ONCE]
            with tempfile.TemporaryDirectory() as folder:
                for number in some:  # one film at a time is in memory
                    _write_copies(_film(split, number, videos), int(number), Path(folder))
                    bar.update(len(CHANGES))
                for change in CHANGES:
                    parts = model.stream(Path(folder) / change, streams=STREAMS)
                    right[change] += [hit for p in parts if len(p) for hit in _of_copies(p, keys)]
                    bar.update(len(some))
    return {
        change: {
            **{asked: float(np.mean([hit[asked] for hit in hits])) for asked in hits[0]},
            "n": len(hits),
            "rejected": len(numbers) - len(hits),
        }
        for change, hits in right.items()
        if hits
    }


def _film(split: Split, number: int, videos: Path) -> Recording:
    """A clip as its source has it."""
    source = videos / split.sources[number]
    try:
        with Reader(source, None) as reader:
            media = reader.cut(float(split.starts[number]), float(split.ends[number]))
    except Unusable as unusable:
        raise InputError(f"{source}: {unusable.reason}") from None
    begin, end = media.frames_span
    return Recording(media.frames, len(media.frames) / (end - begin), media.waveform)


def _write_copies(film: Recording, number: int, folder: Path) -> None:
    """A file for each change, in a folder of its name."""
    for change, of_film in CHANGES.items():
        (folder / change).mkdir(exist_ok=True)
        write(folder / change / f"{number}.mp4", of_film(film, np.random.default_rng(number)))


def _of_copies(asking: Embedded, keys: dict) -> list[dict[str, bool]]:
    """Of each copy, whether its original is nearest, by what it asks with."""
    own = np.array([int(Path(name).stem) for name in asking.ids])
    near = {
        stream: cosines(unit_or_zero(getattr(asking, f"{stream}_embeddings")), keys[stream])
        for stream in STREAMS
    }
    near["both"] = near["visual"] + near["audio"]
    right = {asked: matrix[np.arange(len(own)), own, None] for asked, matrix in near.items()}
    hits = {asked: (near[asked] >= right[asked]).sum(axis=1) == 1 for asked in near}
    return [{asked: bool(hit[row]) for asked, hit in hits.items()} for row in range(len(own))]


def write(path: Path, film: Recording) -> None:
    """A film as MP4: H.264 and AAC, with even sides."""
    rate = Fraction(film.rate).limit_denominator(1001)
    height, width = (side // 2 * 2 for side in film.frames.shape[1:3])
    crf, bits = film.quality
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        audio.bit_rate = bits
        for pixels in film.frames:
            pixels = np.ascontiguousarray(pixels[:height, :width])
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        encode_sound(container, audio, film.sound)
        container.mux(audio.encode(None))

"""A stretch of a file as a small film or sound that browsers play, cut to the clip's own clock.

The picture is scaled down, the sound is what the backbone hears: one channel at 16 kHz. The file
itself is not handed out: any container plays, and nothing but the clip leaves the machine.
"""

import base64
import contextlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from scav_jax.base.containers import encode_sound
from scav_jax.base.documents import content_sample
from scav_jax.extract.containers.film import KINDS
from scav_jax.extract.containers.opening import Unusable, decoder_errors
from scav_jax.extract.decoding.measured import stream_kinds
from scav_jax.extract.decoding.media import Media, Reader
from scav_jax.extract.decoding.streams import Stream
from scav_jax.extract.fbank import RATE_HZ

WIDTH, HEIGHT = 426, 240
MAX_PIXELS = 2**26  # of all frames together, while a clip is held in memory
MAX_SECONDS = 60.0
MAX_RATE = 60
STILL_S = 0.5  # its frame is found in so much of a clip
ANOTHER = "it is another file now than was indexed"  # why it cannot be played


@dataclass(frozen=True)
class Playable:
    """A clip for a browser.

    Attributes:
      kind: "video" or "audio", the element that plays it.
      type: the media type.
      content: an MP4 file.
      still: its first picture, as a `data:` address; "" for a sound.
    """

    kind: str
    type: str
    content: bytes
    still: str = ""


def make_playable(
    path: Path,
    start: float,
    end: float | None,
    *,
    kinds: Collection[str] = KINDS,
) -> Playable:
    """Cuts and encodes a clip, its picture `WIDTH` by `HEIGHT` pixels at most.

    They are less where it has so many frames that they are more than `MAX_PIXELS` in all.

    Args:
      path: of the file.
      start, end: in seconds of the file; None is its end. What lasts more than `MAX_SECONDS` is
        cut short.
      kinds: "video", "audio" or both, of which those are taken that the file has.

    Raises:
      Unusable: the clip cannot be decoded or encoded; its reason is in words.
    """
    if end is not None:
        end = min(end, start + MAX_SECONDS)
    there = stream_kinds(path)
    chosen = tuple(kind for kind in KINDS if kind in kinds and kind in there)
    if not chosen:
        raise Unusable("open", f"no {' and no '.join(kinds)} stream")
    shrink = None
    if "video" in chosen:
        seconds = MAX_SECONDS if end is None else end - start
        _, rate = picture_load(path)
        shrink = partial(_scaled, most=MAX_PIXELS / max(rate * seconds, 1.0))
    with Reader(path, None, shrink, MAX_SECONDS, chosen) as reader:
        media = reader.cut(start, end)
    try:
        content = _encode(media)
    except av.FFmpegError as error:
        raise Unusable("encode", f"no encoder for it: {error}") from None
    kind = "video" if "video" in chosen else "audio"
    still = "" if media.frames is None else jpeg(media.frames[0])
    return Playable(kind, f"{kind}/mp4", content, still)


def is_another(path: str | Path, content: str) -> bool:
    """Whether a file is another one now than when its clips were indexed.

    Args:
      path: of the file.
      content: its `content_sample` then; "" where nobody looked.
    """
    return bool(content) and content_sample(path) not in ("", content)


def still_picture(path: Path, start: float, end: float) -> str:
    """The first picture of a clip as a `data:` address, soon; "" where there is none."""
    shrink = partial(_scaled, most=MAX_PIXELS)
    with contextlib.suppress(Unusable), Reader(path, None, shrink, STILL_S, ("video",)) as reader:
        return jpeg(reader.cut(start, min(end, start + STILL_S)).frames[0])
    return ""


def data_uri(kind: str, content: bytes) -> str:
    """Content of a media type as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(frame: UInt8[np.ndarray, "height width 3"], quality: int = 80) -> str:
    """A picture as a `data:` address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG", quality=quality)
    return data_uri("image/jpeg", file.getvalue())


def picture_load(path: Path) -> tuple[int, float]:
    """The pixels of a frame, and the frames a second, that a file declares.

    Raises:
      Unusable: it has no picture, or cannot be read.
    """
    with decoder_errors(path), contextlib.closing(Stream(path, "video")) as stream:
        return stream.stream.width * stream.stream.height, stream.rate


def _scaled(frame: UInt8[np.ndarray, "height width 3"], most: float) -> UInt8[np.ndarray, "h w 3"]:
    """A frame of even sides, as large as fits `WIDTH`, `HEIGHT` and `most` pixels."""
    from PIL import Image

    rows, columns = frame.shape[:2]
    most = min(most, HEIGHT * WIDTH)
    factor = min(1.0, HEIGHT / rows, WIDTH / columns, (most / (rows * columns)) ** 0.5)
    size = tuple(max(2, 2 * round(side * factor / 2)) for side in (columns, rows))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def _encode(media: Media) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        frames, rate, video, audio = None, Fraction(1), None, None
        if media.frames is not None:
            frames, rate = _frames_and_rate(media)
            video = container.add_stream("libx264", rate=rate)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            # One thread, so that the same clip has the same bytes.
            video.options = {"preset": "veryfast", "crf": "26", "threads": "1"}
        if media.waveform is not None:
            audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
            audio.bit_rate = 64_000
        if frames is not None:
            first = round(media.frames_span[0] * rate)
            for number, rgb in enumerate(frames, first):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if media.waveform is not None:
            samples = np.clip(media.waveform, -1.0, 1.0).astype(np.float32)
            encode_sound(container, audio, samples)
            container.mux(audio.encode())
    return file.getvalue()


def _frames_and_rate(media: Media) -> tuple[UInt8[np.ndarray, "n height width 3"], Fraction]:
    """What is shown of the frames, at most `MAX_RATE` a second, and how many that is."""
    begin, end = media.frames_span
    rate = len(media.frames) / max(end - begin, 1e-3)
    every = max(1, round(rate / MAX_RATE))
    return media.frames[::every], Fraction(rate / every).limit_denominator(1001)

"""Frames and sound into an MP4 file: H.264 and AAC, both from time 0, byte for byte the same."""

import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from scav_jax.base.containers import AAC_FRAME, encode_sound
from scav_jax.datasets.chimes.presets import Parameters

BT601 = 5  # FFmpeg's number of the colour matrix that picture.py uses


def encode_mp4(
    frames: Callable[[int, int], np.ndarray], sound: np.ndarray, parameters: Parameters
) -> bytes:
    """The bytes of an MP4 file.

    The H.264 encoder has no B-frames, so pictures are not delayed; the AAC encoder's priming
    samples get negative timestamps and an edit list, so that sound sample 0 is at time 0 too.
    A key frame starts every clip, for seeking.

    Args:
      frames: `frames(begin, end)` gives `[end - begin, height * 3 / 2, width]` uint8 (yuv420p).
      sound: `[samples]` float32, as long as the pictures.
      parameters: rates, size and quality.
    """
    rate = parameters.frame_rate
    count = round(parameters.performance_seconds * rate)
    clip = max(round(parameters.clip_seconds * rate), 1)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = _video_stream(container, parameters, clip)
        audio = container.add_stream(
            "aac", rate=parameters.audio_rate_hz, layout="mono", options={"aac_coder": "fast"}
        )
        audio.bit_rate = 64000
        written = 0
        for begin in range(0, count, clip):
            end = min(begin + clip, count)
            for number, pixels in enumerate(frames(begin, end), begin):
                frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
                frame.pts = number
                frame.time_base = Fraction(1, rate)
                container.mux(video.encode(frame))
            until = len(sound) if end == count else round(end / rate * parameters.audio_rate_hz)
            until -= 0 if end == count else until % AAC_FRAME
            encode_sound(container, audio, sound, written, until)
            written = until
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return buffer.getvalue()


def _video_stream(container, parameters: Parameters, clip: int):
    options = {
        "preset": "ultrafast",
        "crf": str(parameters.crf),
        "g": str(clip),
        "sc_threshold": "0",
        "threads": "1",  # more threads cut frames into other slices: other bytes
    }
    video = container.add_stream("libx264", rate=parameters.frame_rate, options=options)
    video.width, video.height, video.pix_fmt = parameters.width, parameters.height, "yuv420p"
    video.codec_context.thread_count = 1
    video.codec_context.colorspace = BT601
    return video

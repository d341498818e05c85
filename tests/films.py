"""One film with a flash and a click in any container, shifted, uneven, piped or joined."""

import functools
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS, SIZE, RATE = 25, (96, 64), 48_000
MOMENT = 1.48  # of the flash and of the click
SECONDS, MORE = 3.0, 1.5
LENGTHS = {
    "equal": (SECONDS, SECONDS),
    "longer sound": (SECONDS, SECONDS + MORE),
    "longer picture": (SECONDS + MORE, SECONDS),
}
H264, AAC = "libx264", "aac"
# name -> suffix, muxer, codecs, muxer's options
CONTAINERS = {
    "mp4": ("mp4", "mp4", H264, AAC, {}),
    "fragments": ("mp4", "mp4", H264, AAC, {"movflags": "frag_keyframe+empty_moov"}),
    "no edit list": ("mp4", "mp4", H264, AAC, {"use_editlist": "0"}),
    "mov": ("mov", "mov", H264, "pcm_s16le", {}),
    "3gp": ("3gp", "3gp", "mpeg4", AAC, {}),
    "mkv": ("mkv", "matroska", H264, AAC, {}),
    "webm": ("webm", "webm", "libvpx", "libopus", {}),
    "avi": ("avi", "avi", "mpeg4", "libmp3lame", {}),
    "ts": ("ts", "mpegts", H264, AAC, {}),
    "m2ts": ("m2ts", "mpegts", "mpeg2video", "ac3", {"mpegts_m2ts_mode": "1"}),
    "mpg": ("mpg", "mpeg", "mpeg2video", "mp2", {}),
    "flv": ("flv", "flv", "flv", "libmp3lame", {}),
    "wmv": ("wmv", "asf", "wmv2", "wmav2", {}),
    "nut": ("nut", "nut", H264, AAC, {}),
    "hevc": ("mkv", "matroska", "libx265", AAC, {}),
}


def pictures(seconds: float, seed: int = 0):
    """Dark noise that drifts, white for one frame at `MOMENT`."""
    width, height = SIZE
    texture = np.random.default_rng(seed).integers(0, 60, (height, 2 * width, 3), dtype=np.uint8)
    for index in range(round(seconds * FPS)):
        frame = texture[:, index % width : index % width + width].copy()
        frame[:] = 255 if index == round(MOMENT * FPS) else frame
        yield frame


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Quiet noise with a loud burst of 20 ms at `MOMENT`, `[1, samples]`."""
    random = np.random.default_rng(seed)
    track = 0.003 * random.standard_normal((1, round(seconds * RATE)))
    begin, count = round(MOMENT * RATE), round(0.02 * RATE)
    track[:, begin : begin + count] += 0.5 * random.standard_normal(count)
    return track.clip(-1, 1).astype(np.float32)


def add_streams(container, codecs: tuple[str, str]) -> list:
    video = container.add_stream(codecs[0], rate=FPS)
    video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
    video.codec_context.gop_size = 12
    video.codec_context.thread_count = 1
    if codecs[0] == H264:
        video.options = {"preset": "superfast", "crf": "20", "bf": "2"}
    elif codecs[0] == "libx265":
        video.options = {"preset": "superfast", "x265-params": "log-level=none:pools=none"}
    else:
        video.bit_rate = 1_000_000
    audio = container.add_stream(codecs[1], rate=RATE)
    audio.layout = "mono"
    if not codecs[1].startswith("pcm"):
        audio.bit_rate = 96_000
    return [video, audio]


@functools.cache
def _encoded(muxer: str, codecs: tuple[str, str], lengths: tuple[float, float]) -> list:
    """(stream number, pts, dts, duration, time base, key, bytes), in order of decoding."""
    with av.open(io.BytesIO(), "w", format=muxer) as container:
        video, audio = add_streams(container, codecs)
        packets = []
        for index, rgb in enumerate(pictures(lengths[0])):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            packets += video.encode(frame)
        packets += video.encode()
        track = sound(lengths[1])
        size = audio.codec_context.frame_size or 1024
        for begin in range(0, track.shape[1], size):
            part = np.ascontiguousarray(track[:, begin : begin + size])
            frame = av.AudioFrame.from_ndarray(part, "fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, begin
            frame.time_base = Fraction(1, RATE)
            packets += audio.encode(frame)
        packets += audio.encode()
        packets.sort(key=lambda packet: float(packet.dts * packet.time_base))
        return [
            (p.stream.index, p.pts, p.dts, p.duration, p.time_base, p.is_keyframe, bytes(p))
            for p in packets
        ]


class Pipe(io.RawIOBase):
    """What a muxer may write to and not go back in."""

    def __init__(self):
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


def write_film(
    path: Path,
    container: str,
    *,
    offset: float = 0.0,
    lengths: str = "equal",
    way: str = "file",
    change=None,
    moved=None,
    beside: tuple[str, float] | None = None,
) -> Path:
    """Writes a film.

    Args:
      path: of the file.
      container: of `CONTAINERS`.
      offset: seconds that all timestamps are moved by.
      lengths: of `LENGTHS`.
      way: "file", "pipe" (the muxer cannot go back) or "joined" (two, byte by byte).
      change: takes (stream number, seconds, bytes) of each packet and gives bytes, or None to leave
        the packet out.
      moved: takes (stream number, seconds) of each packet and gives seconds that it is moved by;
        a sound packet stays behind the one before it.
      beside: (of `LENGTHS`, seconds) a second sound that nobody reads, and what it is moved by.
    """
    _, muxer, *codecs, options = CONTAINERS[container]
    target = Pipe() if way == "pipe" else io.BytesIO()
    options = {**options, "avoid_negative_ts": "disabled"} if offset else options
    with av.open(target, "w", format=muxer, options=options) as out:
        streams = add_streams(out, tuple(codecs))
        packets = _encoded(muxer, tuple(codecs), LENGTHS[lengths])
        if beside is not None:
            streams.append(out.add_stream(codecs[1], rate=RATE, layout="mono"))
            others = _encoded(muxer, tuple(codecs), LENGTHS[beside[0]])
            packets = packets + [(2, *one[1:]) for one in others if one[0] == 1]
            packets.sort(key=lambda one: float(one[2] * one[4]) + beside[1] * (one[0] == 2))
        last = packets[0][2] - 1
        for number, pts, dts, duration, base, key, data in packets:
            data = data if change is None else change(number, float(pts * base), data)
            if data is None:
                continue
            packet = av.Packet(data)
            move = offset if moved is None else offset + moved(number, float(pts * base))
            ticks = round((move + beside[1] if number == 2 else move) / base)
            packet.pts, packet.dts, packet.duration = pts + ticks, dts + ticks, duration
            if moved is not None and number == 1:  # muxers want times of decoding that increase
                packet.pts = packet.dts = last = max(packet.pts, last + 1)
            packet.time_base, packet.stream, packet.is_keyframe = base, streams[number], key
            out.mux(packet)
    content = bytes(target.content) if way == "pipe" else target.getvalue()
    path.write_bytes(2 * content if way == "joined" else content)
    return path


def without_pictures(path: Path) -> Path:
    """The file with zeros in place of its coded pictures."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for at, size in places:
        content[at : at + size] = bytes(size)
    path.write_bytes(content)
    return path


def apart(moments) -> list[float]:
    """The first of each group that lies within 0.2 s."""
    kept: list[float] = []
    for moment in sorted(float(moment) for moment in moments):
        if not kept or moment - kept[-1] > 0.2:
            kept.append(moment)
    return kept


def plainly_decoded(path: Path) -> tuple[list[float], list[float]]:
    """Flashes and clicks of a file with one clock: timestamps from the container's start on."""
    flashes, clicks = [], []
    with av.open(str(path)) as container:
        start = (container.start_time or 0) / av.time_base
        for frame in container.decode(video=0, audio=0):
            ticks = frame.pts if frame.pts is not None else frame.dts
            if ticks is None:  # what an old decoder gives when it is flushed
                continue
            time = float(ticks * frame.time_base)
            if isinstance(frame, av.VideoFrame):
                if frame.to_ndarray(format="gray").mean() > 180:
                    flashes.append(time - start)
                continue
            values = frame.to_ndarray().reshape(-1).astype(np.float64)
            values /= 32_768 if frame.format.name.startswith("s16") else 1
            loud = np.flatnonzero(np.abs(values) > 0.25)
            if len(loud):
                clicks.append(time - start + loud[0] / frame.sample_rate)
    return apart(flashes), apart(clicks)


def of_media(media) -> tuple[list[float], list[float]]:
    """Flashes and clicks of what `media.Reader` cut, in seconds of the clip."""
    begin, end = media.frames_span
    period = (end - begin) / len(media.frames)
    bright = np.flatnonzero(media.frames.mean(axis=(1, 2, 3)) > 180)
    loud = np.flatnonzero(np.abs(media.waveform) > 0.25) / 16_000
    return apart(begin + bright * period), apart(loud)

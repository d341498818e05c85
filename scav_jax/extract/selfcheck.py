"""Does this machine still make the features it made? `scav extract --selfcheck`.

A changed FFmpeg, Pillow or JAX should be noticed before a hundred hours of extraction, not after.
A short clip of a moving pattern and two tones is encoded with fixed settings, decoded, and embedded
with `plain` and with small CLIP and BEATs of seeded random weights; the same models also see
synthetic frames and sound that no codec has touched. What comes out is compared with the values in
golden.json. The tolerances let other builds of FFmpeg pass, whose lossy codecs differ by a level
or so, and fail what would matter: another colour matrix, a shifted clock, another resampling.
(FFmpeg of PyAV 18.1 and 19.0 decode the same bits.)

    write_golden("golden.json")      writes the values of this machine
"""

import dataclasses
import json
import tempfile
from fractions import Fraction
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.base.containers import encode_sound
from scav_jax.base.files import write_json
from scav_jax.extract import backbones, fbank
from scav_jax.extract.decoding import measured, media

GOLDEN = "golden.json"
SIZE = (160, 120)  # width, height
RATE, SECONDS = 25, 2
SOUND_RATE = 44_100
BURST_S = 1.2  # a flash and a louder tone begin
TONES_HZ = (440.0, 3_000.0)
SHOWN = 16  # numbers of a feature that are compared


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table: `|got - expected| <= tolerance` for each number.

    Attributes:
      name: what is compared.
      values: a few numbers that would show a change.
      tolerance: absolute.
      why: what a difference means.
    """

    name: str
    values: list[float]
    tolerance: float
    why: str


def selfcheck() -> bool:
    """Prints the table; whether everything is as it was."""
    stored = json.loads(resources.files(__package__).joinpath(GOLDEN).read_text())
    print(f"{'':16} {'here':14} stored with")
    for name, version in versions().items():
        print(f"{name:16} {version:14} {stored['versions'].get(name, '')}", flush=True)
    print(f"\n{'':42} {'differs by':>11} {'allowed':>9}")
    failed = []
    for check in checks():
        difference = _difference(check.values, stored.get(check.name))
        good = difference <= check.tolerance
        words = "" if good else f"   {check.why}"
        print(
            f"{check.name:42} {difference:11.2g} {check.tolerance:9.2g} "
            f"{'ok' if good else 'DIFFERS'}{words}",
            flush=True,
        )
        if not good:
            failed.append(check.name)
    if failed:
        print(
            f"\n{len(failed)} differ: features of this machine are not those of others. Extract "
            "everything with one installation, or go back to versions that agree."
        )
    else:
        print("\neverything is as stored")
    return not failed


def versions() -> dict[str, str]:
    """Of what features depend on."""
    from importlib.metadata import version

    return {**{name: version(name) for name in ("pillow", "numpy", "jax")}, **measured.libraries()}


def checks() -> list[Check]:
    """All of them, computed here and now."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path)
        with media.Reader(path, None) as reader:
            whole = reader.cut(0.0, None)
        plain = backbones.load("plain")
        with media.Reader(path, plain.visual.frame_size) as reader:
            small = reader.cut(0.0, None)
    frames, sound = pattern(), tones(fbank.RATE_HZ)
    return [
        *_decoding(whole),
        *_plain(plain, small, frames, sound),
        *_models(whole, frames, sound),
    ]


def _decoding(clip: media.Media) -> list[Check]:
    grid = clip.frames[::10].reshape(-1, 2, 60, 2, 80, 3).mean(axis=(2, 4)).ravel()
    flash = int(clip.frames.mean(axis=(1, 2, 3)).argmax())
    power = clip.waveform.astype(np.float64) ** 2
    spectrum = np.abs(np.fft.rfft(clip.waveform[:16_000])) / 8_000
    loud = np.convolve(power, np.ones(160), "valid")
    onset = int(np.argmax(loud > loud.max() / 4)) / fbank.RATE_HZ
    return [
        Check("frames, count", [float(len(clip.frames))], 0, "frames are lost or added"),
        Check("frames, begin and end (s)", list(clip.frames_span), 1e-3, "the clock is another"),
        Check("frames, cell means (of 255)", grid.tolist(), 1.0, "decoder or colour matrix"),
        Check("frames, the flash (frame)", [float(flash)], 0, "pictures are shifted in time"),
        Check("sound, samples", [float(len(clip.waveform))], 1, "length or rate"),
        Check("sound, level", [float(np.sqrt(power.mean()))], 0.005, "gain or channels"),
        Check("sound, the burst (s)", [onset], 0.005, "sound is shifted in time"),
        Check("sound, both tones", [float(spectrum[round(f)]) for f in TONES_HZ], 0.01, "filter"),
    ]


def _plain(
    plain: backbones.Backbone, clip: media.Media, frames: np.ndarray, sound: np.ndarray
) -> list[Check]:
    """Features of the decoded clip, and of what no codec has touched."""
    picture, sound_of = plain.visual.prepare, plain.audio.prepare
    small = np.ascontiguousarray(frames[:, :64, :64])
    make = partial(Check, why="NumPy, or this program, computes something else")
    return [
        Check("plain, decoded frames", _shown(picture(clip.frames, None)), 0.06, "scaling"),
        Check("plain, decoded sound", _shown(sound_of(clip.waveform)), 0.05, "resampling"),
        make("plain, exact frames", _shown(picture(small, None)), 1e-5),
        make("plain, exact sound", _shown(sound_of(sound)), 1e-3),
    ]


def _models(clip: media.Media, frames: np.ndarray, sound: np.ndarray) -> list[Check]:
    model = small_clip_beats()
    shrink, sound_of = model.preparer.visual.shrink, model.preparer.audio.prepare
    crops = np.stack([shrink(frame) for frame in frames])
    decoded = np.stack([shrink(frame) for frame in clip.frames])
    rough = backbones.Prepared(decoded[::5], sound_of(clip.waveform))
    exact = backbones.Prepared(crops[::5], sound)
    (rough_visual, rough_audio), (visual, audio) = model.encode([rough, exact])
    sums = [float(part.sum()) for part in np.array_split(crops.astype(np.int64).ravel(), SHOWN)]
    make = partial(Check, why="JAX, its precision, or this program")
    return [
        Check("crops, exact frames (sums of pixels)", sums, 0, "Pillow resizes differently"),
        Check("CLIP, decoded frames", _shown(rough_visual), 0.05, "decoder or colour matrix"),
        make("CLIP, exact frames", _shown(visual), 2e-3),
        Check("BEATs, decoded sound", _shown(rough_audio), 0.05, "decoder or resampling"),
        make("BEATs, exact sound", _shown(audio), 2e-3),
    ]


def _shown(features: Float[np.ndarray, "steps width"]) -> list[float]:
    """A few numbers: evenly spread features, each at an early and at a late step."""
    steps = [len(features) // 4, 3 * len(features) // 4]
    columns = np.linspace(0, features.shape[1] - 1, SHOWN // 2).astype(int)
    return [float(value) for value in features[steps][:, columns].ravel()]


def _difference(got: list[float], expected: list[float] | None) -> float:
    """The largest; infinite where there is nothing to compare."""
    if expected is None or len(expected) != len(got):
        return float("inf")
    difference = float(np.max(np.abs(np.asarray(got) - np.asarray(expected))))
    return float("inf") if np.isnan(difference) else difference


# What is embedded ----------------------------------------------------------------------------


def pattern() -> UInt8[np.ndarray, "N height width 3"]:
    """Colour waves that drift, in integers only; one frame is much brighter."""
    width, height = SIZE
    y, x = np.mgrid[:height, :width].astype(np.int64)
    frames = []
    for index in range(RATE * SECONDS):
        drift = 3 * index
        red = _triangle(2 * x + drift) // 2
        green = _triangle(3 * y - drift) // 2
        blue = _triangle(x + y + 2 * drift) // 3
        frame = np.stack([red, green, blue], axis=-1)
        frames.append(frame + 120 if index == round(BURST_S * RATE) else frame)
    return np.stack(frames).astype(np.uint8)


def _triangle(x: np.ndarray) -> np.ndarray:
    """0 to 255 and back, with period 512."""
    return 256 - np.abs(x % 512 - 256).clip(1)


def tones(rate: int) -> Float[np.ndarray, " S"]:
    """Two tones, the higher one louder after the burst."""
    time = np.arange(rate * SECONDS) / rate
    low, high = (np.sin(2 * np.pi * hz * time) for hz in TONES_HZ)
    return (0.1 * low + np.where(time < BURST_S, 0.02, 0.3) * high).astype(np.float32)


def write_clip(path: Path) -> None:
    """The pattern in MPEG-4 and the tones in AAC, both of FFmpeg's own, on one thread."""
    import av

    sound = tones(SOUND_RATE)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=RATE)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        video.bit_rate, video.codec_context.gop_size = 2_000_000, 12
        video.codec_context.thread_count = 1
        audio = container.add_stream("aac", rate=SOUND_RATE)
        audio.layout, audio.bit_rate = "mono", 128_000
        for index, rgb in enumerate(pattern()):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        encode_sound(container, audio, sound)
        container.mux(audio.encode())


def small_clip_beats() -> backbones.Backbone:
    """CLIP and BEATs of two narrow layers with seeded random weights."""
    from scav_jax.extract.backbones import beats, beats_weights
    from scav_jax.extract.backbones.clip_model import FRAME_CHUNKS, ClipModel
    from scav_jax.extract.backbones.clip_towers import ClipConfig, VisionConfig
    from scav_jax.extract.backbones.clip_weights import random_weights

    vision = ClipConfig(vision=VisionConfig(64, 128, 32, 2, 4, 224, 32))
    # On an accelerator too: what is compared are crops, as the host makes them.
    batching = dataclasses.replace(FRAME_CHUNKS, resize="pil")
    model = ClipModel(vision, random_weights(vision), batching=batching)
    config = dataclasses.replace(
        beats_weights.ITER3_PLUS,
        embed_dim=64,
        encoder_layers=2,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=128,
        encoder_attention_heads=4,
        conv_pos=16,
        conv_pos_groups=4,
    )
    sound = beats.Beats(beats_weights.random_checkpoint(config, seed=0))
    return backbones.load("clip_beats", weights={"clip": model, "beats": sound})


def write_golden(path: str | Path) -> None:
    """Writes the values of this machine, as they are stored with the program."""
    values = {check.name: [round(value, 6) for value in check.values] for check in checks()}
    write_json(path, {"versions": versions(), **values})

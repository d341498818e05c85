"""Rows of accelerator.py: extraction's encoders with random weights, from crops and waveforms."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
from accelerator_steps import shares
from timing import median_seconds

DECODER = (
    *("av", "av.audio", "av.audio.resampler", "av.codec", "av.codec.context", "av.filter"),
    *("av.sidedata", "av.sidedata.sidedata", "av.stream", "av.video", "av.video.reformatter"),
)


def stand_in_for_the_decoder() -> None:
    """Where PyAV is not installed, something to import: encoders lie beside it, but need none."""
    try:
        import av  # noqa: F401
    except ImportError:
        nothing = mock.MagicMock(name="av, which is not installed")
        nothing.__version__, nothing.formats_available = "19.0.0", set()
        sys.modules.update(dict.fromkeys(DECODER, nothing))


stand_in_for_the_decoder()
if not any(word.startswith("--threads") for word in sys.argv):
    sys.argv.append("--threads=all")  # read by what `clip` imports, before it starts threads

import beats as beats_benchmark  # noqa: E402
import clip as clip_benchmark  # noqa: E402
import jax  # noqa: E402

from scav_jax.extract.backbones.beats import Beats  # noqa: E402
from scav_jax.extract.backbones.beats_weights import ITER3_PLUS, random_checkpoint  # noqa: E402
from scav_jax.extract.backbones.clip_model import FRAME_CHUNKS, ClipModel  # noqa: E402
from scav_jax.extract.backbones.clip_towers import ClipConfig, VisionConfig  # noqa: E402
from scav_jax.extract.backbones.clip_weights import random_weights  # noqa: E402
from scav_jax.extract.backbones.sides import CLIPS_A_DEVICE  # noqa: E402

SMALL_CLIP = VisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=64
)


def clip(quick: bool, dtype: str) -> dict:
    """Crops of clips of 250 frames through CLIP B/32, as extraction has them."""
    vision, frames = (SMALL_CLIP, 6) if quick else (VisionConfig(), 250)
    config, side = ClipConfig(vision=vision), vision.image_size
    batching = replace(FRAME_CHUNKS, devices=jax.local_devices()[:1])
    model = ClipModel(config, random_weights(config), dtype=dtype, batching=batching)
    random = np.random.default_rng(0)
    crops = random.integers(0, 256, (frames, side, side, 3), np.uint8)
    some, work = [crops] * CLIPS_A_DEVICE, clip_benchmark.operations(vision) * frames
    return rate(lambda: model.encode_clips(some), len(some), work, dtype, quick)


def beats(quick: bool, dtype: str) -> dict:
    """Waveforms of 10 s through BEATs, log-mel frames included, in full batches.

    `alone_clips_per_s`: as extraction has them, one sound at a time.
    """
    config, clips = (replace(ITER3_PLUS, encoder_layers=1), 2) if quick else (ITER3_PLUS, 32)
    model = Beats(random_checkpoint(config, seed=0), dtype, devices=1)
    random = np.random.default_rng(0)
    sounds = random.uniform(-0.5, 0.5, (clips, beats_benchmark.SAMPLES)).astype(np.float32)
    work = beats_benchmark.flops_of_a_clip(config)
    alone = rate(lambda: model.encode(sounds, alone=True), clips, work, dtype, quick)
    figures = rate(lambda: model.encode(sounds), clips, work, dtype, quick)
    return figures | {"alone_clips_per_s": alone["clips_per_s"]}


def rate(
    call: Callable[[], object], clips: int, flops_of_a_clip: float, dtype: str, quick: bool
) -> dict:
    begin = time.perf_counter()
    call()
    first = time.perf_counter() - begin
    took = median_seconds(call, 1 if quick else 5)
    figures = {"clips_per_s": clips / took, "clips_at_once": clips, "first_s": first}
    return figures | shares(clips * flops_of_a_clip / took, dtype, quick)

"""How fast are log-mel frames and BEATs for 10 s clips, and with what share of the GEMM peak?

    python scripts/benchmarks/beats.py [--quick] [--clips N] [--out FILE.json]

Random weights of the released size (12 layers of width 768), one device. For float32 (products at
full precision) and bfloat16: the time of one matrix product of the feed-forward layers' shape,
which is taken as the machine's peak; then that of log-mel frames alone and of waveforms in to
features out, copies included. Work is counted for a clip's own 496 tokens, so that padding (to 512)
is a loss. Times are medians of wall time; compilation is apart. Rows are printed, and written, as
they are measured, the cheapest first. `--quick`: two layers, few clips.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from timing import median_seconds

from scav_jax.extract import fbank
from scav_jax.extract.backbones import beats, beats_weights
from scav_jax.extract.fbank_on_device import log_mel_on_device

SECONDS = 10
SAMPLES = SECONDS * fbank.RATE_HZ
DTYPES = ("float32", "bfloat16")
COLUMNS = {  # of the table: a figure and how it is written
    "ms a clip": ("ms_a_clip", "{:10.2f}"),
    "clips/s": ("clips_per_s", "{:10.2f}"),
    "GFLOP/s": ("gflop_per_s", "{:10.1f}"),
    "GEMM": ("gemm_gflop_per_s", "{:10.1f}"),
    "share": ("share_of_gemm", "{:10.1%}"),
    "first s": ("first_call_s", "{:10.1f}"),
}


def flops_of_a_clip(config: beats_weights.BeatsConfig) -> float:
    """Multiplications and additions of the matrix products and convolutions for one clip."""
    tokens = beats.step_count(SAMPLES) * beats.PATCHES_A_STEP
    width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
    embedding = beats.PATCH_SIDE**2 * config.embed_dim + config.embed_dim * width
    position = width * width // config.conv_pos_groups * config.conv_pos
    layer = 4 * width**2 + 2 * width * hidden + 2 * tokens * width
    return 2.0 * tokens * (embedding + position + config.encoder_layers * layer)


def flops_of_log_mel() -> float:
    """Of the Fourier transform, 2.5 N log2 N, and the mel filters for one clip."""
    n = fbank.FFT_SAMPLES
    return fbank.frame_count(SAMPLES) * (2.5 * n * np.log2(n) + 2.0 * n // 2 * fbank.MEL_BINS)


def gemm_peak(rows: int, config: beats_weights.BeatsConfig, dtype: str, repeats: int) -> float:
    """FLOP/s of one product `[rows, width] x [width, hidden]`, at the precision that BEATs uses."""
    width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
    a, b = (
        jax.random.normal(jax.random.key(seed), shape, jnp.dtype(dtype))
        for seed, shape in enumerate([(rows, width), (width, hidden)])
    )
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    took = median_seconds(lambda: product(a, b).block_until_ready(), 5 * repeats)
    return 2.0 * rows * width * hidden / took


def measure(
    config: beats_weights.BeatsConfig, clips: int, repeats: int
) -> Iterator[tuple[str, dict]]:
    """Names and figures of the rows, each as it is measured."""
    rng = np.random.default_rng(0)
    waveforms = rng.uniform(-0.5, 0.5, (clips, SAMPLES)).astype(np.float32)

    def row(name: str, flops: float, took: float, peak: float, **more: float) -> tuple[str, dict]:
        return name, {
            "ms_a_clip": 1e3 * took,
            "clips_per_s": 1 / took,
            "gflops_a_clip": flops / 1e9,
            "gflop_per_s": flops / took / 1e9,
            "gemm_gflop_per_s": peak / 1e9,
            "share_of_gemm": flops / took / peak,
            **more,
        }

    peak = gemm_peak(clips * 512, config, "float32", repeats)
    took = median_seconds(lambda: fbank.log_mel(waveforms[0]), repeats)
    yield row("log-mel, numpy", flops_of_log_mel(), took, peak)
    on_device, frames = jnp.asarray(waveforms), jax.jit(log_mel_on_device)
    took = median_seconds(lambda: frames(on_device).block_until_ready(), repeats) / clips
    yield row("log-mel, JAX", flops_of_log_mel(), took, peak)
    checkpoint = beats_weights.random_checkpoint(config, seed=0)
    for dtype in DTYPES:
        if dtype != "float32":
            peak = gemm_peak(clips * 512, config, dtype, repeats)
        model = beats.Beats(checkpoint, dtype, devices=1)
        begin = time.perf_counter()
        model.encode(waveforms)
        first = time.perf_counter() - begin
        took = median_seconds(lambda model=model: model.encode(waveforms), repeats) / clips
        yield row(f"BEATs, {dtype}", flops_of_a_clip(config), took, peak, first_call_s=first)


def show(name: str, row: dict) -> None:
    cells = (form.format(row[key]) if key in row else " " * 10 for key, form in COLUMNS.values())
    print(f"{name:18}{''.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two layers, two clips")
    parser.add_argument("--clips", type=int, help="clips a batch; 32 on an accelerator, else 4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="writes the figures as JSON")
    options = parser.parse_args()
    config, device = beats_weights.ITER3_PLUS, jax.devices()[0]
    clips = options.clips or (4 if device.platform == "cpu" else 32)
    if options.quick:
        config, clips, options.repeats = replace(config, encoder_layers=2), 2, 2
    print(f"{device.device_kind}, jax {jax.__version__}: {clips} clips of {SECONDS} s at once")
    print(" " * 18 + "".join(f"{title:>10}" for title in COLUMNS), flush=True)
    about = {"device": device.device_kind, "jax": jax.__version__, "clips": clips}
    about |= {"layers": config.encoder_layers, "rows": {}}
    for name, row in measure(config, clips, options.repeats):
        show(name, row)
        about["rows"][name] = row
        if options.out:
            with open(options.out, "w") as file:
                json.dump(about, file, indent=2)


if __name__ == "__main__":
    main()
